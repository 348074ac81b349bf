"""What a launcher says is complete, or one sentence: nobody waits for processes that nobody starts."""

import pytest
import torch

from i2v.distributed import VARIABLES, World, init_world, told_by_launcher

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    for name in (*VARIABLES, "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)

    def say(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return say


def test_without_a_launcher_there_is_one_process(environment):
    assert init_world("cpu") == World(0, 1, torch.device("cpu"))
    environment(WORLD_SIZE="1", RANK="0")  # as some images and schedulers have it
    assert init_world("cpu") == World(0, 1, torch.device("cpu"))


def test_all_of_it_is_taken(environment):
    environment(**WHOLE, LOCAL_RANK="1")
    assert told_by_launcher() == (1, 2, 1)


@pytest.mark.parametrize("missing", sorted(WHOLE))
def test_what_is_missing_is_named(missing, environment):
    environment(**{name: value for name, value in WHOLE.items() if name != missing})
    with pytest.raises(ValueError, match=f"but not {missing}: start it with torchrun, .* or unset RANK and WORLD_SIZE"):
        init_world("cpu")


@pytest.mark.parametrize("values, said", [({"RANK": "2"}, "RANK=2 of WORLD_SIZE=2"), ({"RANK": "first"}, "RANK is 'first'")])
def test_what_cannot_be_is_named(values, said, environment):
    environment(**(WHOLE | values))
    with pytest.raises(ValueError, match=said):
        init_world("cpu")
