"""Faults of disks, stores and files, through the loader: right batches, a quarantined clip or a clear error."""

import hashlib
import itertools
import json
import os
import shutil
import threading
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest

from i2v.pipelines import ShardError, build_loader, store
from i2v.pipelines.shards import ClipError, ShardSet
from i2v.pipelines.store import Retry, StoreError
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.sources import load_sources
from tests.processes import LIMIT, wait_for
from tests.stores import Store, write_manifest

OPTIONS = {"num_frames": 4, "size": 32, "threads": 1, "device": "cpu", "batch_size": 5}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(store, "RETRY", Retry(tries=4, wait=0.001, timeout=LIMIT))
    Store.reset()


def batches(manifest, steps=10, after_each=lambda: None, **options):
    """(id, label, weight, checksum of the pixels) of every sample."""
    with_pixels = []
    for batch in itertools.islice(build_loader(manifest, **OPTIONS, **options), steps):
        after_each()
        pixels = (hashlib.sha256(clip.contiguous().numpy().tobytes()).hexdigest() for clip in batch.clips)
        with_pixels += zip(batch.ids.tolist(), batch.labels.tolist(), batch.weights.tolist(), pixels)
    return with_pixels


@pytest.fixture(scope="module")
def expected(shapes):
    return batches(shapes / "vp9")


# ---- remote ----------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("kind", ["memory", "failing", "rotting"])
def test_batches_are_those_of_the_local_data_set(shapes, expected, tmp_path, kind):
    import fsspec

    manifest = json.loads((shapes / "vp9" / "manifest.json").read_text())
    largest = max(shard["bytes"] for shard in manifest["shards"])
    index = sum((shapes / "vp9" / f"{name}.npy").stat().st_size for name in ("clips", "fragments"))
    url, count, rotten = Store.put(shapes / "vp9", "data"), Counter(), []
    if kind == "memory":
        for path, data in Store.files.items():
            fsspec.filesystem("memory").pipe_file(f"/{path}", data)
        url = "memory://data"

    def answer(name, data):
        """Fails two times in three."""
        count[name] += 1
        if kind == "failing" and count[name] % 3:
            raise OSError("reset")
        return data

    def rot():
        """After the first batch what is staged becomes zeros, which is at least one shard."""
        if kind == "rotting" and not rotten:
            wait_for(lambda: rotten.extend((tmp_path / "i2v-staged").glob("*/shard-*.tar")) or rotten)
            for path in rotten:
                with suppress(FileNotFoundError), open(path, "r+b") as file:  # staging goes on meanwhile
                    file.write(bytes(os.fstat(file.fileno()).st_size))

    Store.answer = staticmethod(answer)
    quarantine = tmp_path / "quarantine.csv"
    found = batches(url, after_each=rot, cache=tmp_path, cache_size=index + 2 * largest, quarantine=quarantine)
    assert found == expected and not quarantine.exists() and bool(rotten) == (kind == "rotting")


@pytest.mark.process
@pytest.mark.parametrize("fault", ["fails", "stalls", "truncated", "wrong", "gone"])
def test_a_store_that_stops_working_in_mid_epoch_ends_the_run(shapes, tmp_path, monkeypatch, fault):
    url, released = Store.put(shapes / "vp9", "data"), threading.Event()

    def answer(name, data):
        if name != "shard-000001.tar":
            return data
        if fault == "fails":
            raise OSError("reset")
        if fault == "gone":
            raise FileNotFoundError(name)
        if fault == "stalls":
            released.wait(LIMIT)
        return data[:100] if fault == "truncated" else bytes(len(data))

    Store.answer = staticmethod(answer)

    def impatient(self, what, name, call, times=1, ask=store.Store._ask):  # with this shard only
        return ask(self, what, name, call, 0.1 / LIMIT if fault == "stalls" and name == "shard-000001.tar" else times)

    monkeypatch.setattr(store, "RETRY", Retry(tries=3, wait=0.001, timeout=LIMIT))
    monkeypatch.setattr(store.Store, "_ask", impatient)
    try:
        with pytest.raises(StoreError, match="store://data/shard-000001.tar (cannot be read, tried 3 times|does not exist)"):
            batches(url, cache=tmp_path, quarantine=tmp_path / "quarantine.csv")
    finally:
        released.set()
    assert not (tmp_path / "quarantine.csv").exists()


@pytest.mark.process
def test_a_full_cache_ends_the_run(shapes, tmp_path):
    with pytest.raises(StoreError, match="has no room for the .* bytes of store://data/"):
        batches(Store.put(shapes / "vp9", "data"), cache=tmp_path, cache_size="20kB")


# ---- shards ----------------------------------------------------------------------------------------------------------


