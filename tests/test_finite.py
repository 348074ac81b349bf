"""A loss or gradient that is not finite: the step is not taken, its clips are written down, three in a row end the run."""

import csv
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import i2v.train as program
from i2v.checkpoint import Backbone, Meta, load_checkpoint, not_finite, save_state
from i2v.finite import Guard, Seen, TooManyBadSteps
from i2v.progress import Progress
from tests.test_recipes import TADA
from tests.test_train import CPU, assert_same, config, result, train  # noqa: F401  config is a fixture

OPTIONS = [*TADA, "train.ema=0.9", "train.log_every=1", "train.micro_batch=4", "data.val=null"]


def spoilt(monkeypatch, steps, what="clip"):
    """Put a NaN into one clip of the second pass, or into one gradient, of these steps. Returns (step, id) of the clips."""
    together, finish, spoilt_clips, step = program.together, program.take_step.__globals__["finish_gradients"], [], [0]

    def batches(*args):
        for number, batch in enumerate(together(*args)):
            if what == "clip" and step[0] + 1 in steps and number % 2:
                batch.pixels = batch.pixels.clone()
                batch.pixels[1, :, 2, 3, 4] = float("nan")
                spoilt_clips.append((step[0] + 1, batch.ids[1].item()))
            yield batch

    def gradients(optimizer, *rest):
        if what == "gradient" and step[0] + 1 in steps:
            optimizer.param_groups[0]["params"][-1].grad.view(-1)[0] = float("inf")
        return finish(optimizer, *rest)

    found = program.learning_rate

    def learning_rate(epoch, recipe):
        step[0] = round(epoch * 3)  # 3 steps an epoch
        return found(epoch, recipe)

    monkeypatch.setattr(program, "together", batches)
    monkeypatch.setattr(program, "learning_rate", learning_rate)
    monkeypatch.setitem(program.take_step.__globals__, "finish_gradients", gradients)
    return spoilt_clips


def rows(out):
    with open(out / "nonfinite.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("what", ["clip", "gradient"])
def test_a_bad_step_changes_nothing_and_its_clips_are_written_down(config, tmp_path, monkeypatch, what, capfd):  # noqa: F811
    """Weights, optimizer, average, batch norms' statistics: all as before it, and the run goes on to the same place in the
    data. Stopped after the bad step and continued it is the same run."""
    before = train(config, tmp_path / "before", *OPTIONS, "train.max_steps=4")[0]
    clips = spoilt(monkeypatch, {5}, what)
    train(config, tmp_path / "run", *OPTIONS, "train.max_steps=5")
    tensors, meta = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert meta.progress["step"] == 5 and meta.progress["bad_in_a_row"] == 1 and meta.progress["good"] == [4, 32]
    assert tensors.keys() == before.keys() and all(torch.equal(tensors[name], before[name]) for name in before)
    found = rows(tmp_path / "run")
    assert {row["step"] for row in found} == {"5"} and {row["what"] for row in found} == {"loss" if what == "clip" else what}
    if what == "clip":  # batch norms spread it over the forward pass that it was in
        assert len(found) == 4 and str(clips[0][1]) in {row["id"] for row in found}
    else:
        assert len(found) == 8
    assert all(32 <= int(row["position"]) < 40 and row["key"] for row in found)
    assert f"WARNING: step 5 is not taken: its {found[0]['what']} is not finite" in capfd.readouterr().err
    again = train(config, tmp_path / "run", *OPTIONS)
    whole = train(config, tmp_path / "whole", *OPTIONS)
    assert again[0].keys() == whole[0].keys() and all(torch.equal(again[0][name], whole[0][name]) for name in whole[0])
    logs = [[record for record in log if record["step"] > 5] for _, log in (again, whole)]
    assert logs[0] == logs[1] and [record["step"] for record in whole[1]] == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]
    assert rows(tmp_path / "whole") == found and not not_finite(again[0])


def test_only_the_clip_itself_is_written_down_where_nothing_spreads_it(config, tmp_path, monkeypatch):  # noqa: F811
    clips = spoilt(monkeypatch, {2})
    train(config, tmp_path, "train.micro_batch=4", "data.val=null", "train.max_steps=3")
    assert [(int(row["step"]), int(row["id"])) for row in rows(tmp_path)] == clips and len(clips) == 1


