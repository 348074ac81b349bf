"""The loader: the plan's stream as batches, the same pixels for the same positions, bad clips never stop or fool it."""

import hashlib
import itertools
import json
import shutil
import weakref
import zlib

import numpy as np
import pytest
import torch

from i2v.pipelines import ShardError, build_loader, graph, read_ahead
from i2v.pipelines.buffers import Buffers
from i2v.pipelines.decode import decode_clip
from i2v.pipelines.joined import JoinedShards
from i2v.pipelines.loader import Loader
from i2v.pipelines.memory import ClipsInMemory
from i2v.pipelines.resize import crop_and_resize, looked_at
from i2v.pipelines.shards import ShardSet
from i2v.shard_tools.encode import EncodeSettings, encode_video
from tests.stores import Store

OPTIONS = {"num_frames": 4, "size": 32, "threads": 1, "device": "cpu"}


def batches(manifest, steps, **options):
    loader = build_loader(manifest, **{"batch_size": 5, **OPTIONS, **options})
    return list(itertools.islice(loader, steps))


def pixels(batch):
    """Checksum of every clip, by place in the batch."""
    return [hashlib.sha256(clip.contiguous().numpy().tobytes()).hexdigest() for clip in batch.clips]


@pytest.mark.parametrize("split, size", [("train", 32), ("val", 48), ("test", 48)])
def test_pictures_of_evaluation_may_have_another_size_and_a_backbones_own_colours(shapes, split, size):
    """As with that size alone; mean and std are of the floats and of the views that are normalised later."""
    options = {"clips": 2, "crops": 3, "flip": 0}
    (mine,) = batches(shapes / "vp9", 1, split=split, test_size=48, mean=(0.45,) * 3, std=(0.225, 0.225, 0.5), **options)
    (theirs,) = batches(shapes / "vp9", 1, split=split, **options | {"size": size})
    assert mine.clips.shape == theirs.clips.shape and mine.clips.shape[-1] == size
    clip = torch.tensor([graph.MEAN, graph.STD]).view(2, 3, 1, 1, 1)
    mean, std = (255 * torch.tensor(values).view(3, 1, 1, 1) for values in ([0.45] * 3, [0.225, 0.225, 0.5]))
    torch.testing.assert_close(mine.clips * std + mean, theirs.clips * clip[1] + clip[0], atol=1e-3, rtol=0)


def test_shapes_and_types(shapes):
    (batch,) = batches(shapes / "vp9", 1)
    assert batch.clips.shape == (5, 3, 4, 32, 32) and batch.clips.dtype == torch.float32
    assert batch.clips.permute(0, 2, 3, 4, 1).is_contiguous()  # channels-last memory
    assert batch.labels.dtype == batch.ids.dtype == torch.int64 and batch.weights.tolist() == [1.0] * 5
    assert batch.samples_seen == 5
    labels = ShardSet(shapes / "vp9").clips["label"]
    assert batch.labels.tolist() == [labels[i] for i in batch.ids]
    (batch,) = batches(shapes / "vp9", 1, clips=2, crops=3)  # views are of evaluation
    assert batch.clips.shape == (5, 3, 4, 32, 32)
    (batch,) = batches(shapes / "vp9", 1, split="test", clips=2, crops=3)
    assert batch.clips.shape == (5, 6, 3, 4, 32, 32)


def test_every_id_once_per_epoch_and_across_the_border(shapes):
    ids = [i for batch in batches(shapes / "vp9", 10) for i in batch.ids.tolist()]
    assert sorted(ids[:24]) == sorted(ids[24:48]) == list(range(24)) and ids[:24] != ids[24:48]


def test_ranks_batch_sizes_and_restarts_see_the_same_pixels_at_the_same_positions(shapes):
    """The global stream of 24 positions, made in four ways."""
    expected = [p for batch in batches(shapes / "vp9", 3, batch_size=8) for p in pixels(batch)]
    by_rank = [batches(shapes / "vp9", 4, batch_size=2, rank=r, world_size=3) for r in range(3)]
    assert [p for step in zip(*by_rank) for batch in step for p in pixels(batch)] == expected
    start = batches(shapes / "vp9", 2, batch_size=5)[-1].samples_seen
    resumed = batches(shapes / "vp9", 7, batch_size=2, start=start)
    assert [p for batch in resumed for p in pixels(batch)] == expected[10:]


