"""What the loader costs besides decoding, and what a second core gives: python benchmarks/overhead.py --json result.json

First a constant stands in for every decoded clip, so that what is left is the library's own: the plan, the bytes that are
read, DALI's graph, the batch. Its part in the thread that asks for batches is serial: no number of cores makes a process faster
than that. Then real decoding: a process on one core, on two, and two processes on a core each at the same time, which is all
that the machine's two cores can give.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
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


def measure(shards: Path, dtype: str, cores: slice, constant: bool, batches: int, together=None) -> dict:
    """Clips per second, and milliseconds of processor time per clip: of all threads, and of the one that asks for batches; and
    how often a thread waited for another.

    cores: which of the machine's. together: a barrier, for processes that are to measure at the same time.
    """
    mine = sorted(os.sched_getaffinity(0))[cores]
    os.sched_setaffinity(0, mine)
    torch.set_num_threads(1)
    if constant:
        views = np.zeros((1, SAMPLINGS[SAMPLING]["num_frames"], SIZE, SIZE, 3), np.uint8)
        Reader.decoded = lambda self, clip: replace(clip, data=views)
    options = SAMPLINGS[SAMPLING] | AUGMENTATION | {"dtype": dtype}
    running = iter(build_loader(shards, "train", options, BATCH, "cpu", threads=len(mine)))
    for _ in range(12):  # until what it does ahead is ahead
        next(running)
    if together is not None:
        together.wait()
    rounds = [_round(running, batches) for _ in range(5)]
    running.close()
    return {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}


def measure_cores(shards: Path, batches: int, cycles: int) -> dict:
    """One process on one core and on two; and two at once, each on a core of its own, their clips per second added: medians
    over cycles, so that what disturbs one of them counts little. "times": how many times one core's of their cycle they are."""
    cycled = [_cores_in_turn(shards, batches) for _ in range(cycles)]
    times = {
        cores: statistics.median(found[cores]["clips_per_s"] / found["1"]["clips_per_s"] for found in cycled)
        for cores in ("2", "apart")
    }
    medians = {
        cores: {key: statistics.median(found[cores][key] for found in cycled) for key in cycled[0][cores]}
        for cores in cycled[0]
    }
    return medians | {"times": times}


def _cores_in_turn(shards: Path, batches: int) -> dict:
    found = {str(cores): in_fresh_process(measure, shards, "float32", slice(cores), False, batches) for cores in (1, 2)}
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(2, context) as processes:
        together, cores = manager.Barrier(2), (slice(0, 1), slice(1, 2))
        both = [processes.submit(measure, shards, "float32", one, False, batches, together) for one in cores]
        return found | {"apart": {"clips_per_s": sum(each.result()["clips_per_s"] for each in both)}}


def _round(running, batches: int) -> dict:
    begin, worked, asked, waited = time.perf_counter(), time.process_time(), time.thread_time(), _waits()
    clips = sum(len(next(running).ids) for _ in range(batches))
    elapsed, worked, asked = time.perf_counter() - begin, time.process_time() - worked, time.thread_time() - asked
    costs = {"ms": 1e3 * worked / clips, "asking_ms": 1e3 * asked / clips, "waits": (_waits() - waited) / clips}
    return {"clips_per_s": clips / elapsed} | costs


def _waits() -> int:
    """How often a thread of this process gave up its core to wait, for the interpreter's lock among others."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--videos", type=Path, metavar="FOLDER", help="real videos to make the benchmark's from (default: moving shapes)")
    add("--count", type=int, default=16, help="videos of the benchmark (default: %(default)s)")
    add("--cache", type=Path, default=Path("runs/benchmarks"), help="folder for videos and shards (default: %(default)s)")
    add("--quick", action="store_true", help="little of everything; the figures mean nothing")
    add("--json", type=Path, help="write the result, the machine and the command here")
    args = parser.parse_args()
    count, length, batches, cycles = (2, 2, 1, 1) if args.quick else (args.count, 10, 8, 3)
    try:
        videos, facts = make_videos(args.cache, count, length, args.videos)
    except (ValueError, OSError) as error:
        sys.exit(f"overhead: {error}")
    data = {f"{s.codec} gop {s.gop}" if s.codec != "mjpeg" else s.codec: shard_videos(videos, s) for s in STORED}
    mjpeg = data["mjpeg"]
    result = {
        "size": SIZE,
        "constant": {
            dtype: in_fresh_process(measure, mjpeg, dtype, slice(1), True, 4 * batches) for dtype in ("float32", "uint8")
        },
        "decoding": {name: measure_cores(shards, batches, cycles) for name, shards in data.items()},
    }
    for name, found in result["constant"].items():
        print(
            f"constant, {name:8} {found['ms']:.2f} ms per clip, {found['asking_ms']:.2f} ms of it where batches are asked for"
        )
    for name, of in result["decoding"].items():
        one, two, apart = (of[cores]["clips_per_s"] for cores in ("1", "2", "apart"))
        times = f"{of['times']['2']:.2f} times, {of['2']['waits']:.0f} waits a clip"
        times += f"; two processes at once {apart:.1f}, {of['times']['apart']:.2f} times"
        print(f"{name:18} {one:.1f} clips/s on one core, {two:.1f} on two, {times}")
    if args.json:
        write_result(args.json, shown_command("overhead.py"), {"videos": facts} | result)


if __name__ == "__main__":
    main()
