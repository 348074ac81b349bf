"""Runs killed at random moments come to the bits of an uninterrupted one: python benchmarks/kills.py --kills 50

A small run with everything that has a state (average, accumulation, dropout, drop path, mixing, batch norms' statistics), on
one process and on two, is killed again and again (SIGKILL to all its processes, to the launcher alone, to one worker alone) at
moments drawn over its whole length, so that it starts, trains, saves and evaluates in turn, and is started again by the same
command until it is done. Then weights, optimizer, average, best checkpoint and log are compared with those of a run that nobody
killed.
Exit codes: 0 all is the same; 1 something differs, by name.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository

import torch
import yaml
from safetensors.torch import load_file, save_file

from benchmarks.machine import write_result
from benchmarks.measure import shown_command
from benchmarks.moving_shapes import write_videos
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.sources import load_sources
from i2v.vit import VisionTransformer, ViTSpec

ROOT = Path(__file__).resolve().parent.parent
GEOMETRY = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "heads": 4, "embed_dim": 32}
KINDS = ("all", "launcher", "worker")
TIMINGS = ("clips_per_s", "data_wait")
RECIPE = {
    "epochs": 8,
    "batch_size": 8,
    "micro_batch": 2,
    "lr": 3e-3,
    "warmup_epochs": 1,
    "no_decay": ["1-d"],
    "mixup": 0.8,
    "cutmix": 1.0,
    "clip_grad": 1.0,
    "ema": 0.9,
    "head_epochs": 1,
    "keep": 4,
    "compile": False,
    "log_every": 2,
    "save_every": 1,
    "eval_every": 1,
}


def prepare(folder: Path) -> Path:
    """Shards, a backbone and the configuration of the run. Returns its path."""
    for split, count in (("train", 3), ("val", 2)):
        write_videos(folder, count, frames=20, split=split)
        videos, classes = load_sources(folder / split)
        make_shards(videos, classes, folder / f"shards-{split}", EncodeSettings(short_side=48), shard_clips=9)
    torch.manual_seed(0)
    save_file(VisionTransformer(ViTSpec(**GEOMETRY)).state_dict(), folder / "clip.safetensors")
    values = {
        "model": {
            "method": "tada",
            "backbone": GEOMETRY,
            "weights": str(folder / "clip.safetensors"),
            "num_frames": 4,
            "options": {"route_head_dim": 16, "tubelet_stride": 1, "drop_path": 0.2},
        },
        "data": {"train": str(folder / "shards-train"), "val": str(folder / "shards-val"), "device": "cpu", "threads": 1},
        "clips": {"flip": 0},
        "train": RECIPE,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(config: Path, out: Path, ranks: int) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "i2v.train", "--config", str(config), f"out={out}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **silent)


def kill(process: subprocess.Popen, kind: str, draw: random.Random) -> None:
    """And wait until all of it is gone."""
    workers = children(process.pid)
    with suppress(ProcessLookupError):
        if kind == "all":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(draw.choice(workers) if kind == "worker" and workers else process.pid, signal.SIGKILL)
    process.wait()
    while any(alive(pid) for pid in workers):
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def outcome(out: Path) -> dict:
    """All that a run left which does not depend on the clock: name -> tensor or record."""
    files = sorted(path.name for path in out.glob("*.safetensors"))
    tensors = {f"{name} {key}": tensor for name in files for key, tensor in load_file(out / name).items()}
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return tensors | {f"log {i}": {k: v for k, v in r.items() if k not in TIMINGS} for i, r in enumerate(records)}


def differences(one: dict, other: dict) -> list[str]:
    missing = sorted(one.keys() ^ other.keys())
    equal = {
        name: torch.equal(one[name], other[name]) if isinstance(one[name], torch.Tensor) else one[name] == other[name]
        for name in one.keys() & other.keys()
    }
    return missing + sorted(name for name, same in equal.items() if not same)


def measure(folder: Path, kills: int, seed: int) -> tuple[dict, list[str]]:
    config, draw, ranks_found, wrong = prepare(folder), random.Random(seed), {}, []
    for ranks in (1, 2):
        begin = time.monotonic()
        if start(config, folder / f"whole-{ranks}", ranks).wait() != 0:
            raise RuntimeError("The run that nobody kills has failed.")
        length, whole = time.monotonic() - begin, outcome(folder / f"whole-{ranks}")
        done, equal, counts = 0, 0, Counter()
        while sum(counts.values()) < kills // 2:
            out = folder / f"killed-{ranks}-{done}"
            while True:
                process, kind = start(config, out, ranks), draw.choice(KINDS if ranks > 1 else KINDS[:1])
                try:
                    code = process.wait(draw.uniform(0, length))
                except subprocess.TimeoutExpired:
                    kill(process, kind, draw)
                    counts[kind] += 1
                    continue
                if code != 0:
                    wrong.append(f"{out.name} ended with {code}")
                break
            different = differences(whole, outcome(out))
            wrong += [f"{out.name}: {name}" for name in different]
            done, equal = done + 1, equal + (not different)
            print(f"{ranks} processes, {done} runs, {sum(counts.values())} kills, {equal} runs equal", flush=True)
        ranks_found[ranks] = {"runs": done, "kills": {kind: counts[kind] for kind in KINDS}, "equal": equal}
    return ranks_found, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="at least, half of them on two processes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="write the result and the machine here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ranks, wrong = measure(Path(folder), args.kills, args.seed)
    what = "Compared: weights, optimizer, average, batch norms' statistics, best and kept checkpoints, log without timings."
    if args.json and not wrong:
        write_result(args.json, shown_command("kills.py"), {"ranks": ranks, "kinds": KINDS, "what": what})
    if wrong:
        sys.exit("\n".join(["kills: these differ:", *wrong[:50]]))


if __name__ == "__main__":
    main()