@pytest.mark.parametrize("split, starts", [("train", (0, 10, 24, 40)), ("val", (0, 10, 20))])
def test_shards_are_staged_ahead_from_where_the_run_is(shapes, tmp_path, monkeypatch, split, starts):
    """In the order in which all ranks together need them."""
    Store.reset()
    url, staged = Store.put(shapes / "vp9", "data"), []
    monkeypatch.setattr(ShardSet, "expect", lambda self, shards: staged.append(list(shards)))
    for start in starts:
        loader = build_loader(url, split, batch_size=2, rank=1, world_size=2, start=start, cache=tmp_path, **OPTIONS)
        next(iter(loader))
        positions = range(start, start + 24 if split == "train" else 24)
        shards = [int(loader.shards.clips["shard"][loader.plan[position].id]) for position in positions]
        assert staged.pop(0)[: len(set(shards))] == list(dict.fromkeys(shards))


EVERYTHING = {"randaugment": "rand-m7-n4-mstd0.5-inc1", "grayscale": 0.5, "erasing": 0.5, "color_jitter": (0.4, 0.4, 0.4, 0.1)}


@pytest.mark.parametrize("mixed", [False, True])
def test_the_same_global_batches_on_1_2_4_ranks_and_2_resumed_on_3(shapes, mixed):
    """Pixels, labels and places, under augmentation, windows, balance, repeats and mixtures."""
    options = EVERYTHING | {"shuffle": "window", "window_shards": 2}
    data = shapes / "vp9"
    if mixed:
        data = [{"path": shapes / "vp9", "weight": 2}, {"path": shapes / "vp9-val", "weight": 1}]
        options |= {"balance": 0.5, "repeats": 2}

    def stream(world, batch_size, steps, start=0):
        by_rank = [
            batches(data, steps, batch_size=batch_size, rank=r, world_size=world, start=start, **options) for r in range(world)
        ]
        rows = [zip(b.positions.tolist(), b.ids.tolist(), b.labels.tolist(), pixels(b)) for step in zip(*by_rank) for b in step]
        return [row for batch in rows for row in batch]

    expected = stream(1, 12, 4)
    assert [row[0] for row in expected] == list(range(48)) and len({row[3] for row in expected}) == 48
    assert stream(2, 6, 4) == expected
    assert stream(4, 3, 4) == expected
    assert stream(2, 6, 2) + stream(3, 4, 2, start=24) == expected


def test_a_mixture_reads_the_videos_of_its_data_sets(shapes):
    data = [{"path": shapes / "vp9", "weight": 1}, {"path": shapes / "mjpeg", "weight": 1}]
    loader = build_loader(data, batch_size=8, flip=0, **OPTIONS)
    assert len(loader.plan) == len(loader.shards) == 48
    seen = list(itertools.islice(loader, 12))
    ids = torch.cat([batch.ids for batch in seen])
    assert 0 < (ids >= 24).sum() < 96
    for batch in seen[:2]:
        for clip, label, position, made in zip(
            batch.ids.tolist(), batch.labels.tolist(), batch.positions.tolist(), batch.clips
        ):
            alone = ShardSet(shapes / ("mjpeg" if clip >= 24 else "vp9"))
            assert label == alone.clips["label"][clip % 24] and loader.shards.key(clip).endswith(alone.key(clip % 24))
            assert loader.plan[position].id == clip and made.isfinite().all()
    with pytest.raises(ShardError, match="same class names"):
        build_loader([shapes / "vp9", other_classes(shapes)], **OPTIONS)


def other_classes(shapes):
    """A copy of vp9-val whose classes are called otherwise."""
    import json

    folder = shapes / "other-classes"
    shutil.copytree(shapes / "vp9-val", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("crc32", None)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"classes": [name + "!" for name in manifest["classes"]]}))
    return folder


def test_views_come_in_parts_and_are_the_same(shapes):
    """What is normalised part by part equals what is normalised at once, and by the graph."""
    options = {"split": "test", "sampling": "stride", "stride": 2}
    (batch,) = batches(shapes / "vp9-val", 1, clips=5, crops=3, **options)
    assert batch.pixels.dtype == torch.uint8 and batch.clips.shape == (5, 15, 3, 4, 32, 32)
    for at_once in (1, 5, 20, 1000):
        parts = list(batch.views(at_once))
        assert all(part.shape[0] * part.shape[1] <= max(at_once, 5) for part in parts)
        assert torch.equal(torch.cat(parts, dim=1), batch.clips)
    one = batches(shapes / "vp9-val", 1, **options)[0]
    assert one.pixels.dtype == torch.float32
    assert torch.allclose(batches(shapes / "vp9-val", 1, clips=1, crops=3, **options)[0].clips[:, 1], one.clips, atol=1e-5)


