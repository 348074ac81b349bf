"""Our step equals the step as a paper prints it, with torch's own modules, on the same parameters."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import step

SMALL = SimpleNamespace(layers=2, width=256, size=32, clips=2, rounds=1)
CPU = torch.device("cpu")


@pytest.mark.parametrize("method", step.METHODS)
def test_our_step_equals_the_printed_one(method):
    assert step.check(method, SMALL, CPU) < 1e-4


def test_a_step_that_differs_is_refused(monkeypatch):
    monkeypatch.setattr(step, "st_adapter", lambda block, attn, x, frames: x + attn(block.ln_1(x)))
    with pytest.raises(ValueError, match="st_adapter: our step and the reference differ by"):
        step.check("st_adapter", SMALL, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_are_timed_in_turns(dtype):
    found = step.compare("aim", SMALL, CPU, dtype, compiled=False)
    assert found["times"] == found["reference"]["median"] / found["ours"]["median"] > 0
