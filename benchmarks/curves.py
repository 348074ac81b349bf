"""Does training in bf16 follow training in float32? The loss of steps on the demo's moving shapes, over seeds.

    python benchmarks/curves.py --json benchmarks/results/curves.json

The trunk is random and small; a seed draws trunk, adapters and clips. Where one method's bf16 losses are, averaged over the
last quarter, no further from float32's of the same seed than float32's of other seeds are, precision is not what decides.
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

from benchmarks.measure import shown_command
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
CPU = torch.device("cpu")


def clips_of(seed: int, per_class: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, T, H, W) clips of moving shapes and their classes."""
    rng = np.random.default_rng(seed)
    clips = [render_clip(rng, name, frames, (32, 32)) for name in CLASSES for _ in range(per_class)]
    pixels = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 64 - 2
    return pixels, torch.arange(len(CLASSES)).repeat_interleave(per_class)


def losses(method: str, seed: int, dtype: torch.dtype, steps: int, batch: int = 16) -> list[float]:
    """The loss of every step."""
    torch.manual_seed(seed)
    model = create_model(method, BACKBONE, 4, len(CLASSES), {"type": "linear", "dropout": 0}, **METHODS[method]).train()
    place(model, CPU, dtype)
    clips, labels = clips_of(seed, 16, 4)
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), 2e-3)
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
    """Means over the last quarter, one for each seed; their spread over seeds, and how far bf16 is from float32."""
    curves = {
        name: [losses(method, seed, dtype, steps) for seed in range(seeds)]
        for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16))
    }
    last = {name: [statistics.mean(curve[-steps // 4 :]) for curve in of] for name, of in curves.items()}
    return {
        "first": statistics.mean(curve[0] for curve in curves["float32"]),
        "last": last,
        "between_seeds": statistics.stdev(last["float32"]),
        "between_precisions": statistics.mean(abs(a - b) for a, b in zip(last["float32"], last["bf16"])),
        "curves": {name: [round(v, 4) for v in map(statistics.mean, zip(*of))] for name, of in curves.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the result and the command here")
    args = parser.parse_args()
    found = {}
    for method in args.methods:
        found[method] = r = compare(method, args.seeds, args.steps)
        means = {name: statistics.mean(values) for name, values in r["last"].items()}
        print(
            f"{method:12} {r['first']:.3f} -> float32 {means['float32']:.3f}, bf16 {means['bf16']:.3f}; "
            f"between seeds {r['between_seeds']:.3f}, between precisions {r['between_precisions']:.3f}",
            flush=True,
        )
        if args.json:
            made = {"command": shown_command("curves.py"), "torch": torch.__version__, "steps": args.steps, "seeds": args.seeds}
            args.json.write_text(json.dumps(made | {"methods": found}) + "\n")


if __name__ == "__main__":
    main()