def test_a_backbones_own_colours(shapes):
    """Of another trunk: one view, which the loader normalises, several, which batches do, and what erasing leaves."""
    own, grey = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}, {"split": "test", "sampling": "stride", "stride": 2}
    mean, std = (255 * torch.tensor(own[name]).view(3, 1, 1, 1) for name in ("mean", "std"))
    for options in (grey, grey | {"clips": 2, "crops": 3}):
        pixels = batches(shapes / "vp9-val", 1, **options, dtype="uint8")[0].pixels
        torch.testing.assert_close(batches(shapes / "vp9-val", 1, **options, **own)[0].clips, (pixels - mean) / std)
    erased = {"erasing": 1.0, "erasing_fill": "mean"}
    found = batches(shapes / "vp9", 1, split="train", **erased, **own)[0].clips
    assert ((found == 0).all(1).float().mean((1, 2, 3)) > 0.01).all()  # the mean, normalised
    with pytest.raises(ValueError, match="mean must be a list, three numbers|mean"):
        batches(shapes / "vp9-val", 1, **grey, mean=[0.5])


def test_a_memory_budget_bounds_what_is_read_ahead_and_changes_nothing(shapes, monkeypatch):
    expected = [pixels(batch) for batch in batches(shapes / "vp9", 8)]
    waiting, most = 0, {}
    original, delivered = ShardSet.read, Loader._batch
    for budget in (1, 1 << 30):
        waiting, most[budget] = 0, 0

        def read(self, *arguments, budget=budget):
            nonlocal waiting
            waiting += 1
            most[budget] = max(most[budget], waiting)
            return original(self, *arguments)

        def deliver(self, output, prepared):
            nonlocal waiting
            waiting -= len(prepared.positions)
            return delivered(self, output, prepared)

        with monkeypatch.context() as patched:
            patched.setattr(ShardSet, "read", read)
            patched.setattr(Loader, "_batch", deliver)
            assert [pixels(batch) for batch in batches(shapes / "vp9", 8, prefetch_bytes=budget)] == expected
    assert most[1] < most[1 << 30]


def test_windows_cover_each_video_once(shapes):
    loader = build_loader(shapes / "vp9-val", "windows", window=0.25, hop=0.1, batch_size=8, rank=1, world_size=2, **OPTIONS)
    other = build_loader(shapes / "vp9-val", "windows", window=0.25, hop=0.1, batch_size=8, rank=0, world_size=2, **OPTIONS)
    seen = [
        (p, i)
        for each in (loader, other)
        for b in each
        for p, i, w in zip(b.positions.tolist(), b.ids.tolist(), b.weights)
        if w
    ]
    assert sorted(p for p, _ in seen) == list(range(len(loader.plan)))
    assert all(loader.plan.locate(p)[1] == i for p, i in seen)
    seconds = 20 / loader.shards.clips["fps"][0]
    for position, clip in seen:
        start, end = loader.plan.window(position)
        times = loader.shards.times(clip)[loader.plan[position].frames]
        assert start < seconds and ((times >= start - 0.05) & (times <= end + 0.05)).all()


def test_without_shares_data_sets_are_one_and_balanced_as_one(shapes):
    loader = build_loader([shapes / "vp9", shapes / "vp9-val"], batch_size=8, **OPTIONS)
    assert sorted(loader.plan.locate(p)[1] for p in range(40)) == list(range(40))
    weights = np.r_[np.zeros(24), np.ones(16)]
    loader = build_loader([shapes / "vp9", shapes / "vp9-val"], batch_size=8, sample_weights=weights, **OPTIONS)
    assert all(loader.plan.locate(p)[1] >= 24 for p in range(80))
    mixed = [{"path": shapes / "vp9", "weight": 1}, {"path": shapes / "vp9-val", "weight": 1}]
    with pytest.raises(ValueError, match="leave the data set out"):
        build_loader(mixed, sample_weights=weights, **OPTIONS)


