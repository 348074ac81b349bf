"""Make shards from videos, once: `python shard_tools/make_shards.py SOURCE --out DIR`. `--help` explains."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a file: import from this checkout
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    import i2v.console  # noqa: F401  # before the others, which take their time: see quiet_start

import argparse
import csv
import io
import re
import shlex
import signal
import time
from collections import Counter

from tqdm import tqdm

from i2v.console import begin_command
from i2v.shard_tools.card import CROISSANT, write_card
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import CRF, LIBRARY, EncodeSettings
from i2v.shard_tools.join import identity, known_videos
from i2v.shard_tools.lists.classes import FORMS
from i2v.shard_tools.lists.layouts import LAYOUTS
from i2v.shard_tools.output import MAKING, Output, OutputError
from i2v.shard_tools.paths import is_url
from i2v.shard_tools.sources import Listing, Video, read_sources

NAMED = 8  # classes that the summary names

EPILOG = """\
what comes out, in DIR
  shard-000000.tar    WebDataset: 000000-000000.mp4, 000000-000000.json, ... in shuffled order
  manifest.json       what is in it, how it was made, class names; written last: if it is there, DIR is complete
  clips.npy fragments.npy     the index: where every clip and every frame is
  clips.csv           key,path,start,end,class,frames,seconds,width,height of every clip
  rejected.csv        path,start,end,label,reason of the videos that could not be used
  README.md croissant.json    with --card: the data set's card, and its metadata for other tools

An interrupted run (Ctrl-C, kill, disk full, no network) continues when the same command is given again. The same videos
and options give the same bytes, whoever makes them (except with hevc, whose encoder does not repeat itself exactly).

examples
  make_shards.py videos/train --out shards/train                              # class folders, or any list of path,label
  make_shards.py val.csv --root /data/val --out shards/val --classes shards/train/manifest.json
  make_shards.py k400/train.csv --root k400/train --out shards/k400           # Kinetics: youtube_id, time_start, ...
  make_shards.py train.json --root 20bn-something-something-v2 --out shards/ssv2 --gop 4
  make_shards.py ucfTrainTestlist/trainlist01.txt --root UCF-101 --out shards/ucf101
  make_shards.py parts.csv --out shards/parts                                 # path,start,end,label: of long videos
  make_shards.py EPIC_100_train.csv --root EPIC-KITCHENS --out shards/epic    # verbs and nouns, parts by their times
  make_shards.py tags.csv --multi-label --out shards/tags                     # path,label: several classes a video
  make_shards.py 's3://bucket/videos-{000..099}.tar' --out s3://bucket/shards # WebDataset; any fsspec URL, both ways
  make_shards.py train.csv --out shards/k400 --codec mjpeg                    # 3 x the bytes, 1/5 of the decoding
  sbatch --array=0-63 --wrap 'python shard_tools/make_shards.py train.csv --out /shared/k400 \\
      --task-index $SLURM_ARRAY_TASK_ID --num-tasks 64'                       # submit again what failed; any order
  make_shards.py more.csv --out shards/train --append                         # the videos that it does not have yet
  make_shards.py videos/train --out shards/train --retry                      # those of rejected.csv, once repaired

