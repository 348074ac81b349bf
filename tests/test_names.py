"""Names that are not UTF-8, and terminals that know only ASCII: no command stops, and what it writes can be read back."""

import csv
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from i2v import complexity, convert, evaluate, features, predict
from i2v.checkpoint import Meta, save_checkpoint
from i2v.config import load_config
from i2v.model import create_model
from i2v.pipelines import preview
from i2v.pipelines.quarantine import Quarantine
from i2v.pipelines.shards import ShardSet
from i2v.session import describe_backbone
from i2v.shard_tools import describe, make_shards, verify
from i2v.vit import VisionTransformer, ViTSpec
from i2v.weights import load_weights
from tests.processes import call
from tests.videos import moving, write_video

ROOT = Path(__file__).parent.parent

GEOMETRY = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "heads": 2, "embed_dim": 16}
CLASSES = ["été", os.fsdecode(b"caf\xe9")]
FILES = [os.fsdecode(b"a\xff.mp4"), "ü.mp4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Videos in class folders, one of them broken, their shards, an experiment and a checkpoint; all with such names."""
    folder = tmp_path_factory.mktemp("names") / "dépôt"
    good = write_video(folder / "good.mp4", moving(10))
    for name in CLASSES:
        (folder / "videos" / name).mkdir(parents=True)
        for file in FILES:
            shutil.copy(good, folder / "videos" / name / file)
    (folder / "videos" / CLASSES[1] / os.fsdecode(b"bad\xfe.mp4")).write_bytes(b"no video" * 99)
    shards = folder / os.fsdecode(b"shards\xfe")
    assert make_shards.main([str(folder / "videos"), "--out", str(shards), "--short-side", "48", "--workers", "1"]) == 0
    torch.manual_seed(0)
    save_file(VisionTransformer(ViTSpec(**GEOMETRY)).state_dict(), folder / "clip.safetensors")
    for method, path in (("zeroi2v", "k400_é.yaml"), ("clip", "clip.yaml")):
        model = {"method": method, "backbone": GEOMETRY, "weights": str(folder / "clip.safetensors"), "num_frames": 4}
        train = {"epochs": 1, "batch_size": 4, "lr": 1e-3}
        (folder / path).write_text(json.dumps({"model": model, "data": {"train": str(shards)}, "train": train}))
    config = load_config(folder / "k400_é.yaml")
    model = create_model("zeroi2v", GEOMETRY, 4, 2)
    load_weights(model, folder / "clip.safetensors", "clip")
    meta = Meta(
        model.config,
        describe_backbone(model, config.model, str(folder / "clip.safetensors")),
        ShardSet(shards).classes,
        stored={"codec": "vp9", "gop": 8, "short_side": 48},
        config={"data": {"val": str(shards)}},
    )
    save_checkpoint(folder / "best.safetensors", model.trainable_parameters(), meta)
    return folder


SHARDS, CHECKPOINT = os.fsdecode(b"shards\xfe"), "best.safetensors"
COMMANDS = {  # {}: the place; (the command, its arguments, what it prints, how it ends)
    "append": (make_shards, ["{}/videos", "--out", "{}/" + SHARDS, "--append", "--short-side", "48"], "p\\xf4t/videos", 0),
    "describe": (describe, ["{}/" + SHARDS, "--json", "{}/describe.json", "--png", "{}/describe.png"], "caf\\udce9", 0),
    "verify": (verify, ["{}/" + SHARDS, "--json", "{}/verify.json", "--workers", "1"], "shards\\udcfe", 0),
    "preview": (preview, ["{}/" + SHARDS, "--out", "{}/é.png", "num_frames=2", "size=32", "--clips", "2"], "\\xe9.png", 0),
    "evaluate": (
        evaluate,
        ["--checkpoint", "{}/" + CHECKPOINT, "--data", "{}/" + SHARDS, "--json", "{}/evaluate.json"],
        "\\xe9t\\xe9",
        None,
    ),
    "predict": (
        predict,
        ["--checkpoint", "{}/" + CHECKPOINT, "{}/videos", "--json", "{}/predict.json"],
        "bad\\udcfe.mp4",
        "i2v.predict: 1 of 5 videos could not be read.",
    ),
    "features": (features, ["--config", "{}/clip.yaml", "--data", "{}/" + SHARDS, "--out", "{}/features"], "p\\xf4t", None),
    "convert": (convert, ["--checkpoint", "{}/" + CHECKPOINT, "--merge", "--out", "{}/é.safetensors"], "\\xe9.safe", None),
    "complexity": (complexity, ["{}/k400_é.yaml", "--json", "{}/complexity.json"], "k400_\\xe9", None),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_strict_terminal_stops_no_command(name, place, monkeypatch):
    module, arguments, shown, ends = COMMANDS[name]
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", errors="strict", write_through=True))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = None
    try:
        result = call(monkeypatch, module, *(argument.replace("{}", str(place)) for argument in arguments))
    except SystemExit as stop:
        result = stop.code
    assert result == ends
    assert shown in written.getvalue().decode("ascii")
    for path in place.glob("*.json"):
        json.loads(path.read_text())


def test_names_come_back_from_predictions_and_features(place, monkeypatch):
    for name in ("predict", "features"):
        module, arguments, *_ = COMMANDS[name]
        try:
            call(monkeypatch, module, *(argument.replace("{}", str(place)) for argument in arguments))
        except SystemExit:
            pass
    listed = {str(Path(name, file)) for name in CLASSES for file in FILES}
    answers = json.loads((place / "predict.json").read_text())
    good = {str(Path(answer["video"]).relative_to(place / "videos")) for answer in answers if "top" in answer}
    assert good == listed and {one["class"] for answer in answers for one in answer.get("top", [])} == set(CLASSES)
    assert all(Path(answer["video"]).exists() for answer in answers) and len(answers) == 5
    with open(place / "features" / "features.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert {row["source"] for row in rows} == listed and {row["class"] for row in rows} == set(CLASSES)
    assert json.loads((place / "features" / "features.json").read_text())["videos"] == 4


def test_a_card_is_text_whatever_the_names_are(place):
    shards = place / SHARDS
    assert make_shards.main([str(place / "videos"), "--out", str(shards), "--short-side", "48", "--card"]) == 0
    text = (shards / "README.md").read_text(encoding="utf-8")
    assert all(f"| {name} | 2 |" in text for name in ("été", "caf\\udce9")) and "# shards\\udcfe" in text


def test_a_name_that_breaks_a_line_is_one_name(place, tmp_path, monkeypatch):
    (tmp_path / "a\rb\n.mp4").write_bytes(b"no video" * 99)
    arguments = ["--checkpoint", place / CHECKPOINT, tmp_path, "--json", tmp_path / "predict.json"]
    with pytest.raises(SystemExit, match="1 of 1 videos could not be read"):
        call(monkeypatch, predict, *arguments)
    (answer,) = json.loads((tmp_path / "predict.json").read_text())
    assert answer["video"] == str(tmp_path / "a\rb\n.mp4") and answer["error"].startswith("it cannot be opened as a video")


def test_a_quarantine_keeps_reasons_that_are_not_utf8(place, tmp_path):
    shards, reason = ShardSet(place / SHARDS), f"clip 3: in {place / SHARDS}"
    Quarantine(tmp_path / "quarantine.csv", shards).add(3, reason)
    assert Quarantine(tmp_path / "quarantine.csv", shards).bad == {3: reason}


def test_every_key_that_the_pages_for_newcomers_name_is_one():
    """docs/coming_from.md; sections as in docs/keys.md."""
    known, section = set(), ""
    for line in (ROOT / "docs" / "keys.md").read_text().splitlines():
        section = line.removeprefix("## ") if line.startswith("## ") else section
        known |= {f"{section}.{line.split('`')[1]}"} if line.startswith("| `") else set()
    text = (ROOT / "docs" / "coming_from.md").read_text()
    named = set(re.findall(r"`((?:model|data|data\.order|clips|train)\.[a-z_]+)\b(?!\.)", text))
    assert len(named) > 30 and named <= known, named - known