@pytest.mark.parametrize("name", ["weights.npy", "weights.csv"])
def test_sample_weights_from_a_file(shapes, tmp_path, name):
    shards = ShardSet(shapes / "vp9")
    weights = np.zeros(24)
    weights[[3, 5]] = 1, 3
    np.save(tmp_path / "weights.npy", weights)
    rows = "".join(f"{shards.key(i)},{w}\n" for i, w in enumerate(weights))
    (tmp_path / "weights.csv").write_text("\ufeffkey,weight\n" + rows, encoding="utf-8")  # as spreadsheets save UTF-8
    ids = [i for b in batches(shapes / "vp9", 10, batch_size=12, sample_weights=tmp_path / name) for i in b.ids.tolist()]
    assert ids.count(3) == 30 and ids.count(5) == 90


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text[: text.index("\n", 20)], "lacks 23 of 24 keys, such as '000000-000001': .* a row for every video"),
        (lambda text: text.replace("\n", "\n000007-000000,1\n", 1), "row 2 of .* has the key '000007-000000', which no"),
        (lambda text: text + "000000-000003,5\n", "row 26 of .* gives '000000-000003' a second weight: keep one row per key"),
        (lambda text: text.replace("key", "id"), "begins with 'id,weight': its first row must be key,weight"),
        (lambda text: text.replace(",", ";"), "begins with 'key;weight': its first row must be key,weight"),
        (lambda text: text.removeprefix("key,weight\n"), "begins with '000000-000000,1': its first row must be key,weight"),
        (lambda text: "", "begins with '': its first row must be key,weight"),
        (lambda text: text.replace("000003,1", "000003,much"), "row 5 of .* has the weight 'much': it must be a number"),
        (lambda text: text.replace("000003,1", "000003,nan"), "row 5 of .* has the weight 'nan'"),
        (lambda text: text.replace("000003,1", "000003,-1"), "row 5 of .* has the weight '-1'"),
        (lambda text: text.replace("000003,1", "000003"), "row 5 of .* has 1 columns: it must be key,weight"),
        (lambda text: text + "\xe9,1", "cannot be read as weights .* a CSV of key,weight in UTF-8"),
    ],
)
def test_sample_weights_that_cannot_be_meant(shapes, tmp_path, change, message):
    shards = ShardSet(shapes / "vp9")
    text = "key,weight\n" + "".join(f"{shards.key(i)},1\n" for i in range(24))
    (tmp_path / "weights.csv").write_bytes(change(text).encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        build_loader(shapes / "vp9", batch_size=2, sample_weights=tmp_path / "weights.csv", **OPTIONS)


@pytest.mark.parametrize("world, batch_size", [(1, 16), (1, 3), (2, 3), (4, 2), (8, 3)])
def test_evaluation_gives_every_video_once_in_batches_of_one_size(shapes, world, batch_size):
    seen, lengths = [], set()
    for rank in range(world):
        loader = build_loader(shapes / "vp9-val", "val", batch_size=batch_size, rank=rank, world_size=world, **OPTIONS)
        mine = list(loader)
        assert len(mine) == len(loader) and all(len(batch.ids) == batch_size for batch in mine)
        lengths.add(len(mine))
        seen += [i for batch in mine for i, w in zip(batch.ids.tolist(), batch.weights.tolist()) if w]
    assert sorted(seen) == list(range(16)) and len(lengths) == 1


def test_a_loader_can_be_iterated_again(shapes):
    loader = build_loader(shapes / "vp9-val", "val", batch_size=7, **OPTIONS)
    first, second = ([p for batch in loader for p in pixels(batch)] for _ in range(2))
    assert first == second


def test_evaluation_pixels_do_not_depend_on_batch_size(shapes):
    options = {"split": "test", "clips": 2, "crops": 3, "sampling": "stride", "stride": 3}
    one = [p for b in batches(shapes / "vp9-val", 16, batch_size=1, **options) for p in pixels(b)]
    many = [p for b in batches(shapes / "vp9-val", 2, batch_size=8, **options) for p in pixels(b)]
    assert one == many and len(set(one)) == 16


def test_pixels_are_the_frames_the_plan_chose(shapes):
    """Without resizing, the graph's output is PyAV's decoded frame, normalised (DALI's colour conversion differs a little)."""
    import io

    import av

    loader = build_loader(shapes / "vp9-val", "val", batch_size=16, num_frames=4, size=48, device="cpu", threads=1)
    (batch,) = loader
    spec = loader.plan[3]
    with av.open(io.BytesIO(loader.shards.read_whole(3))) as video:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    top, left, bottom, right = spec.boxes[0].astype(int)
    wanted = frames[spec.frames, top:bottom, left:right].astype(np.float32) / 255
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    made = batch.clips[3].permute(1, 2, 3, 0).numpy() * std + mean
    assert np.abs(made - wanted).mean() < 2 / 255


def test_mirrored_clips_are_mirrored(shapes):
    area = {"area": (1.0, 1.0), "aspect": (64 / 48, 64 / 48)}
    (plain,), (mirrored,) = (batches(shapes / "vp9", 1, flip=p, **area) for p in (0, 1))
    assert torch.allclose(plain.clips.flip(-1), mirrored.clips, atol=1e-5)
    assert not torch.allclose(plain.clips, mirrored.clips, atol=0.1)


def test_mirrored_clips_swap_the_labels_of_the_named_pairs(shapes):
    plain = batches(shapes / "vp9", 5, flip=0)
    half = batches(shapes / "vp9", 5, flip=0.5, flip_labels=[[2, 3], [0, 1]])
    loader = build_loader(shapes / "vp9", batch_size=5, flip=0.5, **OPTIONS)
    swap = {0: 1, 1: 0, 2: 3, 3: 2}
    mirrored = 0
    for step, (a, b) in enumerate(zip(plain, half)):
        for position, before, after in zip(loader.positions(step), a.labels.tolist(), b.labels.tolist()):
            assert after == (swap.get(before, before) if loader.plan[position].flip else before)
            mirrored += after != before
    assert mirrored > 0
    with pytest.raises(ValueError, match="flip_labels has 8, but there are 8 classes"):
        batches(shapes / "vp9", 1, flip_labels=[[8, 1]])


def damage(folder, clip_id, decoder_only=False):
    """Overwrite a clip's coded frames; decoder_only: mend the checksums, so that only the decoder can notice."""
    shards = ShardSet(folder)
    clip = shards.clips[clip_id]
    first, count, offset = int(clip["first_fragment"]), int(clip["frames"]), int(clip["offset"] + clip["header_size"])
    path = folder / shards.manifest["shards"][int(clip["shard"])]["name"]
    content = bytearray(path.read_bytes())
    fragments = np.load(folder / "fragments.npy")
    for fragment in range(first, first + count):
        end = offset + int(fragments["size"][fragment])
        content[offset:end] = bytes(end - offset)
        fragments["crc"][fragment] = zlib.crc32(content[offset:end]) if decoder_only else fragments["crc"][fragment]
        offset = end
    path.write_bytes(content)
    np.save(folder / "fragments.npy", fragments)


@pytest.mark.parametrize("bad, decoder_only", [(7, False), (7, True), (0, False), (23, True)])
def test_a_bad_clip_has_weight_0_and_nothing_else_changes(shapes, tmp_path, bad, decoder_only):
    folder, quarantine = tmp_path / "data", tmp_path / "quarantine.csv"
    shutil.copytree(shapes / "vp9", folder)
    good = batches(folder, 10)
    damage(folder, bad, decoder_only)
    found = batches(folder, 10, quarantine=quarantine)
    for before, after in zip(good, found):
        assert after.ids.tolist() == before.ids.tolist() and after.labels.tolist() == before.labels.tolist()
        assert after.weights.tolist() == [float(i != bad) for i in after.ids.tolist()]
        assert [p for p, i in zip(pixels(before), before.ids) if i != bad] == [
            p for p, i in zip(pixels(after), after.ids) if i != bad
        ]
    lines = quarantine.read_text().splitlines()
    assert len(lines) == 2 and lines[1].startswith(f"{bad},{ShardSet(folder).key(bad)},")
    assert list(build_loader(folder, batch_size=5, quarantine=quarantine, **OPTIONS).bad) == [bad]  # counted again


def test_too_many_bad_clips_stop_the_run_with_their_names(shapes, tmp_path):
    shutil.copytree(shapes / "vp9", tmp_path / "data")
    for clip in range(6):
        damage(tmp_path / "data", clip)
    with pytest.raises(ShardError, match="clips in .* are bad, more than the 5"):
        batches(tmp_path / "data", 5)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_clip_with_one_bad_frame_counts_wherever_that_frame_is_not_needed(shapes, tmp_path, world):
    """On any number of ranks, and again when the run is continued: who found out when plays no part."""
    shutil.copytree(shapes / "vp9", tmp_path / "data")
    shards = ShardSet(tmp_path / "data")
    clip = shards.clips[7]
    sizes = shards.fragments["size"][int(clip["first_fragment"]) :][:9]
    path = tmp_path / "data" / shards.manifest["shards"][int(clip["shard"])]["name"]
    content = bytearray(path.read_bytes())
    content[int(clip["offset"] + clip["header_size"] + sizes[:8].sum()) + 60] ^= 255  # frame 8, the first of its group
    path.write_bytes(content)
    options = {"repeats": 4, "num_frames": 2, "batch_size": 12 // world, "world_size": world}
    by_rank = [batches(tmp_path / "data", 16, rank=r, quarantine=tmp_path / f"q{r}", **options) for r in range(world)]
    rows = [row for step in zip(*by_rank) for b in step for row in zip(b.ids.tolist(), b.weights.tolist(), b.frames.tolist())]
    assert all(weight == float(i != 7 or not any(8 <= frame < 16 for frame in frames)) for i, weight, frames in rows)
    assert {weight for i, weight, _ in rows if i == 7} == {0.0, 1.0}
    again = batches(tmp_path / "data", 16, quarantine=tmp_path / "q0", **options)
    assert [b.weights.tolist() for b in again] == [b.weights.tolist() for b in by_rank[0]]


def test_ranks_count_bad_clips_together(shapes, tmp_path):
    shutil.copytree(shapes / "vp9", tmp_path / "data")
    for clip in range(6):
        damage(tmp_path / "data", clip)
    with pytest.raises(ShardError, match="clips in .* are bad, more than the 5"):
        for rank in range(2):
            batches(tmp_path / "data", 3, batch_size=4, rank=rank, world_size=2, quarantine=tmp_path / "q.csv")


def test_a_quarantine_of_other_shards_does_not_count(shapes, tmp_path):
    crc = ShardSet(shapes / "vp9").clip_crc(0)
    (tmp_path / "q.csv").write_text(f"id,key,crc,reason\n0,000000-000000,{crc},bad\n99999,000099-000099,1,bad\n")
    assert build_loader(shapes / "vp9", quarantine=tmp_path / "q.csv", **OPTIONS).bad == {0: "bad"}
    assert build_loader(shapes / "mjpeg", quarantine=tmp_path / "q.csv", **OPTIONS).bad == {}


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"num_frame": 8}, TypeError, "Unknown clip option 'num_frame': did you mean num_frames"),
        ({"options": {"flip": 0}, "flip": 1}, TypeError, "'flip' is given twice"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank is 2"),
        ({"split": "training"}, ValueError, "split is 'training'"),
        ({"start": -1}, ValueError, "start is -1"),
        ({"device": "tpu"}, ValueError, "device is 'tpu'"),
        ({"interpolation": "nearest"}, ValueError, "interpolation is 'nearest'"),
        ({"decode": "gpu"}, ValueError, "decode is gpu, but device is cpu"),
        ({"rank": "0"}, ValueError, "rank is '0'"),
        ({"seed": 1.5}, ValueError, "seed is 1.5"),
        ({"threads": 0}, ValueError, "threads is 0"),
        ({"shuffle": "no"}, ValueError, "shuffle is 'no'"),
        ({"augment": None}, TypeError, "Unknown clip option 'augment'"),
        ({"balance": 1.0, "sample_weights": np.ones(24)}, ValueError, "give one of them"),
        ({"sample_weights": np.ones(3)}, ValueError, "must hold 24 weights"),
    ],
)
def test_wrong_options_are_named(shapes, options, error, text):
    with pytest.raises(error, match=text):
        build_loader(shapes / "vp9", **{**OPTIONS, **options})


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_slices_decode_like_the_whole_clip_on_a_cpu(shapes, tmp_path, codec):
    """Frame by frame (slices from the keyframe) and all frames at once give the same pixels."""
    from tests.conftest import shard

    shard(shapes / "val", tmp_path / codec, codec=codec)
    options = {"sampling": "stride", "stride": 1, "batch_size": 4, "device": "cpu", "dtype": "uint8", "size": 32}
    whole = next(iter(build_loader(tmp_path / codec, "val", num_frames=20, **options))).pixels
    single = next(iter(build_loader(tmp_path / codec, "test", num_frames=1, clips=20, **options))).pixels[:, :, :, 0]
    assert torch.equal(single.transpose(1, 2), whole)