def span(shards: ShardSet, clip_id: int) -> slice:
    """Where a clip's mp4 is in its tar."""
    clip = shards.clips[clip_id]
    first, count, start = int(clip["first_fragment"]), int(clip["frames"]), int(clip["offset"])
    return slice(start, start + int(clip["header_size"]) + int(shards.fragments["size"][first : first + count].sum()))


def spoil(folder, clip_id, how):
    """Damage one clip in its shard, or from it on."""
    shards = ShardSet(folder)
    path, at = folder / shards.manifest["shards"][int(shards.clips["shard"][clip_id])]["name"], span(shards, clip_id)
    data = bytearray(path.read_bytes())
    if how == "zeroed":
        data[at] = bytes(at.stop - at.start)
    elif how == "bit flips":
        for byte in np.random.default_rng(clip_id).integers(at.start, at.stop, 20):
            data[byte] ^= 1 << int(byte) % 8
    elif how == "missing member":
        data[at.start - 512 : at.stop + -at.stop % 512] = b""
        data += bytes(path.stat().st_size - len(data))
    elif how == "truncated":
        del data[at.start + 100 :]
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["zeroed", "bit flips", "missing member", "truncated"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_damaged_members_are_quarantined_or_refused(shapes, expected, copy, tmp_path, how, split):
    good = expected if split == "train" else batches(shapes / "vp9", split=split)
    spoil(copy, 7, how)
    try:
        found = batches(copy, split=split, quarantine=tmp_path / "quarantine.csv")
    except ShardError as error:
        assert how in ("truncated", "missing member") and "shard-00000" in str(error)
        return
    assert how != "truncated" and [(i, label) for i, label, *_ in found] == [(i, label) for i, label, *_ in good]
    spoilt = {i for i, _, weight, _ in found if weight == 0}
    spoilt -= {i for i, _, weight, _ in good if weight == 0}
    assert spoilt == {7} or how == "missing member" and 7 in spoilt  # what comes after it is elsewhere too
    assert all(after == before for before, after in zip(good, found) if before[0] not in spoilt)


@pytest.fixture(scope="module")
def small_shards(shapes, tmp_path_factory):
    """Data sets of 8 clips, with 1, 2 or 3 clips in a shard; with another crf; and what the loader makes of them."""
    made, (videos, classes) = {}, load_sources(shapes / "train")
    for clips, crf in itertools.product((1, 2, 3), (40, 60)):
        made[clips, crf] = tmp_path_factory.mktemp("small") / "set"
        make_shards(videos[::3], classes, made[clips, crf], EncodeSettings(short_side=48, crf=crf), shard_clips=clips)
    return made, batches(made[1, 40], split="val")


@pytest.mark.parametrize("how", ["zeroed", "bit flips", "first blocks", "sizes in the index"])
@pytest.mark.parametrize("clips", [1, 2, 3])
def test_damage_to_every_clip_of_a_shard_costs_these_clips_only(small_shards, tmp_path, clips, how):
    made, good = small_shards
    copy = shutil.copytree(made[clips, 40], tmp_path / "copy")
    shards, fragments = ShardSet(copy), np.load(copy / "fragments.npy")
    for clip in range(clips):
        if how == "sizes in the index":
            fragments["size"][clip * 20 : clip * 20 + 20] ^= 3
            np.save(copy / "fragments.npy", fragments)
        elif how == "first blocks":  # the header in the tar as well
            path, at = copy / "shard-000000.tar", int(shards.clips["offset"][clip]) - 512
            path.write_bytes(path.read_bytes()[:at] + bytes(1024) + path.read_bytes()[at + 1024 :])
        else:
            spoil(copy, clip, how)
    found = batches(copy, split="val", quarantine=tmp_path / "quarantine.csv")
    assert [(i, label) for i, label, *_ in found] == [(i, label) for i, label, *_ in good]
    assert [i for i, _, weight, _ in found[:8] if weight == 0] == list(range(clips))
    assert found[clips:8] == good[clips:8]


@pytest.mark.parametrize("clips", [1, 2, 3])
@pytest.mark.parametrize("other", ["shard", "crf", "zeros"])
def test_a_small_shard_that_was_swapped_is_refused(small_shards, tmp_path, clips, other):
    """By another of the same data set, or by the same videos stored otherwise, at the same size."""
    made, _ = small_shards
    copy = shutil.copytree(made[clips, 40], tmp_path / "copy")
    path = copy / "shard-000000.tar"
    others = {"shard": copy / "shard-000001.tar", "crf": made[clips, 60] / path.name}
    data, size = b"" if other == "zeros" else others[other].read_bytes(), path.stat().st_size
    path.write_bytes(data[:size].ljust(size, b"\0"))
    with pytest.raises(ShardError, match="shard-000000.tar is not the file this index was made for"):
        batches(copy, split="val")


def test_where_no_clip_can_be_read_the_run_says_so(small_shards, tmp_path):
    made, _ = small_shards
    copy = shutil.copytree(made[3, 40], tmp_path / "copy")
    for clip in range(8):
        spoil(copy, clip, "zeroed")
    with pytest.raises(ShardError, match="None of .* clips of .* can be read and decoded|clips in .* are bad, more than the 5"):
        batches(copy, split="val")


@pytest.mark.process
@pytest.mark.parametrize("fault", ["removed", "shortened", "another"])
def test_a_shard_that_changes_in_mid_epoch_ends_the_run(copy, fault):
    loader = iter(build_loader(copy, "val", **OPTIONS))
    last = sorted(copy.glob("*.tar"))[-1]
    if fault == "removed":
        last.unlink()
    elif fault == "shortened":
        last.write_bytes(last.read_bytes()[:-512])
    else:
        last.write_bytes((copy / "shard-000000.tar").read_bytes()[: last.stat().st_size].ljust(last.stat().st_size, b"\0"))
    with pytest.raises(ShardError, match=f"{last.name} (cannot be read|has .* bytes where|is not the file this index)"):
        list(loader)


# ---- the index -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clips.npy", "fragments.npy", "manifest.json"])
def test_no_flipped_bit_in_the_index_gives_a_wrong_label_time_or_pixel(shapes, copy, name):
    """Errors when the data set is opened or read are right; what is read is right, times up to their neighbours."""
    rng, truth, path = np.random.default_rng(0), ShardSet(shapes / "vp9"), copy / name
    whole = [truth.read_whole(clip) for clip in range(len(truth))]
    original, refused, bad = path.read_bytes(), 0, 0
    for trial in range(250):
        data = bytearray(original)
        for byte in rng.integers(0, len(data) if trial % 2 else min(256, len(data)), 1 + trial % 3):
            data[byte] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            shards = ShardSet(copy)
        except ShardError:
            refused += 1
            continue
        if "crc32" not in shards.manifest:
            continue  # a flip took the name of its checksum: it counts as edited on purpose
        assert np.array_equal(shards.clips, truth.clips) and shards.classes == truth.classes
        assert {k: v for k, v in shards.manifest.items() if k in truth.manifest} | {"crc32": 0} == truth.manifest | {"crc32": 0}
        changed = np.unique(np.flatnonzero(shards.fragments != truth.fragments) // 20)
        for clip in changed if len(changed) else rng.integers(0, len(truth), 3):
            try:
                assert shards.read_whole(clip) == whole[clip]
            except (ClipError, ShardError):
                bad += 1
            try:
                times, true = shards.times(clip), truth.times(clip)
            except ClipError:
                bad += 1
                continue
            assert (times[1:] >= true[:-1]).all() and (times[:-1] <= true[1:]).all()
    assert refused > 50 and (bad > 50 or name != "fragments.npy")


def test_a_label_that_was_changed_in_its_range_is_noticed(copy):
    clips = np.load(copy / "clips.npy")
    clips["label"][3] ^= 1
    np.save(copy / "clips.npy", clips)
    with pytest.raises(ShardError, match="clips.npy is damaged or of another data set"):
        build_loader(copy, **OPTIONS)


def test_a_wrong_size_or_checksum_in_the_index_costs_its_clip_only(expected, copy, tmp_path):
    fragments = np.load(copy / "fragments.npy")
    fragments["size"][7 * 20 : 8 * 20] += 5
    fragments["crc"][11 * 20 : 12 * 20] ^= 1
    np.save(copy / "fragments.npy", fragments)
    found = batches(copy, quarantine=tmp_path / "quarantine.csv")
    assert {i for i, _, weight, _ in found if weight == 0} == {7, 11}
    assert all(after == before for before, after in zip(expected, found) if before[0] not in (7, 11))


@pytest.mark.parametrize("name", ["clips.npy", "fragments.npy", "manifest.json"])
@pytest.mark.parametrize("fault", ["missing", "empty", "zeroed", "truncated"])
def test_an_index_that_is_not_whole_is_refused_by_name(copy, name, fault):
    data = (copy / name).read_bytes()
    (copy / name).unlink()
    if fault != "missing":
        (copy / name).write_bytes({"empty": b"", "zeroed": bytes(len(data)), "truncated": data[: len(data) * 2 // 3]}[fault])
    with pytest.raises(ShardError, match=name):
        build_loader(copy, **OPTIONS)


def test_a_manifest_that_was_edited_with_its_checksums_is_taken(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    write_manifest(copy, manifest | {"classes": [f"{name}!" for name in manifest["classes"]]})
    assert all(name.endswith("!") for name in ShardSet(copy).classes)
