"""A model that leaves for the hub and comes back is the same model; no network is asked."""

import json
from dataclasses import fields, replace
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants as constants
import pytest
from huggingface_hub.errors import HfHubHTTPError

import i2v
from i2v import push
from i2v.checkpoint import load_checkpoint, save_checkpoint
from i2v.config import DataConfig, ModelConfig, TrainConfig, load_config, to_dict
from i2v.hub import find_model, make_folder, without_folder, without_places
from i2v.runs import Run
from tests.processes import call
from tests.test_evaluate import GEOMETRY, checkpoint  # noqa: F401 (a fixture)
from tests.test_report import scored


@pytest.fixture
def run(checkpoint, shapes, tmp_path):  # noqa: F811
    """The folder of a run, with a configuration that has paths, and scores."""
    from i2v.pipelines.shards import ShardSet

    folder = tmp_path / "run"
    folder.mkdir()
    tensors, meta = load_checkpoint(checkpoint)
    config = {
        "model": {"method": "st_adapter", "backbone": GEOMETRY, "weights": meta.backbone.weights, "num_frames": 4},
        "data": {"train": str(shapes / "vp9"), "val": str(shapes / "vp9-val")},
        "train": {"epochs": 4.0, "batch_size": 8, "lr": 0.1, "seed": 0},
        "out": str(folder),
    }
    scores = {"top1": 0.5, "top5": 0.75, "counted": 16, "expected": 16}
    save_checkpoint(folder / "best.safetensors", tensors, replace(meta, config=config, scores=scores))
    (folder / "config.yaml").write_text(json.dumps(config))
    scored(ShardSet(shapes / "vp9-val"), 0).save(folder / "scores.npz")
    return folder


def video_of(shapes):
    return next(iter(sorted((shapes / "val" / "left").iterdir())))


def test_what_is_loaded_from_everywhere_predicts_the_same(run, shapes, tmp_path, monkeypatch, capsys):
    video = video_of(shapes)
    expected = i2v.load(run, device="cpu").predict(video, top=3)
    assert len(expected) == 3 and expected[0]["probability"] >= expected[1]["probability"]
    call(monkeypatch, push, run, "org/name", "--out", tmp_path / "folder")
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    weights = load_checkpoint(run / "best.safetensors")[1].backbone.weights
    assert i2v.load(tmp_path / "folder", device="cpu", weights=weights).predict(str(video), top=3) == expected
    # With the backbone no other file is needed; in the hub's cache it is found by its name
    cache = tmp_path / "cache" / "models--org--name"
    snapshot = cache / "snapshots" / ("0" * 40)
    call(monkeypatch, push, run, "org/name", "--out", snapshot, "--include-backbone")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert i2v.load("org/name", device="cpu").predict(video, top=3) == expected
    with pytest.raises(ValueError, match="org/other is no folder here, and"):
        i2v.load("org/other")