exit codes: 0 complete, or this task's part of it; 1 could not write, or no usable video; 2 wrong arguments, list or
folder; 130 interrupted
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make_shards",
        usage="%(prog)s SOURCE --out DIR [options]",
        description="Re-encode videos once into shards that training reads: every clip upright, of one short side,\n"
        "one codec, short closed groups of pictures, checked frame by frame.",
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=120, max_help_position=24),
    )
    add = parser.add_argument_group("what").add_argument
    add("source", metavar="SOURCE", help="folder of class folders, a list (path,label), a data set's own list, or tars")
    add("--layout", default="auto", choices=LAYOUTS, metavar="NAME", help=f"of SOURCE: {', '.join(LAYOUTS)}")
    add("--root", metavar="DIR", help="where the videos of a list are (default: beside it)")
    add("--split", metavar="NAME", help="which split of a list that has several, such as val, or test1 of HMDB51")
    add(
        "--classes",
        metavar="FILE",
        help=f"class names: {FORMS}; numbers decide the order. Default: those of SOURCE, "
        "sorted; with --append and --retry those of DIR",
    )
    add("--map", metavar="FILE", help="CSV file from,to that renames, merges or (empty to) leaves out classes")
    add("--factors", metavar="A,B", help="columns of a list that are its labels together, such as verb,noun")
    add("--multi-label", action="store_true", help="a label is several classes: a|b, a;b, 3;17 or [3, 17]; empty: none of them")
    add = parser.add_argument_group("how").add_argument
    add(
        "--codec",
        default="vp9",
        choices=LIBRARY,
        help="vp9 (default), h264, hevc: decoded by a GPU if there is one, else by the CPU; mjpeg: fastest on a CPU",
    )
    add(
        "--gop",
        type=int,
        metavar="N",
        help="frames from keyframe to keyframe: 8 (default), 4 for sparse, 16 for dense sampling; mjpeg: always 1",
    )
    add(
        "--short-side",
        type=int,
        default=256,
        metavar="PX",
        help="a multiple of 16; 256 for 224-pixel models (default), 384 for 336-pixel ones",
    )
    add("--quality", default="standard", choices=CRF, help="standard (default): 40 to 44 dB")
    crf = ", ".join(f"{codec} {value}" for codec, value in CRF["standard"].items())
    add("--crf", type=int, metavar="N", help=f"quality as the encoder's own number, smaller is better (standard: {crf})")
    add("--fps", type=float, metavar="N", help="keep at most so many frames per second (default: all)")
    add("--max-seconds", type=float, metavar="S", help="keep at most so much of a video, from its start (default: all)")
    add = parser.add_argument_group("where").add_argument
    add("--out", metavar="DIR", required=True, help="folder or URL to write; continued if it was left unfinished")
    add("--append", action="store_true", help="add SOURCE's videos that DIR does not have to DIR, which stays usable")
    add("--retry", action="store_true", help="add SOURCE's videos that DIR rejected, if they are usable now")
    add("--card", action="store_true", help="describe DIR in README.md (if there is none) and croissant.json; reads all shards")
    add("--shard-clips", type=int, default=1000, metavar="N", help="videos per tar (default: 1000)")
    add("--seed", type=int, default=0, metavar="N", help="of the order in the shards (default: 0)")
    add("--staging", metavar="DIR", help="local folder for what is on its way to a URL (default: a temporary one)")
    add = parser.add_argument_group("scale").add_argument
    add("--workers", type=int, metavar="N", help="processes (default: all cores)")
    add("--timeout", type=float, default=600, metavar="S", help="seconds until a video is given up (default: 600)")
    add("--task-index", type=int, metavar="I", help="of a job array: make shards I, I + N, ...; the last task joins all")
    add("--num-tasks", type=int, metavar="N", help="how many tasks the job array has, numbered from 0")
    arguments = parser.parse_args(argv)
    for name in ("workers", "shard_clips", "timeout"):
        value = getattr(arguments, name)
        if value is not None and not 1 <= value < 1e15:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {value:g}.")
    for name in ("source", "out"):
        if not getattr(arguments, name):
            parser.error(f"{'SOURCE' if name == 'source' else '--out'} is empty: perhaps a variable of the shell is not set.")
    if not 0 <= arguments.seed < 2**64:
        parser.error(f"--seed must be a number from 0 to 2**64 - 1, not {arguments.seed}.")
    index, count = arguments.task_index, arguments.num_tasks
    if (index is None) != (count is None):
        parser.error("--task-index and --num-tasks are given both or neither.")
    if count is not None and not 0 <= index < count:
        parser.error(f"--task-index must be from 0 to --num-tasks - 1, not {index} of {count}.")
    if count is not None and arguments.retry:
        parser.error("--task-index does not go with --retry, which is over before a late task starts.")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    begin_command()
    kept = "what is done is kept, the same command continues."
    try:
        return _run(arguments)
    except (ValueError, OutputError) as error:  # ValueError: of the settings; a SourceError is one
        return _fail(2, error)
    except OSError as error:
        what = f"read {error.filename}" if _is_elsewhere(error.filename, arguments) else f"write to {arguments.out}"
        return _fail(1, f"cannot {what} ({error.strerror or error}); {kept}")
    except RuntimeError as error:
        return _fail(1, f"{str(error).removesuffix('.')}; {kept}")
    except KeyboardInterrupt:
        return _fail(130, f"interrupted; {kept}")


