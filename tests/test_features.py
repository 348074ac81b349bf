"""Features: every window of every video once, with its times, the same on any number of ranks."""

import csv
import io
import json
import shutil
import tarfile
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from i2v import extraction, featurefiles, features
from i2v.checkpoint import Meta, save_checkpoint
from i2v.config import load_config
from i2v.distributed import World
from i2v.metrics import probabilities_of
from i2v.pipelines import build_loader
from i2v.pipelines.loader import Loader
from i2v.pipelines.reader import Reader
from i2v.pipelines.shards import ShardSet
from i2v.rows import Rows, by_kind
from i2v.session import build_model, describe_backbone, own_tensors
from tests.experiments import write_experiment
from tests.processes import call, forked
from tests.test_loader import damage

GEOMETRY = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "heads": 4, "embed_dim": 32}


@pytest.fixture(scope="module")
def config(shapes, tmp_path_factory):
    """A plain CLIP."""
    model, clips = {"method": "clip", "backbone": GEOMETRY, "num_frames": 4}, {"clips": 2, "crops": 3}
    return write_experiment(tmp_path_factory.mktemp("features"), shapes, model, {"epochs": 1, "lr": 1e-3}, clips=clips)


def extract(config, data, out, *options, ranks=1):
    return forked(ranks, "-m", "i2v.features", "--config", config, "--data", data, "--out", out, *options)


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
            made = model.forward_features(batch.clips)
        for clip, weight, feature in zip(batch.ids.tolist(), batch.weights.tolist(), made):
            if weight:
                expected[loader.shards.key(clip)].append(feature)
    for row in rows:
        found, times = np.load(tmp_path / f"{row['key']}.npy"), np.load(tmp_path / f"{row['key']}.times.npy")
        assert np.allclose(found, torch.stack(expected[row["key"]]), atol=1e-5)
        assert len(times) == len(found) == int(row["rows"])
        length = 20 / loader.shards.clips["fps"][0]
        assert np.allclose(times[:, 0], 0.2 * np.arange(len(times)))
        assert np.allclose(times[:, 1], np.minimum(times[:, 0] + 0.4, length))
        assert times[-1, 1] >= length - 1e-3 and (len(times) == 1 or times[-2, 1] < length)


