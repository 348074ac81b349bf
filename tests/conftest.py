"""Small data sets that many tests read, and what makes two runs of the suite the same: seeds, no time limits."""

import os
import random
import shutil
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch
from hypothesis import settings

from benchmarks.moving_shapes import write_videos
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.sources import load_sources

# A suite started in the background inherits that these are ignored, and so would the programs that it sends them to.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
torch.set_num_threads(1)  # small models on a shared machine: two threads would wait for each other
settings.register_profile("suite", derandomize=True, deadline=None)  # the same examples in every run, however slow
settings.load_profile("suite")


SLOW = frozenset(  # files of which most tests take long, or which have very many
    "anatomy append benchmarks damage dead_work decode encode every_config export factors features finite fuzz hub install"
    " job_arrays loader localise make_shards mixing moving_shapes orientation precision probe real_videos recipes report scores"
    " several step text_head train trunks tutorial".split()
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW or "compile" in item.name or "process" in item.keywords:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seeded():
    """A test that draws without a seed of its own draws the same in every run."""
    random.seed(0), np.random.seed(0), torch.manual_seed(0)


def shard(folder, out, **settings):
    """Shard a folder of class folders in this process."""
    videos, classes = load_sources(folder)
    return make_shards(videos, classes, out, EncodeSettings(**{"short_side": 48, **settings}), shard_clips=9)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Folder with videos of moving shapes, train/ (24) and val/ (16), and shards of them: vp9/, mjpeg/, vp9-val/."""
    root = tmp_path_factory.mktemp("shapes")
    write_videos(root, 3, frames=20, split="train")
    write_videos(root, 2, frames=20, split="val")
    shard(root / "train", root / "vp9")
    shard(root / "train", root / "mjpeg", codec="mjpeg")
    shard(root / "val", root / "vp9-val")
    return root


@pytest.fixture
def copy(shapes, tmp_path):
    """A copy of the shards vp9/, to be damaged."""
    return shutil.copytree(shapes / "vp9", tmp_path / "copy")
