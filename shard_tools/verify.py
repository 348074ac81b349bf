"""Is a data set still what was written? `python shard_tools/verify.py DIR`. `--help` explains."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a file: import from this checkout
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    import i2v.console  # noqa: F401  # before the others, which take their time: see quiet_start

import argparse
import csv
import json
import multiprocessing
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from itertools import groupby, starmap
from pathlib import Path

from tqdm import tqdm

from i2v.console import begin_command
from i2v.pipelines.index import clip_key, shard_number
from i2v.pipelines.store import ShardError
from i2v.shard_tools.checks import (
    Problem,
    check_shard,
    decode_clip,
    draw_clips,
    list_shards,
    read_index,
    read_manifest,
    read_sources,
)

SHOWN = 8  # problems printed of each kind; all of them are in --json and --bad

EPILOG = """\
what is checked
  shards      every tar: that it is there, its size, its crc32
  clips       every mp4 and json: that it is in the tar where clips.npy says and under its key; the checksum of every
              frame; that the json says the same label, size and number of frames as the index
  index       the checksums of manifest.json, clips.npy and fragments.npy; that no record in them is impossible; that
              clips.csv lists the same clips
  decoding    --decode clips, drawn at random, from the first frame to the last: frames, sizes, keyframes

Damage in one place does not hide damage elsewhere. Nothing is changed. Training itself checks every frame that it
reads; verify is for after a copy, before a long run, and for a disk that is in doubt.

examples
  python shard_tools/verify.py shards/train
  python shard_tools/verify.py shards/train --decode all --workers 32
  python shard_tools/verify.py shards/train --bad bad.csv --json report.json
  python shard_tools/make_shards.py bad.csv --root videos/train --classes shards/train/manifest.json --out shards/again