def test_what_the_graph_is_given_lasts_until_its_batch_is_out(shapes, monkeypatch):
    """It is not copied."""
    given = []

    def watched(source, *rest):
        def watch():
            lists = source()
            given.append([weakref.ref(array) for arrays in lists for array in arrays])
            return lists

        return graph.build_pipeline(watch, *rest)

    monkeypatch.setattr(read_ahead, "build_pipeline", watched)
    for done, _ in enumerate(itertools.islice(build_loader(shapes / "vp9", batch_size=5, **OPTIONS), 4), 1):
        under_way = [array for arrays in given[done:] for array in arrays]
        assert under_way and all(array() is not None for array in under_way)


@pytest.mark.parametrize("split, views", [("train", {}), ("test", {"clips": 2, "crops": 3})])
@pytest.mark.parametrize("codec", ["vp9", "mjpeg"])
def test_both_cpu_decoders_give_the_same_pixels(shapes, codec, split, views):
    for dali, reader in zip(*(decoded_by(shapes / codec, decoder, split, views) for decoder in ("cpu", "reader"))):
        assert torch.equal(dali, reader)


def decoded_by(manifest, decoder, split, views):
    loader = build_loader(manifest, split, views, batch_size=5, **OPTIONS)
    loader.decode = decoder
    return [batch.pixels for batch in itertools.islice(loader, 4)]


