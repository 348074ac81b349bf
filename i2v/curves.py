"""Logs as pictures: loss, learning rate, accuracy, speed; of one run, or of several over one another."""

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


def validated(log: list[dict], figure: str) -> list[float]:
    """A figure of every validation: of the weights or of their average, whichever is better, as best.safetensors is."""
    return [max(record[figure], record.get(f"ema_{figure}", 0)) for record in log if figure in record]


def draw_curves(log: Path, png: Path) -> None:
    """Draw log.jsonl as four panels over the step."""
    figure_of(read_log(log), str(log.parent)).savefig(png, dpi=110)


def figure_of(records: list[dict], title: str):
    """The picture of a log's records."""
    train = [r for r in records if "loss" in r]
    tests = [r for r in records if shares([r])]
    figure, panels = _panels(title, "step")
    for axes, key in zip(panels, ("loss", "lr", None, "clips_per_s")):
        if key:
            axes.plot([r["step"] for r in train], [r[key] for r in train], linewidth=1, label="training")
        else:
            for name in shares(tests):
                axes.plot([r["step"] for r in tests], [100 * r[name] for r in tests], marker="o", markersize=3, label=name)
            axes.set_ylim(0, 103)  # 100 % is a line, not the frame
            if tests:
                axes.legend(fontsize=8)
        lost = [r for r in tests if r.get("cross_entropy") is not None] if key == "loss" else []
        if lost:  # of whole videos, without label smoothing and mixing: beside the training's, not the same figure
            losses = [r["cross_entropy"] for r in lost]
            axes.plot([r["step"] for r in lost], losses, marker="o", markersize=3, label="validation")
            axes.legend(fontsize=8)
    return figure


def shares(tests: list[dict]) -> list[str]:
    """The figures of validations that are drawn: of the weights themselves, also of every factor."""
    names = [name for name in (tests[0] if tests else ()) if not name.startswith("ema_")]
    return [name for name in names if name in ("top1", "top5", "map") or name.endswith("_top1") or name.startswith("map_")]


def draw_sheet(logs: dict[str, list[dict]], png: Path, title: str) -> None:
    """Draw the records of several runs, by their names, over epochs, so that runs with other batches can be compared."""
    from matplotlib import colormaps

    figure, panels = _panels(title, "epoch")
    for number, (name, records) in enumerate(logs.items()):
        look = {"label": name, "color": colormaps["turbo"](0.05 + 0.9 * number / max(len(logs) - 1, 1))}
        several = any("map" in r for r in records)
        for axes, key in zip(panels, ("loss", "lr", "map" if several else "top1", "clips_per_s")):
            share = key in ("top1", "map")
            chosen, factor = [r for r in records if key in r], 100 if share else 1
            marker = {"marker": "o", "markersize": 3} if share else {"linewidth": 1}
            axes.plot([r["epoch"] for r in chosen], [factor * r[key] for r in chosen], **look, **marker)
    of_several = any("map" in r for records in logs.values() for r in records)
    panels[2].set_title("mAP (%)" if of_several else "top-1 (%)", loc="left", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)
    figure.savefig(png, dpi=110, format="png")


def _panels(title: str, across: str):
    """(figure, its four axes): loss, learning rate, accuracy, clips/s."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = list(figure.subplots(2, 2).flat)
    for axes, name in zip(panels, ("loss", "learning rate", "accuracy (%)", "clips/s")):
        axes.set_title(name, loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        axes.set_xlabel(across, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure, panels
