"""Draw docs/overview.png, the picture on the README's first screen: python benchmarks/picture.py

What the demo does, with a clip of its own videos and the accuracies in benchmarks/results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file: import from the repository

from benchmarks.moving_shapes import CLASSES, render_clip

RESULT = ROOT / "benchmarks" / "results" / "demo_st_adapter.json"
BLUE, GREY = "#1f5fa8", "#8a8f98"
BOXES = (  # title, what it is
    ("videos", "any codec, size, rotation;\na folder, a list, a bucket"),
    ("make_shards", "decoded, checked, encoded\nonce; WebDataset tars"),
    ("DALI", "decodes only the frames\nof the clip; GPU or CPU"),
    ("frozen CLIP", "one of five adapters\nis all that trains"),
)


def main() -> None:
    result = json.loads(RESULT.read_text())
    frames = render_clip(5, "clockwise", 32, (96, 96))  # (32, 96, 96, 3) uint8
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplot_mosaic([["strip", "bars"], ["boxes", "bars"]], width_ratios=[3.2, 1])
    strip, boxes, bars = (panels[name] for name in ("strip", "boxes", "bars"))

    strip.imshow(np.concatenate(list(frames[2::4]), axis=1))  # 8 of 32 frames, as the demo samples them
    strip.set_title("one clip: which way does it turn? No single frame tells.", loc="left", fontsize=11)
    strip.axis("off")

    boxes.set(xlim=(0, 4), ylim=(0, 1))
    boxes.axis("off")
    for i, (title, text) in enumerate(BOXES):
        box = FancyBboxPatch(
            (i + 0.04, 0.12), 0.8, 0.76, boxstyle="round,pad=0.02", facecolor="#eef3fa", mutation_aspect=0.3, edgecolor=BLUE
        )
        boxes.add_patch(box)
        boxes.text(i + 0.44, 0.68, title, ha="center", fontsize=11, weight="bold", color=BLUE)
        boxes.text(i + 0.44, 0.36, text, ha="center", va="center", fontsize=8)
        if i + 1 < len(BOXES):
            boxes.annotate("", (i + 1.02, 0.5), (i + 0.87, 0.5), arrowprops={"arrowstyle": "->", "color": GREY})

    shares = [mean(runs) for runs in result["figures"]["top-1"][:2]]
    drawn = bars.bar(["frames\nin order", "the same,\nshuffled"], [100 * share for share in shares], color=[BLUE, GREY])
    bars.bar_label(drawn, [f"{100 * share:.1f} %" for share in shares], padding=14)
    bars.axhline(100 / len(CLASSES), color="black", linewidth=0.8, linestyle=":")
    bars.text(1.45, 100 / len(CLASSES) + 1, "chance", ha="right", fontsize=8, color=GREY)
    bars.set(ylim=(0, 112), yticks=[])
    bars.spines[["top", "right", "left"]].set_visible(False)
    bars.set_title("top-1 of the demo (ST-Adapter)", fontsize=11)
    figure.savefig(ROOT / "docs" / "overview.png", dpi=100)


if __name__ == "__main__":
    main()
