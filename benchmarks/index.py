"""A data set of a million clips, before the first of them is decoded: start, plans per second, the border of an epoch.

    python benchmarks/index.py                                    # about a minute
    python benchmarks/index.py --json result.json
    python benchmarks/index.py --quick                            # only to see that it runs

The index has its full size; of 300 million frames, and of a thousand shards, only what the start of a run looks at is
written, with the bytes of one real clip. The rest are holes in sparse files, so that about 100 MB of disk are used. What
is timed is read from the page cache: the files have just been written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import numpy as np

from benchmarks.measure import in_fresh_process, peak_resident_mb, resident_mb, shown_command, spread, use_one_core
from benchmarks.moving_shapes import CLASSES, render_clip, write_video
from i2v.pipelines.index import BLOCK, CLIP, FRAGMENT, clip_key, clip_size
from i2v.pipelines.shards import ShardSet
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.sources import Video

FRAMES = 300  # of every clip
OPTIONS = {
    "8x16": {"num_frames": 8, "sampling": "stride", "stride": 16, "crop": "random_resized", "flip": 0.5},
    "8x16, RandAugment": {
        "num_frames": 8,
        "sampling": "stride",
        "stride": 16,
        "crop": "random_resized",
        "flip": 0.5,
        "randaugment": "rand-m7-n4-mstd0.5-inc1",
    },
}


def make_index(folder: Path, clips: int, shards: int) -> Path:
    """A data set whose every clip is the same real one; only the first, middle and last clip of a shard can be read."""
    write_video(folder / "clip.mp4", render_clip(0, CLASSES[0], FRAMES, (32, 32)))
    video = Video(str(folder / "clip.mp4"), 0, "only", "clip.mp4")
    make_shards([video], ["only"], folder / "one", EncodeSettings(short_side=32))
    one = ShardSet(folder / "one")
    clip, fragments = one.clips[0], np.array(one.fragments)
    first_bytes, _ = one.read(0, np.array([0]))  # its header and first frame
    member = one.manifest["shards"][0]["bytes"] - 1024  # the clip in the tar, without the end of the tar

    out = folder / "many"
    out.mkdir()
    per_shard = clips // shards
    records = np.empty(clips, CLIP)
    records[:] = clip
    records["shard"], place = np.divmod(np.arange(clips), per_shard)
    records["offset"] = place * member + int(clip["offset"])
    records["first_fragment"] = np.arange(clips, dtype=np.uint64) * FRAMES
    np.save(out / "clips.npy", records)

    index = np.lib.format.open_memmap(out / "fragments.npy", "w+", FRAGMENT, (clips * FRAMES,))
    readable = sorted({0, per_shard // 2, per_shard - 1})
    names = [f"shard-{shard:06d}.tar" for shard in range(shards)]
    for shard, name in enumerate(names):
        with open(out / name, "wb") as file:
            file.truncate(per_shard * member + 1024)
            for place in readable:
                header = tarfile.TarInfo(f"{clip_key(shard, place)}.mp4")
                header.size = clip_size(clip, fragments)
                data = header.tobuf(tarfile.USTAR_FORMAT) + first_bytes.tobytes()
                os.pwrite(file.fileno(), data, place * member + int(clip["offset"]) - BLOCK)
                first = (shard * per_shard + place) * FRAMES
                index[first : first + FRAMES] = fragments
    index.flush()

    facts = {"clips": clips, "frames": clips * FRAMES, "clips_per_class": [clips]}
    facts["index"] = {"clips": "clips.npy", "fragments": "fragments.npy"}
    facts["index_crc32"] = {"clips": zlib.crc32((out / "clips.npy").read_bytes())}
    facts["shards"] = [{"name": name, "bytes": per_shard * member + 1024, "clips": per_shard, "crc32": 0} for name in names]
    manifest = {name: value for name, value in one.manifest.items() if name != "crc32"} | facts
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def measure_shard_set(data: Path) -> dict:
    """Seconds and memory until the index is open, in a process without torch."""
    before, begin = resident_mb(), time.perf_counter()
    ShardSet(data)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "before_mb": before, "after_mb": resident_mb(), "peak_mb": peak_resident_mb()}


def measure_loader(data: Path) -> dict:
    """Seconds and memory until the loader is built and knows its first clip; importing torch is not in the seconds."""
    from i2v.pipelines import build_loader

    before, begin = resident_mb(), time.perf_counter()
    loader = build_loader(data, "train", OPTIONS["8x16"], 64, "cpu")
    built = time.perf_counter()
    loader.plan[0]
    return {
        "seconds": built - begin,
        "first_plan_seconds": time.perf_counter() - built,
        "before_mb": before,
        "after_mb": resident_mb(),
        "peak_mb": peak_resident_mb(),
    }


def measure_plans(data: Path, count: int, rounds: int) -> dict:
    """Plans per second of one core, and how long the first one of an epoch takes, which draws the epoch's order."""
    from i2v.pipelines import build_loader

    use_one_core()
    plans, borders = {}, []
    for name, options in OPTIONS.items():
        plan = build_loader(data, "train", options, 64, "cpu").plan
        plan[0]
        plans[name] = spread([_rate(plan, number * count, count) for number in range(rounds)])
    for epoch in range(1, rounds + 1):
        begin = time.perf_counter()
        plan[epoch * len(plan)]
        borders.append(time.perf_counter() - begin)
    return {"plans_per_s": plans, "epoch_border_seconds": spread(borders)}