def _is_elsewhere(path: object, arguments: argparse.Namespace) -> bool:
    """Whether an error's path is known not to be of what is written."""
    written = [os.path.realpath(place) for place in (arguments.out, arguments.staging) if place and not is_url(place)]
    path = os.path.realpath(path) if isinstance(path, str) else ""
    related = any(f"{path}/".startswith(f"{place}/") or f"{place}/".startswith(f"{path}/") for place in written)
    return bool(path) and not is_url(arguments.out) and not related


def _run(arguments: argparse.Namespace) -> int:
    settings = EncodeSettings(
        arguments.codec,
        arguments.gop,
        arguments.short_side,
        arguments.crf,
        quality=arguments.quality,
        fps=arguments.fps,
        max_seconds=arguments.max_seconds,
    )
    out, output, started = arguments.out.rstrip("/") or "/", Output(arguments.out, arguments.staging), time.monotonic()
    _require_out_elsewhere(arguments.source, arguments.out)
    videos, classes, notes = _listing(arguments, output)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if arguments.append:
        print(_known(arguments, output, videos), end="")
    with Progress() as progress:
        manifest = make_shards(
            videos,
            classes,
            arguments.out,
            settings,
            seed=arguments.seed,
            shard_clips=arguments.shard_clips,
            append=arguments.append,
            retry=arguments.retry,
            task=(arguments.task_index or 0, arguments.num_tasks or 1),
            workers=min(arguments.workers or len(os.sched_getaffinity(0)), len(videos)),
            timeout=arguments.timeout,
            staging=arguments.staging,
            on_progress=progress,
        )
    if manifest is None:
        print(f"the shards of task {arguments.task_index} are made; the task that ends last joins those of all in {out}.")
        return 0
    rejected = f"every video was rejected, {videos[0].path} among them: see {out}/rejected.csv"
    mended = "mend them or --root, and give this command with --retry"
    if manifest["clips"] == 0 and progress.first is None:
        return _fail(1, f"{out} was made before and {rejected}, {mended}.")
    if progress.first is None:
        state = f"nothing of {arguments.source} is new; {out} has" if arguments.append else f"{out} is complete already:"
        print(f"{state} {manifest['clips']:,} clips; rejected: {manifest['rejected']:,}.")
    else:
        print(summary(manifest, output, time.monotonic() - started, arguments.classes))
    if manifest["clips"] == 0:
        return _fail(1, f"{rejected}, {mended}.")
    if arguments.card:
        kept = "" if write_card(output, manifest) else "; README.md was there already and is kept"
        print(f"  described {out}/README.md, {out}/croissant.json{kept}")
    elif progress.first is not None and output.has(CROISSANT):
        print(f"  outdated  {out}/{CROISSANT} is of what was there before: the same command with --card renews it")
    return 0


def _require_out_elsewhere(source: str, out: str) -> None:
    if is_url(out) or is_url(source) or not os.path.isdir(source):
        return
    inside, folder = os.path.realpath(out), os.path.realpath(source)
    if os.path.commonpath([inside, folder]) == folder:
        raise OutputError(f"--out {out} lies inside the folder of videos {source}: choose a folder outside of it.")


def _known(arguments: argparse.Namespace, output: Output, videos: list[Video]) -> str:
    """How many of the listed videos an append leaves out, as a line: two videos may have one name by mistake."""
    manifest = output.read_json("manifest.json")
    if manifest is None or "made_with" not in manifest or output.has(MAKING):
        return ""  # make_shards says what is wrong, or goes on with what was chosen; the tables may be of that already
    output.create()
    clips, rejected = known_videos(output, manifest)
    known = clips if arguments.retry else clips | rejected
    there = [video.source for video in videos if identity(video.source, video.start, video.end) in known]
    example = f", such as {there[0]}" if there else ""
    return (
        f"{len(there):,} of {len(videos):,} videos of {arguments.source} are in {output.name} already "
        f"(by their listed path){example}\n"
    )


def _listing(arguments: argparse.Namespace, output: Output) -> Listing:
    classes = arguments.classes
    if classes is None and (arguments.append or arguments.retry) and (output.read_json("manifest.json") or {}).get("classes"):
        classes = f"{output.name}/manifest.json"
    return read_sources(
        arguments.source,
        arguments.root,
        classes,
        map=arguments.map,
        layout=arguments.layout,
        split=arguments.split,
        factors=[name.strip() for name in (arguments.factors or "").split(",") if name.strip()],
        multi_label=arguments.multi_label,
    )