@pytest.mark.parametrize("bad", [0, 7])  # 0: the clip that would stand in for those that are bad
@pytest.mark.parametrize("codec, decoder", [("h264", "reader"), ("vp9", "reader"), ("vp9", "cpu")])  # cpu: in the graph
def test_a_clip_that_the_decoder_refuses_has_weight_0_and_nothing_else_changes(shapes, tmp_path, codec, decoder, bad):
    from tests.conftest import shard

    shard(shapes / "train", tmp_path / codec, codec=codec)
    good = batches(tmp_path / codec, 5)
    damage(tmp_path / codec, bad, decoder_only=True)
    loader = build_loader(tmp_path / codec, batch_size=5, **OPTIONS)
    loader.decode = decoder
    for before, after in zip(good, itertools.islice(loader, 5)):
        assert after.weights.tolist() == [float(i != bad) for i in after.ids.tolist()]
        kept = after.weights > 0
        assert torch.equal(before.clips[kept], after.clips[kept])
    assert loader.bad == {bad: "the decoder refuses it"}


@pytest.mark.parametrize(
    "codec, side, decode, expected",
    [
        ("vp9", 128, "auto", "gpu"),
        ("vp9", 112, "auto", "reader"),
        ("vp9", 112, "gpu", "decode is gpu, but NVDEC takes vp9 from 128 pixels on, and a side of these pictures has 112"),
        ("hevc", 128, "auto", "reader"),
        ("h264", 48, "auto", "gpu"),
        ("h264", 256, "cpu", "reader"),
        ("mjpeg", 256, "auto", "reader"),
        ("mjpeg", 256, "gpu", "decode is gpu, but NVDEC takes no mjpeg: set decode to cpu or auto"),
    ],
)
def test_nvdec_gets_only_what_it_takes(monkeypatch, codec, side, decode, expected):
    monkeypatch.setattr(graph, "_nvdec_is_here", lambda: True)
    if expected.startswith("decode"):
        with pytest.raises(ValueError, match=expected):
            graph.choose_decoder(codec, "gpu", decode, side)
    else:
        assert graph.choose_decoder(codec, "gpu", decode, side) == expected