@pytest.mark.parametrize("resumed", [False, True])
def test_so_many_in_a_row_end_the_run_with_its_state_from_before_them(config, tmp_path, monkeypatch, resumed):  # noqa: F811
    """Also when it was stopped and continued among them; and the cause removed, the run goes on as if nothing had been."""
    whole = train(config, tmp_path / "whole", *OPTIONS)
    with monkeypatch.context() as patched:
        spoilt(patched, {3, 5, 6, 7, 8, 9})
        if resumed:
            train(config, tmp_path / "run", *OPTIONS, "train.max_steps=6")
        with pytest.raises(FloatingPointError, match="3 steps in a row up to step 7 .* kept as it was after step 4"):
            train(config, tmp_path / "run", *OPTIONS)
    tensors, meta = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert meta.progress["step"] == 4 and meta.progress["samples"] == 32 and not not_finite(tensors)
    assert sorted({int(row["step"]) for row in rows(tmp_path / "run")}) == [3, 5, 6, 7]
    with monkeypatch.context() as patched:
        spoilt(patched, {3})
        whole = train(config, tmp_path / "whole3", *OPTIONS)
    again = train(config, tmp_path / "run", *OPTIONS)
    if not resumed:  # what was not continued in between has no record of it in its log
        assert_same(again, whole)
    assert all(torch.equal(again[0][name], whole[0][name]) for name in whole[0])


@pytest.mark.parametrize("what", ["the loss", "head.fc.bias"])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, what):
    path, nan = tmp_path / "last.safetensors", float("nan")
    for step, bad in ((1, ""), (2, what)):
        tensors = {"head.fc.bias": torch.full((2,), nan if bad == "head.fc.bias" else 1.0)}
        progress = {"step": step, "loss": nan if bad == "the loss" else 1.0}
        meta = Meta({}, Backbone({}, "random", None), ["a"], progress=progress)
        with pytest.raises(FloatingPointError, match=f"After step 2 {what} is not finite") if bad else nullcontext():
            save_state(path, tensors, meta, CPU)
    assert load_checkpoint(path)[1].progress["step"] == 1


def test_the_device_refuses_what_the_host_has_not_seen_yet(tmp_path):
    """However late the host looks: after the third bad step nothing is taken any more. In fp16 a gradient that is too large
    is the scaler's matter, until there is no scale left."""
    progress, said = Progress(step=10, samples=80), []
    guard = Guard(tmp_path / "bad.csv", 3, progress, torch.device("cpu"), str, said.append)
    seen = [Seen(torch.tensor([80, 81]), torch.tensor([7, 8]), torch.tensor([True, False]))]
    fine, bad, one, large = torch.tensor(1.0), torch.tensor(float("nan")), torch.tensor(1.0), torch.tensor(2.0)

    def judge(loss, norm, scale=None):
        taken = guard.judge(loss, norm, scale, seen).item()
        progress.step, progress.samples = progress.step + 1, progress.samples + 8
        return taken

    assert not judge(bad, fine) and judge(fine, fine) and not judge(fine, bad, large) and not judge(fine, bad, one)
    guard.look(8, everything=True)
    assert (progress.bad_in_a_row, progress.good) == (1, [13, 104]) and len(said) == 2
    assert not judge(fine, bad) and not judge(fine, bad, large)  # which counts neither way
    assert not judge(bad, bad) and not judge(fine, fine) and not judge(fine, fine)
    with pytest.raises(TooManyBadSteps, match="3 steps in a row up to step 17 "):
        guard.look(8, everything=True)
    assert (progress.step, progress.samples, progress.bad_in_a_row) == (13, 104, 0)
    lines = (tmp_path / "bad.csv").read_text().splitlines()
    assert lines == [
        "step,position,id,key,what",
        "11,81,8,8,loss",
        "14,80,7,7,gradient",
        "14,81,8,8,gradient",
        "15,80,7,7,gradient",
        "15,81,8,8,gradient",
        "17,81,8,8,loss",
    ]
    again = Guard(tmp_path / "bad.csv", 3, Progress(step=10), torch.device("cpu"), str, said.append)
    again._write_down(SimpleNamespace(step=11, seen=seen), "loss")
    assert (tmp_path / "bad.csv").read_text().splitlines() == lines  # a continued run comes to the same step again
