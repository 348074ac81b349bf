"""Does training in bf16 follow training in float32? The loss of steps on the demo's moving shapes, over seeds.

    python benchmarks/curves.py --json benchmarks/results/curves.json

The trunk is random and small; a seed draws trunk, adapters and clips. Rounding alone moves a run: so the control is float32
again, from weights that were rounded to bf16's digits once. Where bf16's loss, averaged over the last quarter, is no further
from float32's than that one's, and not always on the same side, precision is not what decides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measure import mean_of, shown_command
from benchmarks.moving_shapes import CLASSES, render_clip
from i2v.model import create_model
from i2v.placement import autocast_for, place

BACKBONE = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 4, "heads": 2, "embed_dim": 32}
METHODS = {
    "st_adapter": {"adapter_width": 32},
    "aim": {},
    "zeroi2v": {"shift_div": 4},
    "dist": {"integration_dim": 64, "temporal_dim": 32},
    "tada": {"reduction": 1, "route_head_dim": 16},
}
RATES = dict.fromkeys(METHODS, 2e-3) | {"dist": 5e-4}  # learning rates; at 2e-3 DiST stays at chance
WAYS = {"float32": (torch.float32, False), "rounded": (torch.float32, True), "bf16": (torch.bfloat16, False)}
CPU = torch.device("cpu")


def clips_of(seed: int, per_class: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, T, H, W) clips of moving shapes and their classes."""
    rng = np.random.default_rng(seed)
    clips = [render_clip(rng, name, frames, (32, 32)) for name in CLASSES for _ in range(per_class)]
    pixels = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 64 - 2
    return pixels, torch.arange(len(CLASSES)).repeat_interleave(per_class)


def losses(method: str, seed: int, dtype: torch.dtype, rounded: bool, steps: int, batch: int = 16) -> list[float]:
    """The loss of every step; rounded: from weights that have bf16's digits."""
    torch.manual_seed(seed)
    model = create_model(method, BACKBONE, 4, len(CLASSES), {"type": "linear", "dropout": 0}, **METHODS[method]).train()
    if rounded:
        model.bfloat16().float()
    place(model, CPU, dtype)
    clips, labels = clips_of(seed, 16, 4)
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), RATES[method])
    found, draw = [], torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(clips), (batch,), generator=draw)
        with autocast_for(CPU, dtype)():
            logits = model(clips[chosen])
        loss = F.cross_entropy(logits.float(), labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append(loss.item())
    return found


def compare(method: str, seeds: int, steps: int) -> dict:
    """Of float32, and of both others less float32 of the same seed: the mean over the last quarter, one for each seed."""
    curves = {
        name: [losses(method, seed, dtype, rounded, steps) for seed in range(seeds)] for name, (dtype, rounded) in WAYS.items()
    }
    last = {name: [statistics.mean(curve[-steps // 4 :]) for curve in of] for name, of in curves.items()}
    return {
        "first": statistics.mean(curve[0] for curve in curves["float32"]),
        "last": last["float32"],
        "moved": {name: [a - b for a, b in zip(last[name], last["float32"])] for name in ("rounded", "bf16")},
        "curves": {name: [round(v, 4) for v in map(statistics.mean, zip(*of))] for name, of in curves.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--json", type=Path, help="write the result and the command here")
    args = parser.parse_args()
    found = {}
    for method in args.methods:
        found[method] = r = compare(method, args.seeds, args.steps)
        moved = ", ".join(f"{name} {mean_of(values, '{:+.3f}')}" for name, values in r["moved"].items())
        print(f"{method:12} {r['first']:.3f} -> {mean_of(r['last'])}; moved by {moved}", flush=True)
        if args.json:
            made = {"command": shown_command("curves.py"), "torch": torch.__version__, "steps": args.steps, "seeds": args.seeds}
            args.json.write_text(json.dumps(made | {"methods": found}) + "\n")


if __name__ == "__main__":
    main()