def test_windows_and_what_cannot_be_read(run, shapes, tmp_path):
    predictor = i2v.load(run / "best.safetensors", device="cpu")
    windows = predictor.predict(video_of(shapes), top=1, window=0.3, hop=0.2)
    assert len(windows) > 1 and windows[1]["start"] == pytest.approx(0.2, abs=1e-6) and len(windows[0]["top"]) == 1
    assert windows[0]["top"][0]["class"] in predictor.classes
    (tmp_path / "broken.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"broken.mp4 cannot be read: it cannot be opened"):
        predictor.predict(tmp_path / "broken.mp4")
    with pytest.raises(ValueError, match="none.mp4 does not exist"):
        predictor.predict(tmp_path / "none.mp4")
    for ask in (predictor.predict, lambda place, **more: next(predictor.watch(place, 0.3, **more))):
        with pytest.raises(ValueError, match=r"is a folder of \d+ videos: give one of them at a time.$"):
            ask(shapes)
        with pytest.raises(ValueError, match="^top is 0: it must be at least 1.$"):
            ask(video_of(shapes), top=0)


def test_a_dry_run_shows_what_would_go_up_and_names_no_place_of_this_machine(run, shapes, monkeypatch, capsys):
    monkeypatch.setattr(push, "upload", lambda *_: pytest.fail("it sends"))
    call(monkeypatch, push, run, "org/name", "--dry-run")
    said = capsys.readouterr().out
    assert "MB  model.safetensors" in said and "nothing was sent" in said
    assert "16 of 16" in said and "24 videos of 8 classes" in said and "ST-Adapter (Pan et al. 2022" in said
    assert str(shapes) not in said and str(run) not in said
    config = without_places({"data": {"train": [{"path": "/a/b", "weight": 1}], "val": "s3://c/d"}, "out": "/x", "clips": {}})
    assert config["data"]["train"] == [{"path": "b", "weight": 1}] and config["data"]["val"] == "d" and config["out"] is None


def test_no_text_of_a_configuration_leaves_as_the_place_that_it_may_be():
    """Every key that takes any text gets a place; where only words are allowed, or the backbone's test says more, none."""
    config, place = to_dict(load_config("configs/demo/dist.yaml")), "/home/somebody/thing"
    free = {
        (section, field.name)
        for section, kind in (("model", ModelConfig), ("data", DataConfig), ("train", TrainConfig))
        for field in fields(kind)
        if "str" in field.type and "one_of" not in field.type
    } - {("model", "method"), ("model", "backbone"), ("data", "cache_size")}
    assert {("model", "init"), ("train", "mirror"), ("data", "val")} < free
    for section, key in free:
        config[section][key] = place
    assert "somebody" not in json.dumps(without_places(config | {"out": place}))


@pytest.mark.parametrize("sized", [False, True])
def test_a_backbone_that_is_a_folder_leaves_as_its_name(run, tmp_path, sized):
    tensors, meta = load_checkpoint(run / "best.safetensors")
    folder = str(tmp_path / "dinov2-base")
    backbone = {"name": folder, "image_size": 32} if sized else folder
    config = meta.config | {"model": meta.config["model"] | {"backbone": backbone, "weights": "openai"}}  # the default
    meta = replace(meta, config=config, backbone=replace(meta.backbone, name=backbone, weights=folder))
    save_checkpoint(run / "best.safetensors", tensors, meta)
    (tmp_path / "out").mkdir()
    make_folder(run / "best.safetensors", Run("run"), tmp_path / "out", "org/name", False, None)
    left = load_checkpoint(tmp_path / "out" / "model.safetensors")[1]
    assert left.backbone.weights == "dinov2-base"
    assert (
        left.backbone.name
        == left.config["model"]["backbone"]
        == ({**backbone, "name": "dinov2-base"} if sized else "dinov2-base")
    )
    assert str(tmp_path) not in "".join((tmp_path / "out" / name).read_text() for name in ("config.json", "README.md"))
    assert without_folder("timm/vit_base_patch14_dinov2") == "timm/vit_base_patch14_dinov2"


def test_the_folder_is_what_goes_up(run, monkeypatch, capsys):
    sent = {}

    class Hub:
        def create_repo(self, name, private, exist_ok):
            sent["repo"] = (name, private)

        def upload_folder(self, repo_id, folder_path, commit_message):
            sent["files"] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    call(monkeypatch, push, run, "org/name", "--private")
    assert "sent to https://hub/org/name" in capsys.readouterr().out and sent["repo"] == ("org/name", True)
    meta = json.loads(sent["files"]["config.json"])
    assert meta["classes"][0] == "clockwise" and meta["backbone"]["weights"] == "clip.safetensors"
    assert str(run).encode() not in b"".join(sent["files"].values())

    for error in (OSError, HfHubHTTPError.__bases__[0]):  # of the system, of the library that speaks HTTP

        class Down(Hub):
            def create_repo(self, name, private, exist_ok, error=error):
                raise error("no route to host")

        monkeypatch.setattr(huggingface_hub, "HfApi", Down)
        with pytest.raises(SystemExit, match="org/name cannot be written on the hub .no route to host"):
            call(monkeypatch, push, run, "org/name")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["none", "org/name"], "none does not exist"),
        (["empty", "org/name"], "empty has no model: there is none of best.safetensors"),
        (["run", "name"], "'name' is no name of a repository: write org/name"),
        (["empty/x.safetensors", "org/name"], "x.safetensors does not exist"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, said, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=said):
        call(monkeypatch, push, *arguments, "--dry-run")


def test_names_that_are_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("none", "/none/none", "a/b/c", "a/b.safetensors"):
        with pytest.raises(ValueError, match="does not exist: give a checkpoint, the folder of a run, or org/name"):
            find_model(name)
