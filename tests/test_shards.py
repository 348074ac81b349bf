"""Reading slices: the same pixels as the whole clip, and damage is noticed."""

import json
import shutil

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.moving_shapes import CLASSES
from i2v.pipelines.index import fragment_sizes, needed_fragments
from i2v.pipelines.shards import ClipError, ShardError, ShardSet
from tests.stores import random_data_set, write_manifest


def decode(data, frames):
    """Frames of an mp4 as DALI decodes them: (N, H, W, 3) uint8."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def graph():
        encoded, index = fn.external_source(
            lambda: ([np.frombuffer(data, np.uint8)], [np.asarray(frames, np.int32)]),
            num_outputs=2,
            dtype=[types.UINT8, types.INT32],
            ndim=[1, 1],
        )
        return fn.decoders.video(encoded, frames=index, pad_mode="none")

    pipeline = graph()
    pipeline.build()
    return pipeline.run()[0].at(0).copy()


@pytest.mark.parametrize("codec", ["vp9", "mjpeg"])
def test_a_slice_decodes_to_the_same_pixels_as_the_whole_clip_for_every_frame(shapes, codec):
    shards = ShardSet(shapes / codec)
    for clip in (0, len(shards) - 1):
        whole = decode(shards.read_whole(clip), np.arange(20))
        for frame in range(20):
            data, at = shards.read(clip, [frame])
            assert np.array_equal(decode(data, at)[0], whole[frame])
        for frames in ([0, 19], [3, 3, 17, 9], [19, 8, 0], list(range(20))):
            data, at = shards.read(clip, frames)
            assert np.array_equal(decode(data, at), whole[frames])


def test_a_slice_reads_only_what_decoding_needs(shapes):
    shards = ShardSet(shapes / "vp9")
    header = int(shards.clips["header_size"][0])
    sizes = shards.fragments["size"][:20].astype(int)
    data, at = shards.read(0, [10])
    assert len(data) == header + sizes[8:11].sum() and at.tolist() == [2]


@given(count=st.integers(1, 60), gop=st.integers(1, 20), data=st.data())
def test_needed_fragments_run_from_a_keyframe_to_each_wanted_frame(count, gop, data):
    frames = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=8)))
    expected = set()
    for frame in frames:
        expected |= set(range(frame - frame % gop, frame + 1))
    assert set(np.flatnonzero(needed_fragments(frames, gop, count))) == expected


def test_plain_webdataset_reads_the_shards(shapes):
    shards = ShardSet(shapes / "vp9")
    urls = [str(shapes / "vp9" / shard["name"]) for shard in shards.manifest["shards"]]
    assert len(urls) > 1
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [shards.key(i) for i in range(len(shards))]
    for i, sample in enumerate(samples):
        facts = json.loads(sample["json"])
        assert sample["mp4"] == shards.read_whole(i) and facts == shards.metadata(i)
        assert facts["class"] == shards.classes[facts["label"]] and facts["label"] == shards.clips["label"][i]
        assert len(fragment_sizes(sample["mp4"])[1]) == facts["frames"] == 20


def edit_manifest(folder, **changes):
    """Change keys, or with None take them out, and put the checksums right."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    write_manifest(folder, {key: value for key, value in manifest.items() if value is not None})


def test_a_flipped_bit_is_noticed_in_the_frames_that_need_it_only(copy):
    shards = ShardSet(copy)
    clip = shards.clips[2]
    first, offset = int(clip["first_fragment"]), int(clip["offset"]) + int(clip["header_size"])
    at = offset + int(shards.fragments["size"][first : first + 12].sum()) - 1  # last byte of frame 11
    path = copy / shards.manifest["shards"][int(clip["shard"])]["name"]
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    shards = ShardSet(copy)
    with pytest.raises(ClipError, match="frame 11 is damaged"):
        shards.read(2, [15])
    shards.read(2, [10, 16])


def test_a_truncated_shard_is_refused(copy):
    path = copy / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ShardError, match="shard-000001.tar has .* bytes where the manifest says"):
        ShardSet(copy)