exit codes: 0 all is well; 1 problems were found; 2 wrong arguments; 130 interrupted
"""


def verify(root: Path, to_decode: int | None = 100, workers: int = 1) -> dict:
    """Check the data set in `root`; to_decode: how many clips to decode, None: all. Raises ShardError if none can be checked.

    Returns {"data", "clips", "shards", "bytes", "seconds", "gb_per_s", "decoded", "problems": [Problem, ...]}; seconds
    and gb_per_s are of reading and checking, without decoding.
    """
    began = time.monotonic()
    manifest, problems = read_manifest(root / "manifest.json")
    clips, fragments, found = read_index(root, manifest)
    impossible = {problem.clip for problem in found}
    keys = [clip_key(shard_number(shard["name"]), i) for shard in manifest["shards"] for i in range(shard["clips"])]
    rows, differ = read_sources(root, keys, clips, manifest)
    problems += found + differ
    shards = list_shards(root, manifest, clips, fragments, keys, impossible)
    size = sum(shard.bytes for shard in shards)
    for found, _ in watched(parallel(check_shard, [(shard,) for shard in shards], workers), size, "B", "reading"):
        problems += found
    seconds = time.monotonic() - began
    tasks = draw_clips(shards, problems, to_decode, manifest)
    for found, _ in watched(parallel(decode_clip, tasks, workers, 8), len(tasks), "clip", "decoding"):
        problems += found
    named = [p if p.clip is None else replace(p, key=keys[p.clip], source=rows.get(keys[p.clip], {})) for p in problems]
    speed = {"bytes": size, "seconds": round(seconds, 3), "gb_per_s": round(size / 1e9 / seconds, 3)}
    counts = {"data": str(root), "clips": manifest["clips"], "shards": len(shards), "decoded": len(tasks)}
    return counts | speed | {"problems": named}


def parallel(function, tasks: list[tuple], workers: int, at_once: int = 1) -> Iterator:
    """function(*task) of every task, in order; workers: processes, 1: this one; at_once: tasks that one gets at a time."""
    if workers == 1 or len(tasks) <= at_once:
        yield from starmap(function, tasks)
        return
    spawn, ignore = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent ends it
    with ProcessPoolExecutor(min(workers, len(tasks)), spawn, signal.signal, ignore) as pool:
        yield from pool.map(function, *zip(*tasks), chunksize=at_once)


def watched(results: Iterable, total: int, unit: str, title: str) -> Iterator:
    """Pass results on, the last part of which is how much they add to what is done of `total`.

    A bar on a terminal; elsewhere a line every ten seconds.
    """
    done, began = 0, time.monotonic()
    told = began
    hidden = not sys.stderr.isatty()
    with tqdm(total=total, unit=unit, unit_scale=True, desc=title, dynamic_ncols=True, disable=hidden) as bar:
        for result in results:
            yield result
            done += result[-1]
            bar.update(result[-1])
            if hidden and (now := time.monotonic()) - told >= 10:
                scale, name = (1e9, "GB") if unit == "B" else (1, f"{unit}s")
                rate = f"{done / scale / (now - began):.3g} {name}/s"
                print(f"{title}: {done / scale:.4g}/{total / scale:.4g} {name}, {rate}", file=sys.stderr, flush=True)
                told = now


def show(report: dict) -> str:
    """The report as lines; problems grouped by what to do about them."""
    lines = []
    problems = sorted(report["problems"], key=lambda p: (p.shard, p.remedy, p.clip is not None, p.clip))
    for (shard, remedy), group in groupby(problems, key=lambda p: (p.shard, p.remedy)):
        group = list(group)
        width = max(len(problem.source.get("path", "")) for problem in group[:SHOWN])
        lines.append(f"{shard or report['data']}: {len(group)} problem{'s' if len(group) > 1 else ''}; {remedy}")
        lines += [f"  {p.key:<13}  {p.source.get('path', ''):<{width}}  {p.what}" for p in group[:SHOWN]]
        lines += [f"  and {len(group) - SHOWN:,} more (--json FILE lists all)"] * (len(group) > SHOWN)
    lines.append(
        f"{report['data']}: {report['clips']:,} clips in {report['shards']:,} shards, {report['bytes'] / 1e9:.3f} GB read "
        f"({report['gb_per_s']:.2f} GB/s), {report['decoded']:,} clips decoded: "
        + (f"{len(problems):,} problems." if problems else "all is well.")
    )
    return "\n".join(lines)


def write_bad(path: Path, problems: list[Problem]) -> str:
    """The sources of the clips that have problems, as a list that make_shards reads. Returns what was written, in words."""
    bad = {problem.clip: problem for problem in problems[::-1] if problem.clip is not None}
    listed = [bad[clip] for clip in sorted(bad) if bad[clip].source.get("path")]
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "start", "end", "label", "reason"])
        table.writerows([*(p.source.get(name, "") for name in ("path", "start", "end", "class")), p.what] for p in listed)
    lost = f"; the source of {len(bad) - len(listed):,} more is not known" if len(listed) < len(bad) else ""
    members = [p.source["path"] for p in listed if ".tar/" in p.source["path"]]
    if members:  # make_shards names them so, and reads them from their tars only
        lost += (
            f"; {len(members):,} of them are members of tars, such as {members[0]}: make shards of the tars, not of this list"
        )
    return f"{path}: {len(listed):,} source videos{lost}"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="verify",
        description="Read a data set again, all of it, and say what is not as it was written.",
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=110),
    )
    add = parser.add_argument
    add("data", metavar="DIR", help="folder that make_shards wrote, on this machine")
    add("--decode", default="100", metavar="N", help="clips to decode as well, drawn at random; all, or 0 (default: 100)")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes (default: all cores)")
    add(
        "--bad",
        type=Path,
        metavar="FILE",
        help="write the sources of bad clips here: a CSV of path,start,end,label,reason that make_shards takes as SOURCE",
    )
    add("--json", type=Path, metavar="FILE", help="write the whole report here")
    arguments = parser.parse_args(argv)
    if arguments.decode != "all" and not arguments.decode.isdecimal():
        parser.error(f"--decode must be a number or all, not {arguments.decode}.")
    if arguments.workers < 1:
        parser.error(f"--workers must be at least 1, not {arguments.workers}.")
    if "://" in arguments.data:
        parser.error(f"{arguments.data} is a URL: copy the data set to this machine, or mount it, and give that folder.")
    arguments.data = Path(arguments.data)
    if not (arguments.data / "manifest.json").exists():
        parser.error(f"{arguments.data} holds no manifest.json: give a folder that make_shards has finished.")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    begin_command()
    try:
        report = verify(arguments.data, None if arguments.decode == "all" else int(arguments.decode), arguments.workers)
    except ShardError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("verify: a process died, of a crash or of too little memory: try again with --workers 1.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("verify: interrupted; nothing was changed.", file=sys.stderr)
        return 130
    print(show(report))
    place = arguments.bad  # an error of a full disk names no file
    try:
        if place:
            print(write_bad(place, report["problems"]))
        place = arguments.json
        if place:
            plain = report | {"problems": [asdict(problem) for problem in report["problems"]]}
            place.write_text(json.dumps(plain, indent=1) + "\n")
    except OSError as error:
        print(f"verify: {place} cannot be written ({error.strerror}).", file=sys.stderr)
        return 2
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
