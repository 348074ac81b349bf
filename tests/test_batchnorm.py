"""Batch norms are torch's, alone or added together, compiled or not, and those of several processes see all their clips."""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn

from i2v.batchnorm import BatchNorm, normalised_sum, share_batchnorms

KEPT = ("running_mean", "running_var", "num_batches_tracked")
SIZES = (2, 1)  # clips of each process


def pair():
    torch.manual_seed(0)
    norms = nn.ModuleList([BatchNorm(6), BatchNorm(6)])
    for parameter in norms.parameters():
        nn.init.normal_(parameter)
    return norms


def seen(clips):
    torch.manual_seed(1)
    return [torch.randn(clips, 6, 4, 5, 5) * 3 + 10 for _ in range(2)], torch.randn(clips, 6, 4, 5, 5)


def results(norms, both, cotangent, total=normalised_sum):
    """Sum, gradients of what was seen and of the parameters, and what the norms collect, of two steps."""
    for _ in range(2):
        norms.zero_grad()
        xs = [x.clone().requires_grad_() for x in both]
        y = total((norms[0], xs[0]), (norms[1], xs[1]))
        y.backward(cotangent)
    kept = [getattr(norm, name).clone() for norm in norms for name in KEPT]
    return [y.detach()], [x.grad for x in xs], [p.grad for p in norms.parameters()], kept


def torchs(norms, both, cotangent):
    plain = nn.ModuleList([nn.BatchNorm3d(6), nn.BatchNorm3d(6)])
    plain.load_state_dict(norms.state_dict())
    return results(plain.train(norms[0].training), both, cotangent, lambda a, b: a[0](a[1]) + b[0](b[1]))


def assert_close(actual, expected, tolerance=1e-5):
    for a, e in zip(itertools.chain(*actual), itertools.chain(*expected), strict=True):
        torch.testing.assert_close(a, e, atol=tolerance * max(1.0, e.abs().max().item()), rtol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_sum_is_that_of_torchs_norms(training, compiled):
    both, cotangent = seen(3)
    total = torch.compile(normalised_sum, dynamic=False, fullgraph=True) if compiled else normalised_sum
    assert_close(results(pair().train(training), both, cotangent, total), torchs(pair().train(training), both, cotangent))


def test_one_value_a_channel_is_refused_by_torch_and_harms_nothing_that_is_compiled():
    norms = pair()
    xs = [torch.randn(1, 6, 1, 1, 1) for _ in range(2)]
    with pytest.raises(ValueError, match="more than 1 value"):
        normalised_sum((norms[0], xs[0]), (norms[1], xs[1]))
    torch.compile(normalised_sum, dynamic=False)((norms[0], xs[0]), (norms[1], xs[1]))
    assert all(torch.isfinite(buffer).all() for buffer in norms.buffers())


def on_rank(rank, folder, compiled):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(SIZES))
    both, cotangent = seen(sum(SIZES))
    own = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
    norms = pair()
    share_batchnorms(norms)
    total = torch.compile(normalised_sum, dynamic=False, fullgraph=True) if compiled else normalised_sum
    torch.save(results(norms, [x[own] for x in both], cotangent[own], total), folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.process
@pytest.mark.parametrize("compiled", [True, False])
def test_processes_see_each_others_clips(compiled, tmp_path):
    """As many clips as they like: what they give, and the gradients, are those of one process with all clips, and what they
    collect is the same everywhere."""
    torch.multiprocessing.spawn(on_rank, (tmp_path, compiled), nprocs=len(SIZES))
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(len(SIZES))]
    together = [torch.cat(parts) for parts in zip(*(rank[0] + rank[1] for rank in ranks))]
    parameters = [sum(parts) for parts in zip(*(rank[2] for rank in ranks))]
    both, cotangent = seen(sum(SIZES))
    expected = torchs(pair(), both, cotangent)
    assert_close((together[:1], together[1:], parameters, ranks[0][3]), expected)
    assert all(torch.equal(a, b) for a, b in zip(ranks[0][3], ranks[1][3]))