@pytest.fixture(scope="module")
def encoded(shapes):
    """Some videos of the data set, encoded in memory: their ids in it, and the source of clips."""
    shards = ShardSet(shapes / "vp9-val")
    ids, settings = [2, 0, 5, 11, 7], EncodeSettings(short_side=48)
    paths = [shapes / "val" / shards.metadata(i)["source"] for i in ids]
    return (
        ids,
        shards,
        ClipsInMemory([encode_video(path, settings) for path in paths], list(map(str, ids)), "vp9", settings.gop),
    )


def test_a_source_in_memory_is_a_data_set_without_files(encoded):
    ids, shards, memory = encoded
    for local, clip in enumerate(ids):
        count = int(memory.clips["frames"][local])
        for frames in ([0], [count - 1, 3, 3], range(count)):
            for found, expected in zip(memory.read(local, np.array(frames)), shards.read(clip, np.array(frames))):
                assert found.dtype == expected.dtype and np.array_equal(found, expected)
        assert np.array_equal(memory.times(local), shards.times(clip))
        assert memory.clip_crc(local) == shards.clip_crc(clip) and memory.key(local) == str(clip)
        for name in ("frames", "width", "height", "fps"):
            assert memory.clips[name][local] == shards.clips[name][clip]
    assert len(memory) == 5 and set(memory.clips["label"]) == {-1} and memory.checksums() != shards.checksums()


@pytest.mark.parametrize("split, options", [("test", {"clips": 2, "crops": 3}), ("windows", {"window": 0.3, "hop": 0.2})])
def test_clips_in_memory_are_those_of_the_data_set(encoded, split, options):
    ids, shards, memory = encoded
    expected, found = ({}, {})
    for source, pixels_of in ((shards, expected), (memory, found)):
        for batch in build_loader(source, split, options, 4, **OPTIONS):
            for clip, weight, made in zip(batch.ids.tolist(), batch.weights.tolist(), batch.pixels):
                if weight:
                    pixels_of.setdefault(clip, []).append(made.numpy().tobytes())
    assert found == {local: expected[clip] for local, clip in enumerate(ids)}