def _rate(plan, first: int, count: int) -> float:
    begin = time.perf_counter()
    for position in range(first, first + count):
        plan[position]
    return count / (time.perf_counter() - begin)


def table(result: dict) -> str:
    """The result as text."""
    s, b = result["shard_set"], result["loader"]
    lines = [
        f"{result['clips']:,} clips, {result['frames']:,} frames, {result['shards']:,} shards",
        f"index open          {s['seconds']:6.2f} s   {_memory(s)}",
        f"loader built        {b['seconds']:6.2f} s   {_memory(b)}",
        f"first plan          {b['first_plan_seconds']:6.2f} s   with the order of its epoch",
        f"border of an epoch  {result['epoch_border_seconds']['median']:6.2f} s",
    ]
    for name, r in result["plans_per_s"].items():
        lines.append(f"plans, {name:20} {r['median']:8,.0f} /s of one core ({r['min']:,.0f} to {r['max']:,.0f})")
    return "\n".join(lines)


def _memory(of: dict) -> str:
    return f"{of['after_mb']:6.0f} MB, {of['before_mb']:.0f} MB of it the libraries; at most {of['peak_mb']:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--clips", type=int, default=1_000_000, help="default: %(default)s")
    add("--shards", type=int, default=1000, help="default: %(default)s")
    add("--rounds", type=int, default=5, help="default: %(default)s")
    add("--quick", action="store_true", help="little of everything; the figures mean nothing")
    add("--json", type=Path, help="write the result, the machine and the command here")
    args = parser.parse_args()
    clips, shards, plans, rounds = (1000, 10, 200, 2) if args.quick else (args.clips, args.shards, 5000, args.rounds)
    if clips % shards:
        parser.error("--clips must be a multiple of --shards.")
    with tempfile.TemporaryDirectory() as folder:
        data = make_index(Path(folder), clips, shards)
        result = {"clips": clips, "frames": clips * FRAMES, "shards": shards, "rounds": rounds}
        result |= {"shard_set": in_fresh_process(measure_shard_set, data), "loader": in_fresh_process(measure_loader, data)}
        result |= in_fresh_process(measure_plans, data, plans, rounds)
    print(table(result))
    if args.json:
        from benchmarks.machine import write_result  # brings torch: the processes above are measured without

        write_result(args.json, shown_command("index.py"), result)


if __name__ == "__main__":
    main()
