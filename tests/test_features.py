"""Features: every window of every video once, with its times, the same on any number of ranks."""

import csv
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from i2v.config import load_config
from i2v.runtime import build_model
from i2v.vit import ViTSpec, VisionTransformer
from pipelines import build_loader
from tests.processes import LIMIT

ROOT = Path(__file__).parent.parent
GEOMETRY = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "heads": 4, "embed_dim": 32}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A plain CLIP."""
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    save_file(VisionTransformer(ViTSpec(**GEOMETRY)).state_dict(), folder / "clip.safetensors")
    values = {
        "model": {"method": "clip", "backbone": GEOMETRY, "weights": str(folder / "clip.safetensors"), "num_frames": 4},
        "data": {"train": "none"}, "train": {"epochs": 1, "batch_size": 8, "lr": 1e-3}, "clips": {"clips": 2, "crops": 3},
    }  # fmt: skip
    (folder / "clip.yaml").write_text(yaml.safe_dump(values))
    return folder / "clip.yaml"


def extract(config, data, out, *options, ranks=1):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launch, "-m", "i2v.features", "--config", str(config), "--data", str(data), "--out", str(out), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)


def table(out):
    with open(out / "features.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.process
def test_windows_cover_every_video_and_their_features_are_the_models(config, shapes, tmp_path):
    done = extract(config, shapes / "vp9-val", tmp_path, "--window", "0.4", "--hop", "0.2", "--batch-size", "5")
    assert done.returncode == 0 and "16 of 16 videos" in done.stdout, done.stderr
    rows = table(tmp_path)
    assert len(rows) == 16 and {row["class"] for row in rows} == {row["source"].split("/")[0] for row in rows}
    model, _ = build_model(load_config(config).model, ["x"])
    model.eval()
    loader = build_loader(shapes / "vp9-val", "windows", window=0.4, hop=0.2, batch_size=7, num_frames=4, size=32, device="cpu")
    expected = {row["key"]: [] for row in rows}
    for batch in loader:
        with torch.no_grad():
            features = model.forward_features(batch.clips)
        for clip, weight, feature in zip(batch.ids.tolist(), batch.weights.tolist(), features):
            if weight:
                expected[loader.shards.key(clip)].append(feature)
    for row in rows:
        features, times = np.load(tmp_path / f"{row['key']}.npy"), np.load(tmp_path / f"{row['key']}.times.npy")
        assert np.allclose(features, torch.stack(expected[row["key"]]), atol=1e-5)
        assert len(times) == len(features) == int(row["rows"])
        length = 20 / loader.shards.clips["fps"][0]
        assert np.allclose(times[:, 0], 0.2 * np.arange(len(times)))
        assert np.allclose(times[:, 1], np.minimum(times[:, 0] + 0.4, length))
        assert times[-1, 1] >= length - 1e-3 and (len(times) == 1 or times[-2, 1] < length)


@pytest.mark.process
def test_any_number_of_ranks_writes_the_same_shards(config, shapes, tmp_path):
    assert extract(config, shapes / "vp9-val", tmp_path / "one", "--format", "shards").returncode == 0
    assert extract(config, shapes / "vp9-val", tmp_path / "two", "--format", "shards", ranks=2).returncode == 0
    assert (tmp_path / "one" / "features.csv").read_bytes() == (tmp_path / "two" / "features.csv").read_bytes()
    one, two = ((tmp_path / name / "features-000000.tar").read_bytes() for name in ("one", "two"))
    assert one == two
    with tarfile.open(fileobj=io.BytesIO(one)) as archive:
        names = archive.getnames()
        key = table(tmp_path / "one")[0]["key"]
        assert len(names) == 48 and names[:3] == [f"{key}.npy", f"{key}.times.npy", f"{key}.json"]
        features = np.load(io.BytesIO(archive.extractfile(f"{key}.npy").read()))
    assert features.shape == (2, 64)  # two clips, averaged over crops
    assert extract(config, shapes / "vp9-val", tmp_path / "one", "--format", "shards").returncode == 0  # it is complete
    for other in ([shapes / "vp9-val", "--format", "npy"], [shapes / "vp9", "--format", "shards"]):
        done = extract(config, other[0], tmp_path / "one", *other[1:])
        assert done.returncode == 1 and "made otherwise" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.process
def test_unreadable_videos_are_named_and_left_out(config, shapes, tmp_path):
    import shutil

    from pipelines.shards import ShardSet

    shutil.copytree(shapes / "vp9-val", tmp_path / "data")
    shards = ShardSet(shapes / "vp9-val")
    clip = shards.clips[3]
    path = tmp_path / "data" / shards.manifest["shards"][int(clip["shard"])]["name"]
    content = bytearray(path.read_bytes())
    begin = int(clip["offset"] + clip["header_size"])
    content[begin : begin + 40] = bytes(40)
    path.write_bytes(content)
    done = extract(config, tmp_path / "data", tmp_path / "out")
    assert done.returncode == 1 and shards.key(3) in done.stderr
    assert [row["rows"] for row in table(tmp_path / "out")].count("unreadable") == 1
    assert not (tmp_path / "out" / f"{shards.key(3)}.npy").exists()


@pytest.mark.process
def test_a_model_that_must_be_trained_first_is_refused(config, shapes, tmp_path):
    values = yaml.safe_load(config.read_text())
    values["model"] |= {"method": "st_adapter", "options": {"adapter_width": 16}}
    (tmp_path / "st.yaml").write_text(yaml.safe_dump(values))
    done = extract(tmp_path / "st.yaml", shapes / "vp9-val", tmp_path / "out")
    assert done.returncode == 1 and "must be trained first" in done.stderr and "Traceback" not in done.stderr
