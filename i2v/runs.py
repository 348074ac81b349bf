"""A run, as it lies on the disk: what was trained on what, its log, its scores, its quarantine."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from safetensors import SafetensorError, safe_open

from i2v.curves import read_log
from i2v.scores import VideoScores, load_scores


@dataclass
class Run:
    """Parts that a run does not have are empty."""

    name: str
    config: dict = field(default_factory=dict)
    log: list[dict] = field(default_factory=list)
    meta: dict = field(default_factory=dict)  # the header of its checkpoint
    scores: VideoScores | None = None
    shuffled: VideoScores | None = None  # the control: frames in random order
    quarantine: list[dict] = field(default_factory=list)  # id, key, crc, reason, split
    manifests: dict[str, dict] = field(default_factory=dict)  # train, val: what make_shards says of them, where it is here
    notes: list[str] = field(default_factory=list)

    def hours(self, of_devices: bool = False) -> float | None:
        """Of training, by the log: without validations. of_devices: of all together, if the log says how many."""
        records, before, seconds = [r for r in self.log if r.get("clips_per_s")], 0, 0.0
        if not records or (of_devices and not all("devices" in r for r in records)):
            return None
        for record in records:
            devices = record["devices"] if of_devices else 1
            seconds += devices * max(record["samples"] - before, 0) / record["clips_per_s"]
            before = record["samples"]
        return seconds / 3600


def read_run(path: Path) -> Run:
    """The run in a folder, or the scores in an .npz alone. Raises ValueError, one sentence, if it is neither."""
    if path.is_file():
        scores = load_scores(path)
        return Run(path.stem, scores=scores, manifests=_manifests({"val": scores.how.get("data")}))
    if not path.is_dir():
        raise ValueError(f"{path} does not exist: give the folder of a run, or a file that i2v.evaluate --scores wrote.")
    config, log, meta = _config(path / "config.yaml"), read_log(path / "log.jsonl"), _header(path)
    scores = sorted(path.glob("*.npz"), key=lambda each: (each.name == "scores.npz", each.stat().st_mtime), reverse=True)
    if not (config or log or meta or scores):
        raise ValueError(f"{path} is no run: it has no config.yaml, log.jsonl, checkpoint or scores (*.npz).")
    run = Run(path.name, config, log, meta)
    for file in scores:
        found = load_scores(file)
        if found.shuffled:
            run.shuffled = run.shuffled or found
        elif run.scores is None:
            run.scores = found
        else:
            run.notes.append(f"{file.name} is not shown: scores.npz, or else the newest, is.")
    run.quarantine = [
        row | {"split": file.stem.removeprefix("quarantine-")}
        for file in sorted(path.glob("quarantine*.csv"))
        for row in _rows(file)
    ]
    data = config.get("data") or {}
    run.manifests = _manifests(
        {"train": data.get("train"), "val": (run.scores.how if run.scores else {}).get("data") or data.get("val")}
    )
    return run


def _config(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split()):.200}): restore it, or remove it.") from error
    return content if isinstance(content, dict) else {}


def _header(folder: Path) -> dict:
    """Of the best checkpoint, else of the last."""
    for path in (folder / "best.safetensors", folder / "last.safetensors"):
        if path.exists():
            try:
                with safe_open(path, "pt") as file:
                    return json.loads((file.metadata() or {}).get("i2v", "{}"))
            except (SafetensorError, OSError, ValueError) as error:
                raise ValueError(f"{path} cannot be read as a checkpoint ({error}): restore it, or remove it.") from error
    return {}


def _rows(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def _manifests(places: dict) -> dict[str, dict]:
    """split -> manifest.json, of data sets that are on this machine."""
    found = {}
    for split, place in places.items():
        path = Path(place, "manifest.json") if isinstance(place, str) else None
        if path is not None and path.exists():
            try:
                found[split] = json.loads(path.read_text(encoding="utf-8")) | {"where": place}
            except (OSError, ValueError):
                continue  # the report says that nothing is known of it
    return found
