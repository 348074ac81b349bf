"""A run's log as a picture: loss, learning rate, accuracy, speed."""

from __future__ import annotations

import json
from pathlib import Path


def read_log(path: Path) -> list[dict]:
    """The records of a log.jsonl; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def draw_curves(log: Path, png: Path) -> None:
    """Draw log.jsonl as four panels over the step."""
    figure_of(read_log(log), str(log.parent)).savefig(png, dpi=110)


def figure_of(records: list[dict], title: str):
    """The picture of a log's records."""
    from matplotlib.figure import Figure

    train = [r for r in records if "loss" in r]
    tests = [r for r in records if "top1" in r]
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 2)
    for axes, key, title in zip(
        panels.flat, ("loss", "lr", None, "clips_per_s"), ("loss", "learning rate", "accuracy (%)", "clips/s")
    ):
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        axes.set_xlabel("step", fontsize=8)
        if key:
            axes.plot([r["step"] for r in train], [r[key] for r in train], linewidth=1, label="training")
        else:
            for name in ("top1", "top5"):
                axes.plot([r["step"] for r in tests], [100 * r[name] for r in tests], marker="o", markersize=3, label=name)
            axes.set_ylim(0, 103)  # 100 % is a line, not the frame
            axes.legend(fontsize=8)
        lost = [r for r in tests if r.get("cross_entropy") is not None] if key == "loss" else []
        if lost:  # of whole videos, without label smoothing and mixing: beside the training's, not the same figure
            losses = [r["cross_entropy"] for r in lost]
            axes.plot([r["step"] for r in lost], losses, marker="o", markersize=3, label="validation")
            axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure
