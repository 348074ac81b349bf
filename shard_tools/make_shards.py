"""Make shards from videos, once: `python shard_tools/make_shards.py SOURCE --out DIR`. `--help` explains."""

from __future__ import annotations

import argparse
import csv
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

if not __package__:  # run as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tqdm import tqdm

from shard_tools.encode import DEFAULT_CRF, LIBRARY, EncodeSettings
from shard_tools.sources import load_sources
from shard_tools.writer import OutputError, make_shards

EPILOG = """\
SOURCE is one of
  a folder            whose subfolders are the classes: SOURCE/abseiling/x.mp4
  a list              one video per row: path,label (commas, tabs or spaces; a header is recognised). Labels are class
                      names or integers. With only a path column the videos are unlabelled (a test split).

what comes out, in DIR
  shard-000000.tar    WebDataset: 000000000.mp4, 000000000.json, ... in shuffled order
  manifest.json       what is in it, how it was made, class names; written last: if it is there, DIR is complete
  clips.npy fragments.npy     the index: where every clip and every frame is
  rejected.csv        path,label,reason of the videos that could not be used; once they are fixed it can be given as
                      SOURCE, with the --root of before and --classes DIR/manifest.json

An interrupted run (Ctrl-C, kill, disk full) continues when the same command is given again. The same videos and options
give the same bytes, whatever --workers is (except with hevc, whose encoder does not repeat itself exactly).

examples
  python shard_tools/make_shards.py videos/train --out shards/train
  python shard_tools/make_shards.py val.csv --root /data/k400 --out shards/val --classes shards/train/manifest.json
  python shard_tools/make_shards.py train.csv --out shards/ssv2 --gop 4            # sparse sampling of short videos
  python shard_tools/make_shards.py train.csv --out shards/k400 --codec mjpeg      # 3 x the bytes, 1/5 of the decoding

exit codes: 0 complete; 1 could not write, or no usable video; 2 wrong arguments, list or folder; 130 interrupted
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make_shards",
        description="Re-encode videos once into shards that training reads: every clip upright, of one short side,\n"
        "one codec, short closed groups of pictures, checked frame by frame.",
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=110),
    )
    crf = ", ".join(f"{codec} {value}" for codec, value in DEFAULT_CRF.items())
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder of class folders, or CSV file")
    add("--out", metavar="DIR", required=True, help="folder to write; continued if it was left unfinished")
    add("--root", metavar="DIR", help="what the paths of a list are relative to (default: the list's folder)")
    add("--classes", metavar="FILE", help="class names in order, one per line, or another data set's manifest.json; "
        "default: the names that occur, sorted")  # fmt: skip
    add("--codec", default="vp9", choices=LIBRARY, help="vp9 (default) decodes on every GPU and CPU; mjpeg is fastest "
        "on a CPU; h264 and hevc need a GPU")  # fmt: skip
    add("--gop", type=int, metavar="N", help="frames from keyframe to keyframe: 8 (default), 4 for sparse, 16 for "
        "dense sampling; mjpeg: always 1")  # fmt: skip
    add("--short-side", type=int, default=256, metavar="PX", help="a multiple of 16; 256 for 224-pixel models "
        "(default), 384 for 336-pixel ones")  # fmt: skip
    add("--crf", type=int, metavar="N", help=f"quality, smaller is better (default: {crf})")
    add("--shard-size", type=float, default=1e9, metavar="BYTES", help="of one tar (default: 1e9)")
    add("--workers", type=int, metavar="N", help="processes (default: all cores)")
    add("--timeout", type=float, default=600, metavar="S", help="seconds until a video is given up (default: 600)")
    add("--seed", type=int, default=0, metavar="N", help="of the order in the shards (default: 0)")
    arguments = parser.parse_args(argv)
    for name in ("workers", "shard_size", "timeout"):
        value = getattr(arguments, name)
        if value is not None and not 1 <= value < 1e15:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {value:g}.")
    if not 0 <= arguments.seed < 2**64:
        parser.error(f"--seed must be a number from 0 to 2**64 - 1, not {arguments.seed}.")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    out = Path(arguments.out)
    kept = "what is done is kept, the same command continues."
    try:
        return _run(arguments, out)
    except (ValueError, OutputError) as error:  # ValueError: of the settings; a SourceError is one
        return _fail(2, error)
    except OSError as error:
        return _fail(1, f"cannot write to {out} ({error.strerror or error}); {kept}")
    except RuntimeError as error:
        return _fail(1, f"{error}; {kept}")
    except KeyboardInterrupt:
        return _fail(130, f"interrupted; {kept}")


def _run(arguments: argparse.Namespace, out: Path) -> int:
    settings = EncodeSettings(arguments.codec, arguments.gop, arguments.short_side, arguments.crf)
    videos, classes = load_sources(arguments.source, arguments.root, arguments.classes)
    was_complete, started = (out / "manifest.json").exists(), time.monotonic()
    with Progress(len(videos)) as progress:
        manifest = make_shards(
            videos,
            classes,
            out,
            settings,
            seed=arguments.seed,
            shard_size=arguments.shard_size,
            workers=min(arguments.workers or len(os.sched_getaffinity(0)), len(videos)),
            timeout=arguments.timeout,
            on_progress=progress,
        )
    if was_complete:
        print(f"{out} is complete already: {manifest['clips']:,} clips; rejected: {manifest['rejected']:,}.")
    else:
        print(summary(manifest, out, time.monotonic() - started))
    if manifest["clips"] == 0:
        return _fail(1, f"every video was rejected: see {out / 'rejected.csv'}.")
    return 0


class Progress:
    """A bar on a terminal; elsewhere a line every ten seconds."""

    EVERY = 10  # seconds

    def __init__(self, total: int):
        self.total, self.bar, self.first = total, None, None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, done: int, rejected: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.begun, self.told = done, now, now
            if done:
                print(f"continuing after {done:,} of {self.total:,} videos", file=sys.stderr)
            if sys.stderr.isatty():
                self.bar = tqdm(total=self.total, initial=done, unit="video", smoothing=0.05, dynamic_ncols=True)
        if self.bar is not None:
            self.bar.set_postfix(rejected=rejected, refresh=False)
            self.bar.update(done - self.bar.n)
        elif now - self.told >= self.EVERY:
            rate = (done - self.first) / (now - self.begun)
            left = _clock((self.total - done) / rate) if rate else "?"
            line = f"{done:,}/{self.total:,} videos, {rate:.1f} videos/s, {left} left, {rejected:,} rejected"
            print(line, file=sys.stderr)
            self.told = now


def summary(manifest: dict, out: Path, seconds: float) -> str:
    """What was made, where it is and what to do next, as lines."""
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
    if manifest["rejected"]:
        lines.append(f"  rejected  {manifest['rejected']:,}, listed with reasons in {out / 'rejected.csv'}")
        lines += [f"            {count:,}: {reason}" for reason, count in _reasons(out / "rejected.csv")]
    lines += [
        f"  made      {out / 'manifest.json'}",
        f"  next      the other split:  make_shards.py OTHER --out DIR --classes {out / 'manifest.json'}",
        "            training:         torchrun --nproc-per-node 8 -m i2v.train --config CONFIG that names this folder",
    ]
    return "\n".join(lines)


def _reasons(path: Path) -> list[tuple[str, int]]:
    """Reasons without their numbers, and how often each occurs."""
    with open(path, newline="", errors="surrogateescape") as file:
        reasons = [row["reason"] for row in csv.DictReader(file)]
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
