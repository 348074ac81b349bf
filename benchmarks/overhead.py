"""What the loader costs besides decoding, and what a second core gives: python benchmarks/overhead.py --json result.json

First a constant stands in for every decoded clip, so that what is left is the library's own: the plan, the bytes that are
read, DALI's graph, the batch. Its part in the thread that asks for batches is serial: no number of cores makes a process faster
than that. Then real decoding, on one core and on two.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import numpy as np
import torch

from benchmarks.loader import AUGMENTATION, BATCH, SAMPLINGS, SIZE
from benchmarks.machine import write_result
from benchmarks.measure import in_fresh_process, shown_command
from benchmarks.videos import make_videos, shard_videos
from i2v.pipelines import build_loader
from i2v.pipelines.reader import Reader
from i2v.shard_tools.encode import EncodeSettings

STORED = (EncodeSettings("mjpeg"), EncodeSettings("h264", 8), EncodeSettings("vp9", 8))
SAMPLING = "8x16"


def measure(shards: Path, dtype: str, cores: int, constant: bool, batches: int) -> dict:
    """Clips per second, and milliseconds of processor time per clip: of all threads, and of the one that asks for batches."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(1)
    if constant:
        views = np.zeros((1, SAMPLINGS[SAMPLING]["num_frames"], SIZE, SIZE, 3), np.uint8)
        Reader._decoded = lambda self, clip: replace(clip, data=views)
    options = SAMPLINGS[SAMPLING] | AUGMENTATION | {"dtype": dtype}
    running = iter(build_loader(shards, "train", options, BATCH, "cpu", threads=cores))
    for _ in range(12):  # until what it does ahead is ahead
        next(running)
    rounds = [_round(running, batches) for _ in range(5)]
    running.close()
    return {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}


def _round(running, batches: int) -> dict:
    begin, worked, asked = time.perf_counter(), time.process_time(), time.thread_time()
    clips = sum(len(next(running).ids) for _ in range(batches))
    elapsed, worked, asked = time.perf_counter() - begin, time.process_time() - worked, time.thread_time() - asked
    return {"clips_per_s": clips / elapsed, "ms": 1e3 * worked / clips, "asking_ms": 1e3 * asked / clips}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--videos", type=Path, metavar="FOLDER", help="real videos to make the benchmark's from (default: moving shapes)")
    add("--count", type=int, default=16, help="videos of the benchmark (default: %(default)s)")
    add("--cache", type=Path, default=Path("runs/benchmarks"), help="folder for videos and shards (default: %(default)s)")
    add("--quick", action="store_true", help="little of everything; the figures mean nothing")
    add("--json", type=Path, help="write the result, the machine and the command here")
    args = parser.parse_args()
    count, length, batches = (2, 2, 1) if args.quick else (args.count, 10, 8)
    try:
        videos, facts = make_videos(args.cache, count, length, args.videos)
    except (ValueError, OSError) as error:
        sys.exit(f"overhead: {error}")
    data = {f"{s.codec} gop {s.gop}" if s.codec != "mjpeg" else s.codec: shard_videos(videos, s) for s in STORED}
    mjpeg = data["mjpeg"]
    result = {
        "size": SIZE,
        "constant": {dtype: in_fresh_process(measure, mjpeg, dtype, 1, True, 4 * batches) for dtype in ("float32", "uint8")},
        "decoding": {
            name: {str(cores): in_fresh_process(measure, shards, "float32", cores, False, batches) for cores in (1, 2)}
            for name, shards in data.items()
        },
    }
    for name, found in result["constant"].items():
        print(
            f"constant, {name:8} {found['ms']:.2f} ms per clip, {found['asking_ms']:.2f} ms of it where batches are asked for"
        )
    for name, of in result["decoding"].items():
        one, two = of["1"]["clips_per_s"], of["2"]["clips_per_s"]
        print(f"{name:18} {one:.1f} clips/s on one core, {two:.1f} on two, {two / one:.2f} times")
    if args.json:
        write_result(args.json, shown_command("overhead.py"), {"videos": facts} | result)


if __name__ == "__main__":
    main()
