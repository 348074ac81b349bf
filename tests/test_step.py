"""One step of training: what counts, how much, and which random numbers it gets."""

import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import i2v.feed as feed
import i2v.step as program
import i2v.train
import i2v.trainee
from i2v.config import TrainConfig
from i2v.distributed import World
from i2v.pipelines import ShardError
from i2v.saving import crosses
from i2v.step import Passes
from i2v.stop import Stopped
from tests.test_train import CPU, config, train  # noqa: F401  config is a fixture

CLIPS = torch.linspace(-1, 1, 8 * 3 * 2 * 4 * 4).view(8, 3, 2, 4, 4)
LABELS = torch.arange(8) % 4
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


class Small(torch.nn.Module):
    """Scores of 4 classes. seeds: torch's at every forward pass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.seeds = torch.nn.Linear(3 * 2 * 4 * 4, 4), []

    def forward(self, clips):
        self.seeds.append(torch.initial_seed())
        return self.linear(clips.flatten(1))

    def no_sync(self):
        return nullcontext()


def add_gradients(model, weights, passes=1, samples=0, world=CPU, clips=CLIPS, class_weights=None, **options):
    train = TrainConfig(batch_size=8, lr=1.0, epochs=1, **options)
    parts = zip(clips.chunk(passes), LABELS.chunk(passes), weights.chunk(passes), torch.arange(8).chunk(passes))
    batches = iter([SimpleNamespace(clips=c, labels=y, weights=w, ids=i, positions=i) for c, y, w, i in parts])
    passes = Passes(passes, 4, train, world, nullcontext, NO_SCALER, class_weights=class_weights)
    return program.add_gradients(model, batches, passes, samples)[0]


@pytest.mark.parametrize("passes", [1, 2, 4])
@pytest.mark.parametrize("out", [[], [0], [3, 5], [0, 1, 2, 3, 4, 5, 6]])
def test_clips_in_quarantine_count_for_nothing(passes, out):
    weights = torch.ones(8)
    weights[out] = 0
    model, expected = Small(), Small()
    totals = add_gradients(model, weights, passes)
    losses = F.cross_entropy(expected(CLIPS[weights > 0]), LABELS[weights > 0], reduction="sum")
    (losses / 8).backward()
    torch.testing.assert_close(totals, torch.stack((weights.sum(), losses.detach())))
    torch.testing.assert_close(model.linear.weight.grad, expected.linear.weight.grad)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
@pytest.mark.parametrize("out", [0, 3, 6])
def test_a_mixed_clip_whose_partner_is_in_quarantine_counts_for_nothing(options, out):
    """What is in quarantine may look like anything: the step is the same."""
    weights, found = torch.ones(8), []
    weights[out] = 0
    for spoilt in (CLIPS[out], torch.full_like(CLIPS[out], 1e3)):
        model, clips = Small(), CLIPS.clone()
        clips[out] = spoilt
        found.append((add_gradients(model, weights, clips=clips, **options), model.linear.weight.grad))
    assert found[0][0][0] == 6
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_dropout_is_drawn_anew_for_every_step_pass_and_rank_and_again_alike():
    def seeds(samples, rank, seed):
        model = Small()
        add_gradients(model, torch.ones(8), 4, samples, World(rank, 2, torch.device("cpu")), seed=seed)
        return model.seeds

    cases = list(itertools.product((0, 8, 16), (0, 1), (0, 1)))
    drawn = [seeds(*case) for case in cases]
    assert len({seed for each in drawn for seed in each}) == len(cases) * 4
    assert [seeds(*case) for case in cases] == drawn


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_mixing_does_not_depend_on_the_passes(options):
    """Nor on the ranks: who is mixed with whom, and how, is the same in every division of the batch."""
    found = []
    for passes in (1, 2, 4):
        model = Small()
        found.append((add_gradients(model, torch.ones(8), passes, **options), model.linear.weight.grad))
    for totals, grad in found[1:]:
        torch.testing.assert_close(totals, found[0][0])
        torch.testing.assert_close(grad, found[0][1])


def test_mixing_is_drawn_anew_for_every_step_and_alike_on_all_ranks(monkeypatch):
    drawn = []
    monkeypatch.setattr(program, "draw_mix", lambda train, draw: drawn.append(draw.random()))
    for rank, seed, samples in itertools.product((0, 1), (0, 1), (0, 8, 16)):
        add_gradients(Small(), torch.ones(8), 4, samples, World(rank, 2, torch.device("cpu")), seed=seed, mixup=0.8)
    half = len(drawn) // 2
    assert drawn[:half] == drawn[half:] and len(set(drawn)) == half == 6


def test_weights_of_classes_multiply_the_losses_of_their_clips():
    model, expected, class_weights = Small(), Small(), torch.tensor([0.5, 1.0, 2.0, 0.25])
    totals = add_gradients(model, torch.ones(8), 2, class_weights=class_weights)
    losses = F.cross_entropy(expected(CLIPS), LABELS, reduction="none") * class_weights[LABELS]
    losses.mean().backward()
    torch.testing.assert_close(totals, torch.stack((torch.tensor(8.0), losses.detach().sum())))
    torch.testing.assert_close(model.linear.weight.grad, expected.linear.weight.grad)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_classes_weigh_by_their_size_and_a_mean_clip_weighs_1(power):
    labels = np.repeat([0, 1, 3], [10, 40, 2])
    loader = SimpleNamespace(shards=SimpleNamespace(clips={"label": labels}, classes=["a", "b", "c", "d"]))
    weights = feed.class_weights(loader, power, torch.device("cpu"))
    assert weights[labels].mean().item() == pytest.approx(1) and weights[2] == 0
    assert (weights[0] / weights[1]).item() == pytest.approx(4**power)
    assert feed.class_weights(loader, 0.0, torch.device("cpu")) is None


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("what, raised, said", [(0, ShardError, "Another process|mine"), (1, Stopped, None)])
def test_what_happens_on_one_rank_ends_the_batches_of_all(monkeypatch, own, what, raised, said):
    """Each tells the others, and goes by what all say together."""

    def reading(loader):
        yield 0
        if own and what == 0:
            raise ShardError("mine")
        yield 1

    told, stop = [], SimpleNamespace(wanted=False)
    monkeypatch.setattr(feed, "any_of", lambda *flags: told.append(flags) or [len(told) == 2 and k == what for k in (0, 1)])
    batches = feed.together(None, stop, SimpleNamespace(reading=reading))
    assert next(batches) == 0
    stop.wanted = own and what == 1
    with pytest.raises(raised, match=said):
        next(batches)
    assert told == [(False, False), tuple(own and k == what for k in (0, 1))]


@pytest.mark.parametrize(
    "before, after, every, expected",
    [
        (0, 7, 8, False),
        (0, 8, 8, True),
        (1, 8, 8, True),
        (7, 8, 8, True),
        (8, 15, 8, False),
        (8, 16, 8, True),
        (8, 9, 8, False),
        (0, 24, 8, True),
        (23, 24, 24.0, True),
        (24, 47, 24.0, False),
        (0, 12, 12.5, False),
        (12, 13, 12.5, True),
    ],
)
def test_an_evaluation_is_due_when_its_border_is_reached_and_not_again_after_it(before, after, every, expected):
    assert crosses(before, after, every) == expected


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_the_mean_is_over_the_clips_that_count(config, tmp_path, monkeypatch, micro_batch):  # noqa: F811
    """In the gradient that the optimizer gets, and in the log: with two clips of the first batch in quarantine."""
    seen, grads, models = [], [], []
    build, make, together, read = i2v.trainee.build_model, i2v.trainee.build_optimizer, i2v.train.together, feed.build_loader

    def spoilt_loader(*args, **kwargs):
        loader = read(*args, **kwargs)
        loader._reader.refused.update((1, 6))  # as if the decoder had refused them
        return loader

    def recorded_optimizer(*args):
        optimizer = make(*args)
        optimizer.register_step_pre_hook(lambda *_: grads.append({n: p.grad.clone() for n, p in trained().items()}))
        return optimizer

    def trained():
        return models[0].trainable_parameters()

    def recorded(*args):
        for batch in together(*args):
            seen.append(batch)
            yield batch

    monkeypatch.setattr(feed, "build_loader", spoilt_loader)
    monkeypatch.setattr(i2v.trainee, "build_model", lambda *a: models.append(build(*a)[0]) or (models[0], "clip"))
    monkeypatch.setattr(i2v.trainee, "build_optimizer", recorded_optimizer)
    monkeypatch.setattr(i2v.train, "together", recorded)
    options = ["train.max_steps=1", "train.log_every=1", "data.val=null", "model.head={type: linear, dropout: 0}"]
    _, log = train(config, tmp_path, *options, f"train.micro_batch={micro_batch}", "train.lr=1e-30")
    clips, labels, weights = (torch.cat([getattr(batch, name) for batch in seen]) for name in ("clips", "labels", "weights"))
    assert weights.tolist() == [1, 0, 1, 1, 1, 1, 0, 1]
    loss = F.cross_entropy(models[0](clips[weights > 0]), labels[weights > 0])
    expected = dict(zip(trained(), torch.autograd.grad(loss, list(trained().values()), allow_unused=True)))
    assert log[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6)
