"""A checkpoint or a configuration opens itself; what flags mean is said once for all commands."""

from types import SimpleNamespace

import pytest
import torch
import yaml

from i2v import session
from i2v.checkpoint import Backbone, Meta, save_checkpoint
from i2v.model import create_model, pictures
from i2v.session import Session, add_flags, command, load_backbone, open_session, own_tensors, parse

GEOMETRY = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "heads": 2, "embed_dim": 16}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A checkpoint that says little, opened."""
    path = tmp_path_factory.mktemp("session") / "best.safetensors"
    model = create_model("clip", GEOMETRY, 4, 3).train()
    backbone = Backbone(GEOMETRY, "included", None)
    clips = {"clips": 2, "crops": 3, "stride": 8}
    save_checkpoint(path, own_tensors(model, backbone), Meta(model.config, backbone, ["a", "b", "c"], clips=clips))
    return open_session(SimpleNamespace(checkpoint=path, weights=None))


def test_a_checkpoint_is_opened_for_looking(opened):
    assert not opened.model.training and opened.meta.classes == ["a", "b", "c"] and opened.meta.progress == {"step": 0}
    opened.place(torch.device("cpu"), "bf16")
    assert (
        opened.precision == "bfloat16" and opened.model.trunk.transformer.resblocks[0].mlp.c_fc.weight.dtype == torch.bfloat16
    )
    with opened.autocast():
        assert opened.model(torch.randn(1, 3, 4, 32, 32)).dtype == torch.bfloat16


def test_views_are_the_runs_then_the_models_then_what_the_user_says(opened):
    own = {"clips": 2, "crops": 3, "stride": 8, "num_frames": 4} | pictures(opened.model.spec)
    assert opened.views() == {"split": "test", "options": own, "device": "cpu"}
    said = opened.views(["crops=1", "size=48"])["options"]
    assert said == own | {"crops": 1, "size": 48} and opened.meta.clips == {"clips": 2, "crops": 3, "stride": 8}
    windows = opened.views(["crops=1"], 0.5, None)
    assert windows["split"] == "windows" and windows["options"] == own | {"crops": 1, "window": 0.5, "hop": None}
    on_gpu = Session(opened.model, opened.meta, torch.device("cuda"))
    assert on_gpu.views()["device"] == "gpu"


@pytest.mark.parametrize("method, fine", [("clip", True), ("st_adapter", False)])
def test_a_configuration_is_opened_if_all_that_is_used_of_it_is_clips(tmp_path, method, fine):
    """Without class names the head is not used, so it may be one that would have to be trained."""
    model = {"method": method, "backbone": GEOMETRY, "weights": "elsewhere.pt", "num_frames": 4}
    values = {"model": model, "data": {"train": "none"}, "train": {"epochs": 1, "batch_size": 1, "lr": 1.0}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values | {"clips": {"crops": 3}}))
    args = SimpleNamespace(checkpoint=None, config=str(tmp_path / "run.yaml"), weights="random")
    if fine:
        opened = open_session(args)
        assert opened.meta.clips == {"crops": 3} and not opened.model.training
    else:
        with pytest.raises(ValueError, match=r"must be trained first \(.*adapter.*\): give its run's --checkpoint"):
            open_session(args)
    with pytest.raises(ValueError, match="must be trained first: give its run's --checkpoint"):
        open_session(args, lambda config: ["a", config.data.train])


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--train.lr=1"], "--train.lr=1: a value of the configuration has no dashes, write train.lr=VALUE"),
        (["-x", "--train.lr", "1"], "-x --train.lr 1: a value of the configuration has no dashes, write train.lr=VALUE"),
        (["--checkpint=a.b"], "--checkpint=a.b"),
    ],
)
def test_a_value_of_a_configuration_with_dashes_is_told_from_a_flag(capsys, arguments, told):
    with pytest.raises(SystemExit):
        command("i2v.train", None).parse_args(arguments)
    assert capsys.readouterr().err.splitlines()[-1].removeprefix("i2v.train: error: unrecognized arguments: ") == told


def test_the_checkpoint_of_a_run_is_no_weights_of_an_image_model(tmp_path):
    model, backbone = create_model("clip", GEOMETRY, 4, 3), Backbone(GEOMETRY, "included", None)
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, own_tensors(model, backbone), Meta(model.config, backbone, ["a", "b", "c"]))
    with pytest.raises(
        ValueError, match="best.safetensors is the checkpoint of a run, not the weights of .* by model.init, and"
    ):
        load_backbone(model, GEOMETRY, str(path))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--hop", "1"], "i2v.some: --hop says how far windows are apart: give --window as well."),
        (["--json", "none/a.json"], "i2v.some: none does not exist: --json needs a folder that does."),
    ],
)
def test_flags_that_do_not_fit_are_one_sentence(monkeypatch, tmp_path, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    parser = command("i2v.some", "About.")
    add_flags(parser, *session.FLAGS, json="where to")
    assert "where to" in parser.format_help() and "seconds from window to window" in parser.format_help()
    monkeypatch.setattr("sys.argv", ["some", *arguments])
    with pytest.raises(SystemExit) as stop:
        parse(parser)
    assert stop.value.code == sentence
    monkeypatch.setattr("sys.argv", ["some", "--window", "2", "--hop", "0", "--json", "a.json"])
    assert parse(parser).hop == 0 and parse(parser).device == "auto"
