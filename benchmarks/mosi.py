"""Does ST-Adapter start better where MoSI has trained it first, on stills of the same videos and without their labels?

    python benchmarks/mosi.py --out runs/demo --json benchmarks/results/mosi.json

The demo's moving shapes and backbone (benchmarks/demo.py), made where they are not there. Both ways have the same labelled
epochs at the same rates, from several seeds; what MoSI's epochs cost comes on top for one of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file: import from the repository

from benchmarks.demo import Demo, call
from benchmarks.machine import write_result
from benchmarks.measure import shown_command
from i2v.curves import read_log

CONFIG = "configs/demo/st_adapter.yaml"
SIZE = 64  # of the stills: all the way is then about as fast as the shapes are
MOTIONS = f"pretext: mosi, mosi_size: {SIZE}, flip: 0.5, flip_labels: [[0, 3], [1, 2]]"
# In pictures of 32 pixels, most of them dark ground, there is little to see in the authors' box: so without it
CLIPS = f"{{{MOTIONS}, mosi_mask: null}}"
MASKED = f"{{{MOTIONS}, color_jitter: [0.5, 0.5, 0.5, 0.25], grayscale: 0.3}}"


def train(title: str, out: Path, *overrides: str) -> list[float]:
    """Train in a folder; top-1 after every epoch."""
    call(title, "-m", "i2v.train", "--config", CONFIG, f"out={out}", "train.eval_every=1", *overrides)
    return [record["top1"] for record in read_log(out / "log.jsonl") if "top1" in record]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="the demo's folder (default: %(default)s)")
    parser.add_argument("--pretraining", type=int, default=1, help="epochs of MoSI, nine clips a video (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="with labels (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs each way (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write figures, machine and command here")
    args = parser.parse_args()
    out = args.out.resolve()
    demo = Demo(out, "st_adapter", "clip", factors=False)
    demo.make_videos()
    demo.make_shards()
    demo.make_backbones()
    common = (f"data.train={demo.shards / 'train'}", f"data.val={demo.shards / 'val'}", f"model.weights={demo.weights[0]}")

    runs, first = out / "mosi", out / "mosi" / "pretrained"
    mosi = (f"train.epochs={args.pretraining}", "train.warmup_epochs=0.1", "train.batch_size=72")
    motions = train("MoSI", first, *common, f"clips={CLIPS}", *mosi)
    found = {"fresh": [], "mosi": []}
    for seed in range(args.seeds):
        for name, top1 in found.items():
            begin = [f"model.init={first}"] if name == "mosi" else []
            overrides = (f"train.epochs={args.epochs}", f"train.seed={seed}", *begin)
            top1.append(train(f"{name}, seed {seed}", runs / f"{name}-{seed}", *common, *overrides))
    masked = train("MoSI with the authors' mask and colours", runs / "masked", *common, f"clips={MASKED}", *mosi)
    for name, top1 in found.items():
        print(name, *(f"{100 * sum(epoch) / len(epoch):.1f}" for epoch in zip(*top1)))
    if args.json:
        result = {"method": "st_adapter", "top1": found}
        result |= {"motions_top1": motions, "clips": CLIPS, "masked": {"motions_top1": masked, "clips": MASKED}}
        write_result(args.json, shown_command("mosi.py"), result)


if __name__ == "__main__":
    main()