class Progress:
    """A bar on a terminal; elsewhere a line every ten seconds."""

    EVERY = 10  # seconds

    def __init__(self):
        self.bar = self.first = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, done: int, total: int, rejected: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.begun, self.told = done, now, now
            if done:
                print(f"continuing after {done:,} of {total:,} videos", file=sys.stderr)
            if sys.stderr.isatty():
                self.bar = tqdm(total=total, initial=done, unit="video", smoothing=0.05, dynamic_ncols=True)
        if self.bar is not None:
            self.bar.set_postfix(rejected=rejected, refresh=False)
            self.bar.update(done - self.bar.n)
        elif now - self.told >= self.EVERY:
            rate = (done - self.first) / (now - self.begun)
            left = _clock((total - done) / rate) if rate else "?"
            line = f"{done:,}/{total:,} videos, {rate:.1f} videos/s, {left} left, {rejected:,} rejected"
            print(line, file=sys.stderr)
            self.told = now


def summary(manifest: dict, output: Output, seconds: float, classes: str | None = None) -> str:
    """What was made, where it is and what to do next, as lines. classes: where the names are from; shards: the other split."""
    stored = sum(shard["bytes"] for shard in manifest["shards"])
    sizes = list(manifest["sizes"].items())
    lines = [
        f"{manifest['clips']:,} clips of {manifest['clips'] + manifest['rejected']:,} videos: "
        f"{manifest['hours']:.2f} h, {manifest['frames']:,} frames, classes: {len(manifest['classes']):,}; "
        f"this run took {_clock(seconds)}",
        f"  bytes     {_bytes(manifest['source_bytes'])} of sources -> {_bytes(stored)} of shards"
        f" ({len(manifest['shards']):,})",
        f"  sizes     {', '.join(f'{size}: {count:,}' for size, count in sizes[:8])}"
        + (f" and {len(sizes) - 8} more" if len(sizes) > 8 else ""),
    ]
    if manifest["classes"]:
        names = [repr(name) if "," in name else name for name in manifest["classes"]]
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        factors = [f"{len(classes):,} of {factor}" for factor, classes in manifest.get("factors", {}).items()]
        more += f": {' x '.join(factors)}" if factors else ""
        lines.insert(1, f"  classes   {', '.join(names[:NAMED])}{more}")
    if manifest["appended"]:
        last = manifest["appended"][-1]
        lines.insert(1, f"  appended  {last['clips']:,} of them last; rejected then: {last['rejected']:,}")
    if manifest["rejected"]:
        lines.append(f"  rejected  {manifest['rejected']:,}, listed with reasons in {output.name}/rejected.csv")
        lines += [f"            {count:,}: {reason}" for reason, count in _reasons(output)]
    lines.append(f"  made      {output.name}/manifest.json")
    if manifest["clips"] == 0:  # what is next is to see why, which the caller says
        return "\n".join(lines)
    here, other = shlex.quote(output.name), (classes or "").removesuffix("/manifest.json")
    if other and (other != classes or os.path.isdir(other)):
        train, val, title = shlex.quote(other), here, "  next      "
    else:
        train, val, title = here, "DIR", "            "
        names = shlex.quote(f"{output.name}/manifest.json")
        lines.append(f"  next      the other split:  make_shards.py OTHER --out DIR --classes {names}")
    lines.append(
        f"{title}training:         python -m i2v.train --config configs/starter.yaml data.train={train} data.val={val}"
    )
    if manifest["rejected"]:
        lines.append("            rejected ones:    repair them, and give this command again with --retry")
    return "\n".join(lines)


def _reasons(output: Output) -> list[tuple[str, int]]:
    """Reasons without their numbers, and how often each occurs."""
    table = io.StringIO(output.read("rejected.csv").decode("utf-8", "surrogateescape"), newline="")
    reasons = [row["reason"] for row in csv.DictReader(table)]
    return Counter(re.sub(r"(after|frame) \d+", r"\1 N", reason) for reason in reasons).most_common(10)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _fail(code: int, message: object) -> int:
    print(f"make_shards: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler ends the run as Ctrl-C does
    sys.exit(main())