@pytest.mark.parametrize("only", [[3], [0, 1, 2, 3, 9, 12, 13], [5, 6, 7, 8, 15]])
def test_a_loader_keeps_to_some_positions(shapes, only):
    loader = build_loader(shapes / "vp9-val", "val", batch_size=4, **OPTIONS)
    whole = {p: made for b in loader for p, made in zip(b.positions.tolist(), b.clips.numpy())}
    loader.only = np.array(only)
    batches = list(loader)
    assert len(batches) == len(loader) == -(-len(only) // 4)
    assert [batch.samples_seen for batch in batches] == [min(4 * i + 4, len(only)) for i in range(len(batches))]
    seen = [p for batch in batches for p in batch.positions.tolist()]
    assert seen[: len(only)] == only and min(seen[len(only) :], default=99) > only[-1] and len(set(seen)) == len(seen)
    made = [clip for batch in batches for clip in batch.clips.numpy()]
    assert all(np.array_equal(clip, whole[position]) for position, clip in zip(only, made))


def test_of_several_data_sets_each_hears_of_its_own_shards(shapes, monkeypatch):
    heard = []
    monkeypatch.setattr(ShardSet, "expect", lambda self, shards: heard.append((self.root, list(shards))))
    one, two = (ShardSet(shapes / name) for name in ("vp9", "vp9-val"))
    joined, first = JoinedShards([one, two]), len(one.manifest["shards"])
    assert joined.clips["shard"].tolist() == [*one.clips["shard"].tolist(), *(two.clips["shard"] + first).tolist()]
    joined.expect(iter([first, 0, first - 1]))
    assert heard == [(one.root, [0, first - 1]), (two.root, [0])]
    assert joined.checksums() == [*one.checksums(), *two.checksums()]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_loader_goes_on_from_its_state(shapes, split):
    """As torchdata's Stateful asks, through JSON, with another batch size and in the middle of what is read ahead."""
    manifest = shapes / ("vp9" if split == "train" else "vp9-val")
    expected = [p for batch in batches(manifest, 3, split=split, batch_size=5) for p in pixels(batch)]
    loader = build_loader(manifest, split, batch_size=5, **OPTIONS)
    assert loader.state_dict()["samples_seen"] == 0
    iterator = iter(loader)
    found = [p for batch in itertools.islice(iterator, 2) for p in pixels(batch)]
    state = json.loads(json.dumps(loader.state_dict()))
    iterator.close()
    other = build_loader(manifest, split, batch_size=1, **OPTIONS)
    other.load_state_dict(state)
    assert found + [p for batch in itertools.islice(other, 5) for p in pixels(batch)] == expected
    assert other.state_dict()["samples_seen"] == 15


def test_a_finished_evaluation_begins_anew_and_a_state_of_other_data_is_refused(shapes):
    loader = build_loader(shapes / "vp9-val", "val", batch_size=9, **OPTIONS)
    assert len(list(loader)) == 2 and loader.state_dict()["samples_seen"] == 0
    with pytest.raises(ValueError, match="of other videos than"):
        build_loader(shapes / "vp9", "val", batch_size=9, **OPTIONS).load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match="is no state of a loader"):
        loader.load_state_dict({"step": 3})


def test_batches_that_are_kept_stay_what_they_were(shapes):
    """Their memory is used again only when nobody holds it, or a view of it, any more."""
    loader = build_loader(shapes / "mjpeg", "train", batch_size=4, device="cpu", num_frames=4, size=32)
    clips = [batch.clips for batch, _ in zip(loader, range(6))]
    held = [clips[0][1, :, 2], *clips[1:]]
    del clips
    again = [batch.clips.clone() for batch, _ in zip(loader, range(6))]
    assert torch.equal(held[0], again[0][1, :, 2])
    assert all(torch.equal(one, other) for one, other in zip(held[1:], again[1:]))


def test_memory_that_nobody_holds_is_lent_again():
    buffers = Buffers()
    first = buffers.lend((2, 3))
    view, where = first[1:], first.data_ptr()
    del first
    assert buffers.lend((2, 3)).data_ptr() != where
    del view
    assert where in {tensor.data_ptr() for tensor in [buffers.lend((2, 3)) for _ in range(2)]}
    assert buffers.lend((5, 7)).shape == (5, 7)


@pytest.mark.parametrize("boxes", [[[3, 8, 40, 50]], [[3, 8, 40, 50], [10, 2, 20, 33]], [[0.5, 0, 40.5, 40], [3, 8, 40, 50]]])
@pytest.mark.parametrize("interpolation, antialias", [("cubic", True), ("linear", False)])
def test_only_the_part_that_is_looked_at_is_read_from_the_pictures(boxes, interpolation, antialias, shapes):
    """Of integer boxes; a view that is cut out of a resized picture looks at all of it."""
    clip, frames, boxes = *ShardSet(shapes / "mjpeg").read(0, np.array([2, 0])), np.float32(boxes)
    part = looked_at(boxes)
    whole, cut = decode_clip(clip, frames), decode_clip(clip, frames, part)
    assert np.array_equal(cut, whole[:, part[0], part[1]])
    moved = boxes - np.float32([part[0].start or 0, part[1].start or 0] * 2)
    views = [crop_and_resize(v, b, 32, interpolation, antialias) for v, b in ((whole, boxes), (cut, moved))]
    assert np.array_equal(*views)
    assert (cut.shape == whole.shape) == bool((boxes % 1).any())
