"""Linear probes: many heads at once are what each would be alone, and the best of them is a checkpoint like any other."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from i2v import evaluate, extraction, features, probe
from i2v.checkpoint import load_checkpoint
from i2v.config import ConfigError, load_config
from i2v.distributed import World
from i2v.heads import LinearHead
from i2v.hub import accuracy
from i2v.manyheads import Recipe, fold, standardisation, standardise, train_heads
from i2v.pipelines.shards import ShardError
from i2v.runs import Run
from tests.experiments import write_experiment
from tests.processes import call, forked
from tests.test_loader import damage

CPU = World(0, 1, torch.device("cpu"))
RECIPES = [Recipe(lr, decay) for lr in (3e-3, 1e-2, 0.1) for decay in (0.0, 0.3)]
GRID = ["probe.lr=[1e-2,1e-3]", "probe.weight_decay=[0,0.5]", "probe.epochs=3", "probe.batch_size=7"]


@pytest.fixture(scope="module")
def config(shapes, tmp_path_factory):
    """Zero-shot CLIP, as it is shipped; two clips of a video."""
    needed = {"epochs": 1, "batch_size": 1, "lr": 1.0}
    return write_experiment(tmp_path_factory.mktemp("probe"), shapes, {"method": "clip"}, needed, clips={"clips": 2})


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """The features, and the probe that made them."""
    out = tmp_path_factory.mktemp("made")
    return out, run(config, out, out / "features")


def run(config, out, features, *overrides):
    """What it says."""
    return "\n".join(probe.probe(load_config(config, [f"out={out}", *GRID, *overrides]), str(config), features, CPU))


def table(out):
    with open(out / "probe.csv", newline="") as file:
        return list(csv.DictReader(file))


def rows_and_labels(rows=50, width=12, classes=5):
    draw = torch.Generator().manual_seed(3)
    x, y = torch.randn(rows, width, generator=draw) * 3 + 1, torch.randint(classes, (rows,), generator=draw)
    return x, y, LinearHead(width, classes, 0.0)


# ---- many heads ----------------------------------------------------------------------------------------------------------


def test_a_head_of_many_is_the_same_alone():
    x, y, head = rows_and_labels()
    found, losses = train_heads(head, x, y, RECIPES, 4, 16, 7)
    assert found["fc.weight"].shape == (6, 5, 12) and len({float(loss) for loss in losses}) == 6
    for k, recipe in enumerate(RECIPES):
        alone, loss = train_heads(head, x, y, [recipe], 4, 16, 7)
        assert loss[0] == losses[k] and all(torch.equal(alone[name][0], found[name][k]) for name in found)
    other, _ = train_heads(head, x, y, RECIPES, 4, 16, 8)
    assert not torch.equal(other["fc.weight"], found["fc.weight"])


@pytest.mark.parametrize("batch_size", [16, 50, 1000])
def test_a_head_is_what_a_plain_loop_makes_of_it(batch_size):
    x, y, head = rows_and_labels()
    found, losses = train_heads(head, x, y, RECIPES, 3, batch_size, 7)
    recipe, draw, step = RECIPES[3], torch.Generator().manual_seed(7), 0
    plain = nn.Linear(12, 5)
    plain.load_state_dict(head.fc.state_dict())
    optimizer = torch.optim.AdamW([{"params": plain.weight, "weight_decay": 0.3}, {"params": plain.bias, "weight_decay": 0}])
    steps = 3 * -(-50 // batch_size)
    for _ in range(3):
        epoch = []
        for chosen in torch.randperm(50, generator=draw).split(batch_size):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * (1 + np.cos(np.pi * step / steps)) / 2
            each = F.cross_entropy(plain(x[chosen]), y[chosen], reduction="none")
            optimizer.zero_grad()
            each.mean().backward()
            optimizer.step()
            epoch += each.tolist()
            step += 1
    assert torch.allclose(found["fc.weight"][3], plain.weight, atol=1e-5) and not torch.equal(plain.weight, head.fc.weight)
    assert torch.allclose(found["fc.bias"][3], plain.bias, atol=1e-5)
    assert float(losses[3]) == pytest.approx(np.mean(epoch), rel=1e-5)


def test_one_that_diverges_spoils_no_other():
    x, y, head = rows_and_labels()
    found, losses = train_heads(head, x * 1e10, y, [Recipe(1e-3, 0.0), Recipe(1e38, 0.0)], 4, 16, 7)
    alone, _ = train_heads(head, x * 1e10, y, [Recipe(1e-3, 0.0)], 4, 16, 7)
    assert losses.isfinite().tolist() == [True, False] and torch.equal(found["fc.weight"][0], alone["fc.weight"][0])


def test_standardisation_is_folded_into_the_head(monkeypatch):
    monkeypatch.setattr("i2v.manyheads.ROWS", 7)
    x, _, _ = rows_and_labels()
    x[:, 4], x[:, 5] = 0.1, 0.0  # these do not vary, and 0.1 fifty times is not 5
    mean, std = standardisation(x)
    assert torch.allclose(mean, x.double().mean(0)) and torch.allclose(std[:4], x[:, :4].double().std(0, correction=0))
    assert std[4] == std[5] == 1
    seen = x.clone()
    standardise(seen, mean, std)
    assert seen.mean(0).abs().max() < 1e-6 and torch.allclose(seen.std(0, correction=0)[6:], torch.ones(6))
    weight, bias = torch.randn(3, 5, 12), torch.randn(3, 5)
    raw = fold(weight, bias, mean, std)
    for k in range(3):
        assert torch.allclose(F.linear(x, raw[0][k], raw[1][k]), F.linear(seen, weight[k], bias[k]), atol=1e-5)


# ---- from a configuration to a checkpoint --------------------------------------------------------------------------------


def test_the_best_is_a_checkpoint_whose_evaluation_is_its_row(made, tmp_path, monkeypatch):
    out, said = made
    rows, about = table(out), json.loads((out / "probe.json").read_text())
    assert [(row["lr"], row["weight_decay"]) for row in rows] == [
        (lr, decay) for lr in ("0.01", "0.001") for decay in ("0", "0.5")
    ]
    assert max(rows, key=lambda row: (float(row["top1"]), -float(row["cross_entropy"]))) == rows[about["chosen"]]
    assert [line.split()[-1] == "best" for line in said.splitlines()[1:5]] == [k == about["chosen"] for k in range(4)]
    call(monkeypatch, evaluate, "--checkpoint", out, "--batch-size", 3, "--device", "cpu", "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {name: float(rows[about["chosen"]][name]) for name in probe.FIGURES} == pytest.approx(
        {name: scores[name] for name in probe.FIGURES}, abs=1e-5
    )
    tensors, meta = load_checkpoint(out)
    assert tensors.keys() == {"head.fc.weight", "head.fc.bias"} and meta.config["model"]["head"]["type"] == "linear"
    assert meta.scores["counted"] == meta.scores["expected"] == 16
    assert accuracy(Run("made"), meta).endswith("on 16 of 16 validation videos, 2 clips x 1 crops.")  # of the model card


def test_features_that_are_there_are_taken_and_the_seed_decides_the_rest(config, made, tmp_path, monkeypatch):
    """Whoever made them, in either format."""
    elsewhere = config.parent / ".." / config.parent.name / config.name  # its name is none of what features depend on
    data = load_config(config).data
    for split, place in (("train", data.train), ("val", data.val)):
        to = ("--out", tmp_path / "tars" / split, "--format", "shards", "--device", "cpu")
        call(monkeypatch, features, "--config", elsewhere, "--data", place, *to)
    passes = []
    monkeypatch.setattr(extraction, "features_of_parts", lambda model, loader, parts, autocast: passes.append(parts) or [])
    first = (made[0] / "best.safetensors").read_bytes()
    for name, place in (("again", made[0] / "features"), ("tars", tmp_path / "tars")):
        run(config, tmp_path / name, place, f"out={made[0]}")  # the name of the folder is in the file
        assert (made[0] / "best.safetensors").read_bytes() == first
    run(config, tmp_path / "other", made[0] / "features", "train.seed=1")
    assert passes == 6 * [[]]
    here, there = (load_checkpoint(each)[0]["head.fc.weight"] for each in (made[0], tmp_path / "other"))
    assert not torch.equal(here, there)


def test_videos_that_cannot_be_read_are_counted_and_nothing_moves_up_in_their_place(config, made, shapes, tmp_path):
    shutil.copytree(shapes / "vp9-val", tmp_path / "data")
    damage(tmp_path / "data", 3)
    shutil.copytree(made[0] / "features" / "train", tmp_path / "features" / "train")
    said = run(config, tmp_path / "out", tmp_path / "features", f"data.val={tmp_path}/data")
    assert "counted 15 of 16 videos" in said and "1 videos of data.val could not be read and count for nothing" in said
    val = probe.Clips(probe.open_clips(*opened(config), str(tmp_path / "data")), tmp_path / "features" / "val", CPU.device)
    whole = probe.Clips(probe.open_clips(*opened(config), str(shapes / "vp9-val")), made[0] / "features" / "val", CPU.device)
    kept = [i for i in range(16) if i != 3]
    assert val.ids.tolist() == kept and torch.equal(val.labels, whole.labels[kept])
    assert torch.allclose(val.features, whole.features[kept], atol=1e-6)


def opened(config):
    config = load_config(config)
    return config, probe.session_of(config, "", "")


def test_a_head_without_numbers_is_never_the_best(config, made, tmp_path):
    said = run(config, tmp_path, made[0] / "features", "probe.lr=[1e38,1e-3]", "probe.weight_decay=[1e38,0]", "probe.epochs=9")
    rows = table(tmp_path)
    assert [row["loss"] == "" for row in rows] == [row["top1"] == "" for row in rows] and rows[0]["loss"] == ""
    best = json.loads((tmp_path / "probe.json").read_text())["chosen"]
    assert rows[best]["loss"] and said.splitlines()[1].split()[-1] == "diverged"
    with pytest.raises(FloatingPointError, match="no head has come to finite numbers: give lower"):
        run(config, tmp_path, made[0] / "features", "probe.lr=[1e38]", "probe.weight_decay=[1e38]")


def test_a_rate_at_the_end_of_the_list_and_crops_are_remarked_on(config, made, tmp_path):
    assert "of probe.lr: try others beyond it" in made[1] and "crops" not in made[1]
    said = run(config, tmp_path, tmp_path / "features", "clips.crops=3", "clips.clips=1", "probe.lr=[1e-2]")
    assert "averaged over crops" in said and "beyond" not in said


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["data.val=null"], "data.val is None: to probe, give it one folder"),
        (["data.train=[{path: a, weight: 1}]"], "to probe, give it one folder"),
        (["model.method=st_adapter"], r"must be trained first \(.*adapter.*\): probe a trunk that needs none"),
        (["clips.clips=3"], "holds features that were made otherwise"),
        (["data.val=VIDEOS"], r"manifest\.json does not exist"),
    ],
)
def test_what_is_wrong_is_one_sentence(config, made, tmp_path, overrides, said):
    with pytest.raises((ValueError, ShardError), match=said) as raised:
        run(config, tmp_path / "out", made[0] / "features", *(text.replace("VIDEOS", str(tmp_path)) for text in overrides))
    assert "\n" not in str(raised.value) and not (tmp_path / "out" / "best.safetensors").exists()


def test_a_training_is_not_written_over(config, made, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "last.safetensors")
    with pytest.raises(ValueError, match="is the folder of a training"):
        run(config, tmp_path, made[0] / "features")


@pytest.mark.parametrize("value", ["1e-3", "[]", "[1e-3,0.001]", "[1e-3,-1]", "[0]", "[true]", "[x]", "[.inf]"])
def test_rates_are_different_numbers(config, value):
    with pytest.raises(ConfigError, match="probe.lr is .* it must be a list of different numbers more than 0"):
        load_config(config, [f"probe.lr={value}"])


@pytest.mark.process
def test_two_ranks_come_to_the_same_head(config, made, tmp_path):
    first = (made[0] / "best.safetensors").read_bytes()
    arguments = ("--config", config, "--features", tmp_path / "features", f"out={made[0]}", *GRID)
    done = forked(2, "-m", "i2v.probe", *arguments)
    assert done.returncode == 0 and done.stdout.count("best by top1 of 4 heads") == 1, done.stderr
    assert (made[0] / "best.safetensors").read_bytes() == first
