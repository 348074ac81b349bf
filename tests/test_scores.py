"""Scores of every video: what is stored is what was counted, and what is made of it is right."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from i2v import evaluate
from i2v.pipelines.shards import ShardSet
from i2v.scores import VideoScores, calibration, ensemble, load_scores, paired_bootstrap, wilson
from tests.processes import call
from tests.test_evaluate import checkpoint, command  # noqa: F401 (a fixture)


def made_up(n=60, classes=4, seed=0, how=None):
    """Scores of n videos, right more often than not."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    logits = torch.randn(n, classes, generator=generator) + 2 * torch.nn.functional.one_hot(labels, classes)
    names = [f"class {i}" for i in range(classes)]
    keys, paths = [f"{i:06d}" for i in range(n)], [f"videos/{i}.mp4" for i in range(n)]
    return VideoScores(torch.arange(n), labels, logits.softmax(-1), keys, paths, names, n, how or {"model": f"seed {seed}"})


@pytest.mark.process
def test_stored_scores_are_those_that_were_counted_on_any_number_of_ranks(checkpoint, shapes, tmp_path):  # noqa: F811
    for ranks in (1, 2):
        out = ("--scores", tmp_path / f"{ranks}.npz", "--json", tmp_path / f"{ranks}.json", "--batch-size", 3)
        done = command("i2v.evaluate", "--checkpoint", checkpoint, *out, ranks=ranks)
        assert done.returncode == 0, done.stderr
    one, two = (load_scores(tmp_path / f"{ranks}.npz") for ranks in (1, 2))
    assert one.keys == two.keys and one.paths == two.paths and torch.equal(one.ids, two.ids)
    assert torch.equal(one.probabilities, two.probabilities) and torch.equal(one.labels, two.labels)
    shards = ShardSet(shapes / "vp9-val")
    assert one.ids.tolist() == list(range(16)) and one.labels.tolist() == shards.clips["label"].tolist()
    assert all(path.startswith(shards.classes[label] + "/") for path, label in zip(one.paths, one.labels))
    again = command("i2v.evaluate", "--from-scores", tmp_path / "1.npz", "--json", tmp_path / "again.json")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads((tmp_path / "1.json").read_text())


def test_a_label_that_a_model_rules_out_costs_what_a_float_can_tell():
    """Not infinity, which would be the mean of all."""
    found = made_up(n=4)
    found.probabilities[0] = torch.eye(4)[1]
    others = -found.probabilities[torch.arange(1, 4), found.labels[1:]].double().log().sum().item()
    assert found.labels[0] == 0 and found.scores().cross_entropy == pytest.approx((others - np.log(1e-38)) / 4, rel=1e-5)


def test_an_ensemble_is_the_mean_of_what_was_asked_for():
    a, b = made_up(seed=0), made_up(seed=1)
    assert torch.allclose(ensemble([a, b]).probabilities, (a.probabilities + b.probabilities) / 2)
    product = (a.probabilities * b.probabilities).sqrt()
    assert torch.allclose(ensemble([a, b], "logits").probabilities, product / product.sum(1, keepdim=True), atol=1e-6)
    assert ensemble([a]) is a
    with pytest.raises(ValueError, match="seed 0 and seed 2 were not scored on the same videos"):
        ensemble([a, made_up(seed=2, n=59)])


def test_an_ensemble_of_several_classes_is_one_of_each_for_itself_without_labels_as_well():
    """Test sets have no labels: whether probabilities are of several classes is then only known from the model."""
    a, b = (made_up(seed=seed, how={"model": "m", "several": True}) for seed in (0, 1))
    shares = [torch.rand(60, 4) for _ in range(2)]
    hidden, shown = (
        [replace(each, labels=labels, probabilities=share) for each, share in zip((a, b), shares)]
        for labels in (torch.full((60,), -1), torch.ones(60, 4, dtype=torch.uint8))
    )
    assert torch.equal(ensemble(hidden, "logits").probabilities, ensemble(shown, "logits").probabilities)


def test_the_calibration_error_is_that_of_its_definition():
    # Ten videos at 0.9 of which nine are right are calibrated; ten at 0.6 of which none is right are 0.6 off.
    probabilities = torch.tensor([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    labels = torch.tensor([0] * 9 + [1] + [1] * 10)
    videos = VideoScores(torch.arange(20), labels, probabilities, [""] * 20, [""] * 20, ["a", "b"], 20)
    found = calibration(videos)
    assert found["ece"] == pytest.approx(0.3, abs=1e-6) and sum(found["count"]) == 20
    assert [round(a, 2) for a in found["accuracy"] if a is not None] == [0.0, 0.9]
    assert videos.summary()["class_mean"] == pytest.approx((1 + 0) / 2)


def test_intervals_are_those_of_the_textbook():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(0, 20)[0] == pytest.approx(0, abs=1e-9) and wilson(0, 0) == (0.0, 1.0)


def test_a_difference_by_chance_is_told_from_one_that_is_not():
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(1000, generator=generator) < 0.7
    same = paired_bootstrap(before, before[torch.randperm(1000, generator=generator)])
    assert same["difference"] == 0 and same["low"] < 0 < same["high"] and same["p"] > 0.5
    after = before | (torch.rand(1000, generator=generator) < 0.2)
    better = paired_bootstrap(before, after)
    assert 0 < better["low"] < better["difference"] < better["high"] and better["p"] < 0.001
    assert better["difference"] == pytest.approx((after.float() - before.float()).mean().item())


@pytest.mark.parametrize("content", [b"", b"no scores", "npz"])
def test_a_file_without_scores_is_one_sentence(content, tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.zeros(3)) if content == "npz" else path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"i2v.evaluate: .*x.npz holds no scores"):
        call(monkeypatch, evaluate, "--from-scores", path)
    with pytest.raises(ValueError, match="does not exist"):
        load_scores(tmp_path / "none.npz")


def test_scores_that_do_not_fit_together_or_cannot_be_written(tmp_path, monkeypatch):
    videos = made_up()
    videos.save(tmp_path / "a.npz")
    assert torch.equal(load_scores(tmp_path / "a.npz").probabilities, videos.probabilities)
    videos.keys.pop()
    videos.save(tmp_path / "b.npz")
    with pytest.raises(ValueError, match="its parts do not fit together"):
        load_scores(tmp_path / "b.npz")
    with pytest.raises(SystemExit, match="none does not exist: --scores needs a folder"):
        call(monkeypatch, evaluate, "--from-scores", tmp_path / "a.npz", "--scores", tmp_path / "none" / "c.npz")
    with pytest.raises(OSError, match="cannot be written"):
        made_up().save(tmp_path / "none" / "c.npz")
