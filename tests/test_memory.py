"""Memory that does not suffice is a sentence with a remedy: beforehand where that can be counted, else when it runs out."""

import re
from dataclasses import replace

import pytest
import torch

from i2v import memory
from i2v import train as train_module
from i2v.config import TrainConfig
from i2v.model import create_model
from tests.processes import call
from tests.test_train import CPU, GEOMETRY, config, train  # noqa: F401  a fixture

TRAIN = TrainConfig(epochs=1, batch_size=16, lr=1.0)
MODEL = {"method": "st_adapter", "backbone": GEOMETRY, "num_frames": 4, "num_classes": 8, "adapter_width": 16}


@pytest.mark.parametrize("method", ["st_adapter", "aim", "zeroi2v"])
def test_what_is_counted_is_what_a_step_keeps(method):
    arguments = {**MODEL, "method": method}
    if method != "st_adapter":
        del arguments["adapter_width"]
    model, kept = create_model(**arguments).train(), {}
    own = {tensor.data_ptr() for tensor in model.parameters()}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = model.forward_features(torch.randn(1, 3, 4, 32, 32))
    real = sum(storage.nbytes() for place, storage in kept.items() if place not in own)
    features.sum().backward()
    assert 0.9 * real <= memory.kept_per_clip(arguments) <= 1.2 * real  # attention keeps other things there


def test_a_text_head_is_counted_without_its_text():
    assert memory.kept_per_clip({**MODEL, "head": {"type": "text"}}) > 0


def test_what_does_not_fit_is_told_with_what_does(monkeypatch):
    per_clip = memory.kept_per_clip(MODEL)
    monkeypatch.setattr(memory, "available", lambda: 5 * per_clip + 1)
    assert memory.too_little_memory(TRAIN, 5, 1, MODEL, 1) is None
    line = memory.too_little_memory(TRAIN, 6, 1, MODEL, 1)
    assert "WARNING: a forward pass of 6 clips keeps about" in line and "set train.micro_batch=4," in line
    assert "set train.micro_batch=2," in memory.too_little_memory(TRAIN, 5, 1, MODEL, 2)  # two processes share the machine
    assert memory.too_little_memory(replace(TRAIN, recompute="half"), 6, 1, MODEL, 1) is None
    monkeypatch.setattr(memory, "available", lambda: per_clip - 1)
    assert "train.recompute=all" in memory.too_little_memory(TRAIN, 1, 1, MODEL, 1)
    monkeypatch.setattr(memory, "available", lambda: None)  # a kernel that does not say
    assert memory.too_little_memory(TRAIN, 10**9, 1, MODEL, 1) is None


@pytest.mark.parametrize("group", [1, 2, 4])
def test_what_is_advised_a_run_takes(monkeypatch, group):
    """Where clips are mixed, a pass is a multiple of those that are mixed with each other."""
    per_clip = memory.kept_per_clip(MODEL)
    for clips in range(group, 30, group):
        monkeypatch.setattr(memory, "available", lambda: clips * per_clip - 1)
        for line in memory.out_of_memory(TRAIN, clips, group), memory.too_little_memory(TRAIN, clips, group, MODEL, 1):
            advised = re.search(r"set train.micro_batch=(\d+)", line)
            assert advised or f"train.micro_batch is {group} already" in line
            assert not advised or 0 < int(advised[1]) < clips and int(advised[1]) % group == 0


def test_this_machine_says_what_it_has():
    assert memory.available() > 2**20


@pytest.mark.parametrize(
    "error, fits",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_errors_that_say_so(error, fits):
    assert memory.is_out_of_memory(error) is fits


def test_a_run_that_is_out_of_memory_ends_in_one_sentence(config, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(train_module, "take_step", lambda *_: torch.empty(2**58))  # the allocator's own error
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, train_module, "--config", config, f"out={tmp_path}", "data.val=null")
    said = "i2v.train: Out of memory with 8 clips per device and forward pass: set train.micro_batch=4 (a step stays one of 8"
    assert str(ended.value).startswith(said) and "\n" not in str(ended.value)
    with pytest.raises(MemoryError, match="micro_batch is 1 already, so set train.recompute=all"):
        train(config, tmp_path / "one", "data.val=null", "train.micro_batch=1")


def test_an_error_of_another_kind_stays_what_it_is(config, tmp_path, monkeypatch):  # noqa: F811
    def broken(*_):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(train_module, "take_step", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(config, tmp_path, "data.val=null")


def test_the_start_says_what_does_not_fit(config, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(memory, "available", lambda: 1)
    train(config, tmp_path, "data.val=null", "train.max_steps=1")
    assert "WARNING: a forward pass of 8 clips keeps about" in capsys.readouterr().err
    monkeypatch.undo()
    train(config, tmp_path / "again", "data.val=null", "train.max_steps=1")
    assert "keeps about" not in capsys.readouterr().err