def test_of_a_path_that_is_not_there_it_is_said_from_where_it_was_looked_for(tmp_path, monkeypatch):
    """A run names its shards as seen from the folder in which it was started."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShardError, match=f"^shards/val does not exist, seen from {tmp_path}: correct the path, or make it"):
        ShardSet("shards/val")
    with pytest.raises(ShardError, match=f"^{tmp_path}/none does not exist: "):
        ShardSet(tmp_path / "none")


def test_a_missing_shard_is_refused(copy):
    (copy / "shard-000001.tar").unlink()
    with pytest.raises(ShardError, match="shard-000001.tar cannot be read .*No such file"):
        ShardSet(copy)


def test_a_shard_that_disappears_or_is_replaced_is_an_error_unless_it_is_open(copy):
    shards = ShardSet(copy)
    first, last = copy / "shard-000000.tar", sorted(copy.glob("*.tar"))[-1]
    before = shards.read_whole(0)
    first.unlink()  # open since the start
    assert shards.read_whole(0) == before
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(ShardError, match=f"{last.name} cannot be read .*restore the file"):
        shards.read(len(shards) - 1, [0])
    last.write_bytes(content[:-1])
    with pytest.raises(ShardError, match=f"{last.name} has .* bytes where the manifest says"):
        shards.read(len(shards) - 1, [0])
    last.write_bytes(bytes(len(content)))
    with pytest.raises(
        ShardError, match=f"{last.name} is not the file this index was made for .no clip is where the index says"
    ):
        shards.read(len(shards) - 1, [0])


def test_a_shard_that_shrinks_while_it_is_open_is_an_error(copy):
    shards = ShardSet(copy)
    shards.read(1, [0])
    with open(copy / "shard-000000.tar", "rb+") as file:
        file.truncate(2000)
    with pytest.raises(ShardError, match="shard-000000.tar has 2000 bytes where the manifest says"):
        shards.read(1, [19])


def test_a_shard_swapped_under_the_index_is_refused(copy):
    one, two = copy / "shard-000000.tar", copy / "shard-000001.tar"
    size = max(one.stat().st_size, two.stat().st_size)
    manifest = json.loads((copy / "manifest.json").read_text())
    for shard, path, content in zip(manifest["shards"], (one, two), (two.read_bytes(), one.read_bytes())):
        path.write_bytes(content.ljust(size, b"\0"))
        shard["bytes"] = size
    edit_manifest(copy, shards=manifest["shards"])
    with pytest.raises(ShardError, match="shard-000000.tar is not the file this index was made for"):
        ShardSet(copy)
    one.write_bytes(two.read_bytes())  # the first is looked at when the data set is opened, the others when they are read
    shards = ShardSet(copy)
    with pytest.raises(ShardError, match="shard-000001.tar is not the file this index was made for"):
        shards.read(int(shards.first_clips[1]), [0])


def test_other_versions_and_other_files_are_refused(copy, tmp_path):
    edit_manifest(copy, version=99)
    with pytest.raises(ShardError, match="version 99, this program reads version 2"):
        ShardSet(copy)
    edit_manifest(copy, version=2)
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace("vp9", "vp8"))
    with pytest.raises(ShardError, match="damaged or was edited"):
        ShardSet(copy)
    (copy / "manifest.json").write_text("[]")
    with pytest.raises(ShardError, match="not a manifest"):
        ShardSet(copy)
    with pytest.raises(ShardError, match="does not exist: correct the path, or make it with"):
        ShardSet(tmp_path / "nothing")


def test_an_index_of_another_data_set_is_refused(copy, shapes):
    shutil.copy(shapes / "vp9-val" / "clips.npy", copy)
    with pytest.raises(ShardError, match="clips.npy does not belong to its manifest"):
        ShardSet(copy)
    (copy / "clips.npy").write_bytes(b"")
    with pytest.raises(ShardError, match="clips.npy cannot be read as an index"):
        ShardSet(copy)


@pytest.mark.parametrize(
    "field, value",
    [
        ("label", len(CLASSES)),
        ("label", -2),
        ("width", 60000),
        ("width", 0),
        ("shard", 77),
        ("frames", 0),
        ("frames", 9999),
        ("first_fragment", 10**9),
        ("fps", float("nan")),
        ("offset", 2**63 + 5),
        ("header_size", 2**32 - 1),
    ],
)
def test_an_index_with_an_impossible_record_is_refused(copy, field, value):
    clips = np.load(copy / "clips.npy")
    clips[field][3] = value
    np.save(copy / "clips.npy", clips)
    with pytest.raises(ShardError, match="clips.npy is damaged or of another data set .checksum differs"):
        ShardSet(copy)
    edit_manifest(copy)
    with pytest.raises(ShardError, match="index of .*manifest.json is damaged: the .* of clip [234] is impossible"):
        ShardSet(copy)


@pytest.mark.parametrize("key", ["gop", "classes", "shards", "frames"])
def test_a_manifest_without_a_key_is_refused(copy, key):
    edit_manifest(copy, **{key: None})
    with pytest.raises(ShardError, match=f"is damaged .{key} is missing or wrong"):
        ShardSet(copy)


def test_other_index_files_can_be_named_by_the_manifest(copy, shapes):
    for kind in ("clips", "fragments"):
        (copy / f"{kind}.npy").rename(copy / f"{kind}-3.npy")
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["crc32"]
    manifest["index"] = {"clips": "clips-3.npy", "fragments": "fragments-3.npy"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert ShardSet(copy).read_whole(5) == ShardSet(shapes / "vp9").read_whole(5)


@pytest.mark.parametrize("at, value", [(0, 0.1), (7, 0.1), (7, -1), (7, 1e9), (7, float("nan")), (19, float("inf"))])
def test_times_that_cannot_be_true_are_a_bad_clip(tmp_path, at, value):
    shards = ShardSet(random_data_set(tmp_path))
    assert shards.times(3).tolist() == (np.arange(20) / 25).astype(np.float32).tolist()
    shards.fragments = shards.fragments.copy()
    shards.fragments["time"][3 * 20 + at] = value
    with pytest.raises(ClipError, match="clip 3: .*the times of its frames in the index are damaged"):
        shards.times(3)
    shards.times(2)


@pytest.mark.parametrize("gop", [1, 8, 300])
def test_slices_are_the_header_and_the_fragments_from_the_keyframes(tmp_path, gop):
    folder = random_data_set(tmp_path, shards=1, clips=2)
    edit_manifest(folder, gop=gop)
    shards, rng = ShardSet(folder), np.random.default_rng(gop)
    tar = (folder / "shard-000000.tar").read_bytes()
    start = int(shards.clips["offset"][1])
    ends = start + 600 + np.cumsum([0, *shards.fragments["size"][20:]])
    for _ in range(50):
        frames = rng.integers(0, 20, rng.integers(1, 9))
        needed = np.flatnonzero(needed_fragments(frames, gop, 20))
        data, at = shards.read(1, frames)
        assert data.tobytes() == tar[start : start + 600] + b"".join(tar[ends[i] : ends[i + 1]] for i in needed)
        assert needed[at].tolist() == frames.tolist()
