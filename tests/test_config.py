"""Configurations are read strictly; every error says what, where and what to do."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from i2v.complexity import classes_of
from i2v.config import ConfigError, load_config, to_yaml
from i2v.model import create_model, spec_of
from i2v.optim import layers_of, learning_rate, parameter_groups
from i2v.pipelines.augment import AugmentOptions
from i2v.pipelines.graph import GraphOptions
from i2v.pipelines.options import ClipOptions
from i2v.pipelines.plan import Plan
from tests.references import figures, find

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "bmn")  # i2v.localise has those
EXPERIMENTS = [path for path in CONFIGS if path.parent.name not in ("demo", "configs")]
AUTHORS = [path for path in EXPERIMENTS if "_vit-" in path.name and not path.name.startswith("mosi_")]  # on their own trunk
MINIMAL = {"model": {"method": "st_adapter"}, "data": {"train": "a"}, "train": {"epochs": 1, "batch_size": 2, "lr": 0.1}}


@pytest.fixture
def write(tmp_path):
    def write(values):
        path = tmp_path / "run.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return path

    return write


def test_defaults_overrides_and_the_round_trip(write, tmp_path):
    config = load_config(
        write(MINIMAL), ["train.lr=1e-3", "model.options.adapter_width=8", "clips={flip: 0}", "data.val='1e3'"]
    )
    assert config.train.lr == 1e-3 and config.model.options == {"adapter_width": 8} and config.clips == {"flip": 0}
    assert config.model.weights == "openai" and config.data.val == "1e3"
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load_config(again) == config


def test_a_tilde_is_the_home_folder(write, monkeypatch):
    """Otherwise a run would write to a folder that is called ~, here."""
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config(write(MINIMAL | {"out": "~/runs/x"}), ["data.train=[{path: ~/shards}]", "data.val=val~1"])
    assert config.out == "/home/me/runs/x" and config.data.train == [{"path": "/home/me/shards"}] and config.data.val == "val~1"


def test_numbers_as_yaml_writes_them(write):
    path = write(yaml.safe_dump(MINIMAL).replace("lr: 0.1", "lr: 1e-3"))  # text, for YAML 1.1
    config = load_config(path, ["model.options={a: 1e-6, b: -2E3, c: [.5e+1], d: e3, e: 1e, f: '1e3'}"])
    assert config.train.lr == 1e-3
    assert config.model.options == {"a": 1e-6, "b": -2000.0, "c": [5.0], "d": "e3", "e": "1e", "f": "1e3"}


@pytest.mark.parametrize(
    "override, text",
    [
        ("train.learning_rat=1", "unknown key train.learning_rat"),
        ("train.weight_deca=1", "unknown key train.weight_deca: did you mean weight_decay"),
        ("model.num_classes=5", "unknown key model.num_classes: classes come from the data, .* of data.train: leave it out"),
        ("data.batch_size=8", "unknown key data.batch_size: did you mean train.batch_size"),
        ("trian.lr=1", "unknown key trian: did you mean train"),
        ("train.lr=fast", "train.lr is 'fast': it must be a finite number, more than 0"),
        ("train.batch_size=2.5", "train.batch_size is 2.5: it must be a whole number"),
        ("train.batch_size=true", "train.batch_size is True: it must be a whole number"),
        ("train.compile=1", "train.compile is 1: it must be true or false or auto"),
        ("train.compile=never", "train.compile is 'never': it must be true or false or auto"),
        ("train.lr=-1", "train.lr is -1: it must be a finite number, more than 0"),
        ("train.precision=fp8", "train.precision is 'fp8': it must be auto, bf16, fp16 or float32"),
        ("train=3", "train must be a section"),
        ("train.lr", "is not an override: write section.key=value"),
        ("train.lr.x=3", "lr is not a section"),
        ("clips.size=3", "clips.size is decided by the model"),
        ("train.betas=[1]", "train.betas is .1.: it must be two numbers"),
        *(
            (f"train.{key}=.{value}", f"train.{key} is .*: it must be a finite number")
            for value in ("inf", "nan")
            for key in (
                "lr",
                "epochs",
                "weight_decay",
                "warmup_epochs",
                "warmup_lr",
                "min_lr",
                "mixup",
                "cutmix",
                "label_smoothing",
                "layer_decay",
                "eval_every",
            )
        ),
        ("train.lr_multipliers={head: .inf}", "train.lr_multipliers is .*: it must be factors"),
        ("train.no_decay=[1]", "train.no_decay is .1.: it must be parts of names"),
        ("train.max_steps=0", "train.max_steps is 0: it must be a whole number, at least 1 or null"),
        ("data.threads=0", "data.threads is 0: it must be a whole number, at least 1 or null"),
        *(
            (f"train.{key}={value}", f"train.{key} is .*: it must be a finite number")
            for key, value in (
                ("lr", "9" * 400),
                ("epochs", "1e308"),
                ("eval_every", "1e-320"),
                ("mixup", "1e308"),
                ("cutmix", "1001"),
            )
        ),
        ("model.options={adapter_scale: .inf}", "model.options.adapter_scale is inf: it must be a finite number"),
        ("clips={area: [0.1, .nan]}", "clips.area.1 is nan: it must be a finite number"),
        ("train.lr_multipliers={1: 2}", "train.lr_multipliers is .1: 2.: it must be factors, at least 0, of parts of names"),
        ("clips={stride: 2001-13-45}", "'clips={stride: 2001-13-45}' is not valid YAML: month must be in 1..12"),
        ("train.lr=" + "9" * 5000, "is not valid YAML: Exceeds the limit"),
        ("model.options=" + "[" * 3000, "nested too deeply"),
        ("clips=&a {b: [*a]}", "clips.b.0 holds itself"),
        ("train={lr: 1, lr: 2}", "the key lr comes a second time in its section: remove one"),
    ],
)
def test_each_mistake_has_its_sentence(write, override, text):
    with pytest.raises(ConfigError, match=text):
        load_config(write(MINIMAL), [override])


@pytest.mark.parametrize(
    "text, key",
    [
        ("train:\n  lr: 1\n  epochs: 2\n  lr: 2\n", "lr"),
        ("train: {lr: 1}\nmodel: {method: aim}\ntrain: {lr: 2}\n", "train"),
        ("a: &a {x: 1}\nb: &b {y: 1}\ntrain:\n  <<: *a\n  <<: *b\n", "<<"),
        ("clips:\n  area: [{a: 1, a: 2}]\n", "a"),
    ],
)
def test_a_key_that_comes_twice_is_refused(write, text, key):
    with pytest.raises(ConfigError, match=f"the key {re.escape(key)} comes a second time in its section: remove one.* line"):
        load_config(write(text))


def test_what_a_merge_brings_may_be_overridden(write):
    others = {name: section for name, section in MINIMAL.items() if name != "train"}
    path = write(yaml.safe_dump(others) + "train: {<<: {epochs: 5, lr: 0.5}, epochs: 1, batch_size: 2}\n")
    train = load_config(path).train
    assert (train.epochs, train.lr, train.batch_size) == (1, 0.5, 2)


def test_whole_betas_and_a_byte_order_mark_are_fine(write):
    path = write(MINIMAL)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_config(path, ["train.betas=[0, 0.999]"]).train.betas == [0, 0.999]


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
    size = spec_of(config.model.method, config.model.backbone).image_size
    given = {
        kind: {name: value for name, value in config.clips.items() if name in kind.__dataclass_fields__}
        for kind in (ClipOptions, AugmentOptions, GraphOptions)
    }
    assert {name for names in given.values() for name in names} == config.clips.keys()
    GraphOptions(**given[GraphOptions])
    augment = AugmentOptions(**given[AugmentOptions])
    options = ClipOptions(num_frames=config.model.num_frames, size=size, **given[ClipOptions])
    for split in ("train", "test"):
        spec = Plan([300], [340], [256], [30.0], options, split, augment=augment)[0]
        assert (spec.augmentation is not None) == (split == "train" and bool(augment.arrays))
        views = options.clips if split == "test" else 1
        assert len(spec.frames) == views * config.model.num_frames


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


def meta_model(path):
    """The model of a configuration, without memory; equal ones are built once."""
    model = vars(load_config(path).model) | {"weights": None}
    return _meta_model(json.dumps(model), classes_of(path))


@cache
def _meta_model(text, classes):
    model = json.loads(text)
    with torch.device("meta"):
        return create_model(model["method"], model["backbone"], model["num_frames"], classes, model["head"], **model["options"])


def millions(parameters):
    return sum(p.numel() for p in parameters) / 1e6


# Total and trained parameters (millions) of the authors' models: reference/*.md, section 1. DiST's total is without
# what this code does not keep: the text tower and CLIP's projection.
B16, L14 = 63.428 + 0.393, 123.650 + 0.786
SIZES = {
    "st_adapter/k400_vit-b16_8f": (93.217, 7.418),
    "st_adapter/ssv2_vit-b16_8f": (100.154, 14.354),
    "aim/k400_vit-b16_8f": (96.765, 10.967),
    "aim/k400_vit-b16_32f": (96.783, 10.985),
    "aim/k400_vit-l14_8f": (341.439, 38.261),
    "aim/k400_vit-l14_32f": (341.463, 38.286),
    "aim/ssv2_vit-b16_8f": (100.141, 14.343),
    "aim/ssv2_vit-l14_8f": (341.207, 38.029),
    "zeroi2v/k400_vit-b16_8f": (100.315, 14.517),
    "zeroi2v/k400_vit-l14_32f": (354.077, 50.899),
    "zeroi2v/ssv2_vit-b16_8f": (100.141, 14.343),
    "zeroi2v/ssv2_vit-l14_32f": (353.845, 50.668),
    "dist/ssv2_vit-b16_8+16f": (168.622 - B16, 19.001),
    "dist/k400_vit-b16_8+16f": (175.726 - B16, 26.105),
    "dist/ssv2_vit-b16_16+32f": (168.665 - B16, 19.044),
    "dist/k400_vit-b16_16+32f": (175.775 - B16, 26.154),
    "dist/ssv2_vit-b16_32+64f": (168.751 - B16, 19.130),
    "dist/k400_vit-b16_32+64f": (175.873 - B16, 26.253),
    "dist/ssv2_vit-l14_32+64f": (460.362 - L14, 32.745),
    "dist/k400_vit-l14_32+64f": (467.484 - L14, 39.868),
    "tada/k400_vit-b16_16f": (104.196, 104.196),
    "tada/k400_vit-l14_16f": (364.827, 364.827),
    "tada/ssv2_vit-b16_16f": (135.087, 135.087),
    "tada/ssv2_vit-l14_16f": (474.960, 474.960),
    "tada2d/k400_resnet50_8f": (27.485, 27.485),
    "tada2d/ssv2_resnet50_16f": (27.022, 27.022),
    "tadaconvnext/k400_tiny_16f": (45.971, 45.971),
    "tadaconvnext/ssv2_tiny_32f": (45.798, 45.798),
    "tadaconvnext/k400_small_16f": (82.249, 82.249),
    "tadaconvnext/ssv2_small-in21k_32f": (82.075, 82.075),
    "tadaconvnext/k400_base-in21k_32f": (145.688, 145.688),
    "tadaconvnext/ssv2_base_16f": (145.456, 145.456),
}
CONVOLUTIONAL = ("tada2d", "tadaconvnext")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_experiment_builds_and_its_comment_and_the_document_say_its_size(path):
    model, name = meta_model(path), name_of(path)
    total, trained = millions(model.parameters()), millions(model.trainable_parameters().values())
    if name in SIZES:
        assert (total, trained) == pytest.approx(SIZES[name], abs=0.0021)  # sums of up to three rounded figures
    comment = re.search(r"# Trains (\S+) M of (\S+) M parameters, (\S+) GMACs per view\.", path.read_text())
    assert comment.groups()[:2] == (f"{trained:.3f}", f"{total:.3f}")
    document = (ROOT / "docs/complexity.md").read_text()
    assert f"| {name} | {total:.3f} | {trained:.3f} | {comment[3]} |" in document


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_experiment_says_how_to_run_it_and_what_was_published(path):
    comment = " ".join(line.lstrip("# ") for line in path.read_text().partition("\nmodel:")[0].splitlines())
    assert "Published: " in comment and "Here: not yet run." in comment
    assert f"--config configs/{name_of(path)}.yaml" in comment
    assert path.parent.name == "clip" or f"--checkpoint runs/{name_of(path)}/" in comment


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_experiment_has_an_optimizer_and_a_schedule(path):
    train, model = load_config(path).train, meta_model(path)
    parameters = model.trainable_parameters()
    assert bool(parameters) == (path.parent.name != "clip")  # CLIP's zero-shot classification is not trained
    if parameters:
        groups = parameter_groups(parameters, train, layers_of(model))
        assert sorted(name for group in groups for name in group["names"]) == sorted(parameters)
    rates = [learning_rate(epoch / 10 * train.epochs, train) for epoch in range(11)]
    assert all(0 <= rate <= train.lr for rate in rates) and rates[-1] == pytest.approx(train.min_lr, abs=1e-12)


def test_every_published_result_has_its_experiment():
    experiments = {name_of(path) for path in AUTHORS if path.parent.name not in ("clip", *CONVOLUTIONAL)}
    assert experiments == set(published_sizes())


def test_every_published_result_of_the_convolutional_trunks_has_its_experiment():
    """(data, backbone) -> frames of the tables in tada-family.md."""
    rows = {
        "tada2d/k400_resnet50": (8, 16),
        "tada2d/ssv2_resnet50": (8, 16),
        "tadaconvnext/k400_tiny": (16, 32),
        "tadaconvnext/k400_small": (16, 32),
        "tadaconvnext/k400_base": (16, 32),
        "tadaconvnext/k400_small-in21k": (32,),
        "tadaconvnext/k400_base-in21k": (32,),
        "tadaconvnext/ssv2_tiny": (16, 32),
        "tadaconvnext/ssv2_small": (16, 32),
        "tadaconvnext/ssv2_base": (16,),  # a recipe and no figure
        "tadaconvnext/ssv2_small-in21k": (32,),
        "tadaconvnext/ssv2_base-in21k": (32,),
    }
    experiments = {name_of(path) for path in EXPERIMENTS if path.parent.name in CONVOLUTIONAL}
    assert experiments == {f"{name}_{frames}f" for name in rows for frames in rows[name]}


@pytest.mark.parametrize("path", [path for path in EXPERIMENTS if path.parent.name in CONVOLUTIONAL], ids=name_of)
def test_recipes_of_convolutional_trunks_are_the_authors(path):
    """Weight decay and learning rate of every parameter, at any time, and the pictures."""
    data, backbone, frames = path.stem.split("_")
    recipe = f"tadaconvnextv2/tadaconvnextv2_{backbone}_{data}_{frames}"
    if path.parent.name == "tada2d":
        recipe = {"k400": "tada/k400/tada2d_8x8", "ssv2": "tada/ssv2/tada2d_8f"}[data]
        recipe = recipe if frames == "8f" else recipe.replace("8x8", "16x5").replace("8f", "16f")
    config, model = load_config(path), meta_model(path)
    rates, decays = figures("lr_schedule_tada"), figures("param_groups_tada")
    assert (recipe in rates) != ("not released" in path.read_text())
    for epoch, rate in rates.get(recipe, {}).items():
        assert learning_rate(float(epoch), config.train) == pytest.approx(rate, rel=1e-9)
    if recipe in decays:
        groups = parameter_groups(model.trainable_parameters(), config.train)
        ours = {name: (g["weight_decay"], g["lr_scale"]) for g in groups for name in g["names"]}
        authors = {name.replace("head.out", "head.fc"): tuple(value) for name, value in decays[recipe].items()}
        assert ours == authors
    assert model.spec.mean == (0.45, 0.45, 0.45) and model.spec.std == (0.225, 0.225, 0.225)
    assert (model.spec.image_size, config.clips["test_size"]) == (224, 256)
    assert config.train.optimizer == ("sgd" if path.parent.name == "tada2d" else "adamw")


def test_published_sizes_are_met():
    """Whole millions, which the authors give for 400 classes whatever the data set."""
    for name, text in published_sizes().items():
        model = meta_model(ROOT / f"configs/{name}.yaml")
        total, trained = millions(model.parameters()), millions(model.trainable_parameters().values())
        if "/ new 0" in text:  # ZeroI2V, after merging
            total -= millions(p for key, p in model.named_parameters() if "Adapter" in key)
            assert total == pytest.approx(int(text.split()[0]), abs=0.8)
        elif text:
            assert (total, trained) == pytest.approx(tuple(map(int, text.split("/"))), abs=0.8)


def published_sizes():
    """name of an experiment -> what the model zoo says of its parameters."""
    sizes = {}
    for line in find("model_zoo.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.sub(r"\(.*?\)", "", cells[0]).replace(";", ",").split(",")
        for name in map(str.strip, names):
            if name.startswith("_"):  # _32f: as the name before, but for the frames
                name = list(sizes)[-1].rpartition("_")[0] + name
            if re.fullmatch(r"\w+/\w+_vit-\S+", name):
                sizes[name] = cells[4]
    return sizes


@pytest.mark.parametrize("path", [path for path in AUTHORS if path.parent.name in ("dist", "tada")], ids=name_of)
def test_recipes_of_dist_and_tadaformer_are_the_authors(path):
    """Weight decay and learning rate of every parameter, at any time, for the files that the authors released."""
    data, backbone, frames = path.stem.split("_")
    if path.parent.name == "dist":
        from i2v.methods.dist import from_authors

        recipe, kind = f"dist/{data}/{backbone}-{frames}", "dist"
    else:
        from i2v.methods.tada import from_authors

        recipe, kind = f"tadaformer/tadaformer_{backbone.removeprefix('vit-')}_{data}_{frames}", "tada"
    rates, decays = figures(f"lr_schedule_{kind}"), figures(f"param_groups_{kind}")
    train, model = load_config(path).train, meta_model(path)
    assert (recipe in rates) != ("not released" in path.read_text())
    factor = 10 if kind == "dist" else 1  # on every parameter of DiST: part of our learning rate
    for epoch, rate in rates.get(recipe, {}).items():
        assert learning_rate(float(epoch), train) == pytest.approx(factor * rate, rel=1e-9)
    if recipe in decays:
        groups = parameter_groups(model.trainable_parameters(), train, layers_of(model))
        ours = {name: (g["weight_decay"], g["lr_scale"] * factor) for g in groups for name in g["names"]}
        authors = {from_authors(name): (wd, pytest.approx(lr, rel=1e-9)) for name, (wd, lr) in decays[recipe].items()}
        assert ours == authors


def test_recipes_of_aim_and_zeroi2v_decay_what_their_authors_decay():
    def without_decay(name):
        path = ROOT / f"configs/{name}.yaml"
        groups = parameter_groups(meta_model(path).trainable_parameters(), load_config(path).train)
        return {(name, group["lr_scale"]) for group in groups for name in group["names"] if not group["weight_decay"]}

    ln_post = {("backbone.ln_post.weight", 1), ("backbone.ln_post.bias", 1)}
    assert without_decay("aim/k400_vit-b16_32f") == ln_post
    assert without_decay("aim/k400_vit-l14_32f") == set()  # where the learning rate of the backbone is a tenth
    assert without_decay("zeroi2v/k400_vit-b16_16f") == ln_post | {("backbone.temporal_embedding", 1)}