@pytest.mark.process
def test_any_number_of_ranks_writes_the_same_shards(config, shapes, tmp_path):
    assert extract(config, shapes / "vp9", tmp_path / "one", "--format", "shards").returncode == 0
    assert extract(config, shapes / "vp9", tmp_path / "two", "--format", "shards", ranks=2).returncode == 0
    assert (tmp_path / "one" / "features.csv").read_bytes() == (tmp_path / "two" / "features.csv").read_bytes()
    for part in ("features-000000.tar", "features-000001.tar"):  # one of each rank
        assert (tmp_path / "one" / part).read_bytes() == (tmp_path / "two" / part).read_bytes()
    one = (tmp_path / "one" / "features-000000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(one)) as archive:
        names = archive.getnames()
        key = table(tmp_path / "one")[0]["key"]
        assert len(names) == 48 and names[:3] == [f"{key}.npy", f"{key}.times.npy", f"{key}.json"]
        found = np.load(io.BytesIO(archive.extractfile(f"{key}.npy").read()))
    assert found.shape == (2, 64)  # two clips, averaged over crops
    assert extract(config, shapes / "vp9", tmp_path / "one", "--format", "shards").returncode == 0  # it is complete
    for other in ([shapes / "vp9", "--format", "npy"], [shapes / "vp9-val", "--format", "shards"]):
        done = extract(config, other[0], tmp_path / "one", *other[1:])
        assert done.returncode == 1 and "made otherwise" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("split, batch_size", [("test", 4), ("windows", 5)])
@pytest.mark.parametrize("parts, passes", [([0, 1, 2, 3, 4, 5], 1), ([1, 2, 4], 1), ([5], 1), ([], 0)])
def test_a_pass_of_the_loader_reads_each_sample_once(config, shapes, monkeypatch, split, batch_size, parts, passes):
    """One pass for all parts, wherever they are, which reads and decodes no more than it takes to fill its last batch."""
    monkeypatch.setattr(featurefiles, "PART", 3)
    model, _ = build_model(load_config(config).model, ["x"])
    options = {"window": 0.3, "hop": 0.2} if split == "windows" else {"clips": 2}
    loader = build_loader(shapes / "vp9-val", split, options, batch_size, "cpu", num_frames=4, size=32)
    rows, read, pipelines, original = extraction.first_rows(loader.plan), [], [], (Reader.read, Loader._pipeline)
    monkeypatch.setattr(Reader, "read", lambda self, position: read.append(position) or original[0](self, position))
    monkeypatch.setattr(Loader, "_pipeline", lambda *given: pipelines.append(1) or original[1](*given))
    found = list(extraction.features_of_parts(Rows(model.eval(), loader.plan), loader, parts, nullcontext))
    assert [part for part, _ in found] == parts and len(pipelines) == passes
    for part, videos in found:
        assert list(videos) == list(range(3 * part, min(3 * part + 3, 16)))
        assert all(len(pieces) == rows[video + 1] - rows[video] for video, pieces in videos.items())
    needed = [p for part in parts for p in range(rows[3 * part], rows[min(3 * part + 3, 16)])]
    assert len(read) == len(set(read)) and set(needed) <= set(read) and len(read) - len(needed) <= passes * (batch_size - 1)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_the_parts_that_are_missing(tmp_path, monkeypatch, ranks):
    """As rank 0 sees them: others may see a folder as it was, or as it is when somebody has begun."""
    for part in (0, 3, 4):
        (tmp_path / featurefiles.part_name(part)).touch()
    sums = []
    monkeypatch.setattr(extraction, "sum_over_ranks", lambda mine: sums.append(mine) or sum(sums))
    shares = [
        extraction.own_parts(tmp_path if rank == 0 else tmp_path / "stale", range(9), World(rank, ranks, torch.device("cpu")))
        for rank in range(ranks)
    ]
    assert [part for share in shares for part in share] == [1, 2, 5, 6, 7, 8]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_is_computed_in_bf16_is_of_the_same_weights(config, shapes, tmp_path, monkeypatch):
    found = []
    for precision in ("float32", "bf16"):
        how = ("clips=1", "crops=1", "--config", config, "--precision", precision)
        written(monkeypatch, shapes / "vp9-val", tmp_path / precision, *how)
        found.append(json.loads((tmp_path / precision / "features.json").read_text()))
    assert found[0]["weights"] == found[1]["weights"] and [how["precision"] for how in found] == ["float32", "bfloat16"]


@pytest.mark.process
def test_unreadable_videos_are_named_and_left_out(config, shapes, tmp_path):
    shutil.copytree(shapes / "vp9-val", tmp_path / "data")
    damage(tmp_path / "data", 3)
    done, key = extract(config, tmp_path / "data", tmp_path / "out"), ShardSet(shapes / "vp9-val").key(3)
    assert done.returncode == 1 and key in done.stderr
    assert [row["rows"] for row in table(tmp_path / "out")].count("unreadable") == 1
    assert not (tmp_path / "out" / f"{key}.npy").exists()


def trained_head(config, folder):
    """A checkpoint whose head tells five classes apart."""
    model, source = build_model(load_config(config).model, list("abcde"))
    backbone = describe_backbone(model, load_config(config).model, source)
    meta = Meta(model.config, backbone, list("abcde"), clips={"clips": 2, "crops": 3})
    save_checkpoint(folder / "best.safetensors", own_tensors(model, backbone), meta)
    return folder / "best.safetensors", model.eval()


def written(monkeypatch, data, out, *arguments):
    """What the command writes: file -> array."""
    call(monkeypatch, features, *arguments, "--data", data, "--out", out, "--device", "cpu", "--batch-size", 5)
    return {path.name: np.load(path) for path in out.glob("*.npy")}


def test_windows_in_frames_are_windows_in_seconds(config, shapes, tmp_path, monkeypatch):
    checkpoint, _ = trained_head(config, tmp_path)
    rate = float(
        build_loader(shapes / "vp9-val", "val", batch_size=1, num_frames=4, size=32, device="cpu").shards.clips["fps"][0]
    )

    def slid(name, window, hop, *options):
        flags = ("--checkpoint", checkpoint, "--window", window, "--hop", hop)
        return written(monkeypatch, shapes / "vp9-val", tmp_path / name, *options, *flags)

    seconds, frames = slid("s", 8 / rate, 2 / rate), slid("f", "8f", "2f")
    halved = slid("h", "4f", "1f", f"fps={rate / 2}")
    assert frames.keys() == seconds.keys() == halved.keys() and len(frames) == 32
    for name, array in frames.items():
        assert len(array) == 7 and np.allclose(array, seconds[name], atol=1e-6) and np.allclose(array, halved[name], atol=1e-6)


def test_crops_side_by_side_are_each_crops_and_their_mean_is_the_row(config, shapes, tmp_path, monkeypatch):
    checkpoint, model = trained_head(config, tmp_path)
    given = ("--checkpoint", checkpoint, "--window", 0.4, "--hop", 0.2, "--scores")
    beside = written(monkeypatch, shapes / "vp9-val", tmp_path / "b", "crops=3", *given, "--crops-as", "beside")
    mean = written(monkeypatch, shapes / "vp9-val", tmp_path / "m", "crops=3", *given)
    centre = written(monkeypatch, shapes / "vp9-val", tmp_path / "c", *given)
    for key in (name.removesuffix(".times.npy") for name in mean if name.endswith(".times.npy")):
        crops = beside[f"{key}.npy"].reshape(len(mean[f"{key}.npy"]), 3, -1)
        assert np.allclose(crops.mean(1), mean[f"{key}.npy"], atol=1e-6)
        assert np.allclose(crops[:, 1], centre[f"{key}.npy"], atol=1e-6) and not np.allclose(
            crops[:, 0], crops[:, 1], atol=1e-3
        )
        with torch.no_grad():
            logits = model.head(torch.from_numpy(crops))
        assert np.allclose(beside[f"{key}.scores.class.npy"], logits.flatten(1), atol=1e-5)
        one = torch.from_numpy(mean[f"{key}.scores.class.npy"]).softmax(-1)
        assert torch.allclose(one, logits.softmax(-1).mean(1), atol=1e-6)
    said = json.loads((tmp_path / "b" / "features.json").read_text())
    assert said["scores"] == {"classes": {"class": list("abcde")}, "views": 3} and said["crops_as"] == "beside"
    with pytest.raises(SystemExit, match="made otherwise"):
        written(monkeypatch, shapes / "vp9-val", tmp_path / "b", "crops=3", *given)


def test_scores_of_pairs_become_scores_of_each_kind():
    verb, noun = torch.randn(6, 3).log_softmax(-1), torch.randn(6, 4).log_softmax(-1)
    pairs = (verb[:, :, None] + noun[:, None]).flatten(1)
    found = by_kind(pairs, {"verb": list("abc"), "noun": list("wxyz")})
    assert torch.allclose(found["verb"], verb, atol=1e-6) and torch.allclose(found["noun"], noun, atol=1e-6)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--config", "x", "--scores"], "--scores are those of a trained classifier: give --checkpoint"),
        (["--config", "x", "--window", "64x"], "'64x' is neither seconds, such as 1.5, nor frames, such as 64f"),
        (["--config", "x", "--batch-size", "0"], "'0' must be a whole number, at least 1"),
    ],
)
def test_flags_that_mean_nothing_are_refused(arguments, sentence, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, features, "--data", "d", "--out", "o", *arguments)
    assert sentence in str(ended.value) + capsys.readouterr().err


def test_a_model_that_must_be_trained_first_is_refused(config, shapes, tmp_path):
    values = yaml.safe_load(config.read_text())
    values["model"] |= {"method": "st_adapter", "options": {"adapter_width": 16}}
    (tmp_path / "st.yaml").write_text(yaml.safe_dump(values))
    done = extract(tmp_path / "st.yaml", shapes / "vp9-val", tmp_path / "out")
    assert done.returncode == 1 and "must be trained first" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("scale", [1, 1000])  # so sure that other classes' probabilities are zero in float32
@pytest.mark.parametrize("several", [False, True])
def test_scores_of_crops_are_averaged_as_an_evaluation_does(several, scale):
    logits = scale * torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))  # (B, crops, K)
    rows = Rows(torch.nn.Identity(), SimpleNamespace(crops=2, clips=1), several=several)
    expected, joined = probabilities_of(logits, several).mean(1), torch.from_numpy(rows._joined(logits, True))
    assert joined.isfinite().all()
    torch.testing.assert_close(probabilities_of(joined, several)[:, 0], expected)
