"""Configurations are read strictly; every error says what, where and what to do."""

from pathlib import Path

import pytest
import yaml

from i2v.config import ConfigError, load_config, to_dict
from i2v.model import backbone_spec
from pipelines.plan import ClipOptions, Plan

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MINIMAL = {"model": {"method": "st_adapter"}, "data": {"train": "a"}, "train": {"epochs": 1, "batch_size": 2, "lr": 0.1}}


@pytest.fixture
def write(tmp_path):
    def write(values):
        path = tmp_path / "run.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return path

    return write


def test_defaults_overrides_and_the_round_trip(write, tmp_path):
    config = load_config(write(MINIMAL), ["train.lr=1e-3", "model.options.adapter_width=8", "clips={flip: 0}", "data.val=b"])
    assert config.train.lr == 1e-3 and config.model.options == {"adapter_width": 8} and config.clips == {"flip": 0}
    assert config.model.weights == "openai" and config.data.val == "b"
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(to_dict(config)))
    assert load_config(again) == config


def test_numbers_as_yaml_writes_them(write):
    path = write(yaml.safe_dump(MINIMAL).replace("lr: 0.1", "lr: 1e-3"))  # text, for YAML 1.1
    assert load_config(path).train.lr == 1e-3


@pytest.mark.parametrize(
    "override, text",
    [
        ("train.learning_rat=1", "unknown key train.learning_rat"),
        ("train.weight_deca=1", "unknown key train.weight_deca: did you mean weight_decay"),
        ("trian.lr=1", "unknown key trian: did you mean train"),
        ("train.lr=fast", "train.lr is 'fast': it must be a number"),
        ("train.batch_size=2.5", "train.batch_size is 2.5: it must be a whole number"),
        ("train.batch_size=true", "train.batch_size is True: it must be a whole number"),
        ("train.compile=1", "train.compile is 1: it must be true or false"),
        ("train.lr=-1", "train.lr is -1.0: it must be more than 0"),
        ("train.precision=fp8", "train.precision is 'fp8': it must be auto, bf16 or float32"),
        ("train=3", "train must be a section"),
        ("train.lr", "is not an override: write section.key=value"),
        ("train.lr.x=3", "lr is not a section"),
        ("clips.size=3", "clips.size is decided by the model"),
        ("train.betas=[1]", "train.betas is .1.: it must be two numbers"),
    ],
)
def test_each_mistake_has_its_sentence(write, override, text):
    with pytest.raises(ConfigError, match=text):
        load_config(write(MINIMAL), [override])


def test_files_that_are_no_configuration(write, tmp_path):
    with pytest.raises(ConfigError, match="none.yaml cannot be read"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(write("a: [1"))
    with pytest.raises(ConfigError, match="must hold the sections"):
        load_config(write("- 1"))
    with pytest.raises(ConfigError, match="train.lr is missing"):
        load_config(write(MINIMAL | {"train": {"epochs": 1, "batch_size": 1}}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_config_is_complete_and_plans_a_clip(path):
    config = load_config(path)
    assert config.out == str(Path("runs") / path.relative_to(ROOT / "configs").with_suffix(""))
    size = backbone_spec(config.model.backbone).image_size
    known = {name: value for name, value in config.clips.items() if name in ClipOptions.__dataclass_fields__}
    assert set(config.clips) - set(known) <= {"interpolation", "antialias"}
    options = ClipOptions(num_frames=config.model.num_frames, size=size, **known)
    for split in ("train", "test"):
        spec = Plan([300], [340], [256], [30.0], options, split)[0]
        views = options.clips if split == "test" else 1
        assert len(spec.frames) == views * config.model.num_frames
