"""What recomputed blocks cost and save: the peak memory and the time of a training step, every method at its real size.

    python benchmarks/recompute.py --json benchmarks/results/recompute.json

A step is a forward and a backward pass of float32 on this CPU, in a process of its own for each figure, on noise. The memory is
what the process has had at most during the step, without what it held before (weights, clips, libraries).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository

import torch
import torch.nn.functional as F

from benchmarks.gpu import CONFIGS
from benchmarks.machine import write_result
from benchmarks.measure import in_fresh_process, peak_resident_mb, resident_mb, shown_command
from benchmarks.throughput import fresh_model, synthetic_batch
from i2v.config import load_config
from i2v.placement import recompute_blocks

ROOT = Path(__file__).resolve().parent.parent
KEEPS = ("none", "half", "all")  # train.recompute


def step(config: str, which: str, clips: int) -> dict:
    """Megabytes and seconds of one step, its loss, and a digest of its gradients."""
    torch.manual_seed(0)
    model = fresh_model(load_config(ROOT / "configs" / config).model, 400).train()
    recompute_blocks(model, which)
    batch = synthetic_batch(model, clips, torch.device("cpu"))
    torch.manual_seed(1)
    before, begin = resident_mb(), time.perf_counter()
    loss = F.cross_entropy(model(batch.clips), batch.labels)
    loss.backward()
    seconds, digest = time.perf_counter() - begin, hashlib.sha256()
    for parameter in model.trainable_parameters().values():
        digest.update(parameter.grad.contiguous().numpy())
    return {"mb": peak_resident_mb() - before, "seconds": seconds, "loss": loss.item(), "gradients": digest.hexdigest()}


def measure(clips: int) -> dict:
    methods = {}
    for name in CONFIGS:
        method, config = name.split("/")[0], f"{name}.yaml"
        found = {which: in_fresh_process(step, config, which, clips) for which in KEEPS}
        same = len({(each["loss"], each["gradients"]) for each in found.values()}) == 1
        steps = {which: {key: each[key] for key in ("mb", "seconds")} for which, each in found.items()}
        methods[method] = {"config": config, "same_gradients": same, "steps": steps}
        print(method, methods[method], flush=True)
    return {"clips": clips, "methods": methods}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2, help="in the step (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the result and the machine here")
    args = parser.parse_args()
    result = measure(args.clips)
    if args.json:
        write_result(args.json, shown_command("recompute.py"), result)


if __name__ == "__main__":
    main()
