"""Remote data sets: the same bytes as local ones, whatever the store and the cache do, or an error that says what to do."""

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2v.pipelines import files, staging, store
from i2v.pipelines.cache import locked, parse_size
from i2v.pipelines.shards import ShardError, ShardSet
from i2v.pipelines.staging import File, StagedFiles
from i2v.pipelines.store import Retry, StoreError
from tests.processes import LIMIT, wait_for
from tests.stores import Store, random_data_set

pytestmark = pytest.mark.process

CLIPS, SHARDS = 12, 4
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_data_set(tmp_path_factory.mktemp("random") / "data")


@pytest.fixture(autouse=True)
def url(folder, monkeypatch):
    """Of a copy of the data set; failures are quick."""
    monkeypatch.setattr(store, "RETRY", Retry(tries=4, wait=0.001, timeout=LIMIT))
    Store.reset()
    return Store.put(folder, "data")


def sizes(cache):
    found = {}
    for path in (cache / "i2v-staged").glob("*/*"):
        with suppress(FileNotFoundError):  # staging goes on meanwhile
            found |= {path.name: path.stat().st_size} if path.suffix != ".lock" else {}
    return found


def staged_shards(cache):
    return sorted(name[:12] for name in sizes(cache) if name.endswith(".tar"))


def is_same(local: ShardSet, remote: ShardSet, clips=range(CLIPS)) -> bool:
    pairs = ((local.read(clip, [3, 9, 17]), remote.read(clip, [3, 9, 17])) for clip in clips)
    return all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in pairs)


def let_time_pass(cache):
    """What happens next comes later than what happened, by the clock of the file system too."""
    for path in (cache / "i2v-staged").glob("*/*"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))


def fail(*names, times=1000, error=OSError("connection reset")):
    """The store's answer for these names: errors, `times` times in all."""
    left = [times]

    def answer(name, data):
        if name in names and left[0] > 0:
            left[0] -= 1
            raise error
        return data

    return staticmethod(answer)


def room_for(folder, shards, index=True) -> int:
    """Bytes of the index and so many shards."""
    index = sum((folder / name).stat().st_size for name in ("clips.npy", "fragments.npy"))
    return index + sum(sorted((path.stat().st_size for path in folder.glob("*.tar")), reverse=True)[:shards])


# ---- the same bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["memory", "file", "store"])
@pytest.mark.parametrize("shards", [1, 2, None])
def test_remote_clips_are_the_local_ones_however_small_the_cache(folder, tmp_path, scheme, shards):
    import fsspec

    url = {"memory": "memory://data", "file": f"file://{folder}", "store": "store://data/manifest.json"}[scheme]
    for path in folder.iterdir() if scheme == "memory" else ():
        fsspec.filesystem("memory").pipe_file(f"/data/{path.name}", path.read_bytes())
    local, remote = ShardSet(folder), ShardSet(url, tmp_path, room_for(folder, shards) if shards else None)
    assert remote.remote and not local.remote and remote.classes == local.classes
    assert np.array_equal(remote.clips, local.clips) and np.array_equal(remote.fragments, local.fragments)
    assert is_same(local, remote, np.random.default_rng(0).permutation(np.repeat(np.arange(CLIPS), 3)))
    assert len(staged_shards(tmp_path)) == (shards or SHARDS)


def test_a_shard_is_fetched_once_for_all_threads_and_in_pieces(folder, url, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 7000)
    local, remote = ShardSet(folder), ShardSet(url, tmp_path)
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda seed: is_same(local, remote, np.random.default_rng(seed).permutation(CLIPS)), range(16)))
    for shard in local.manifest["shards"]:
        assert Store.requests.count(shard["name"]) == -(-shard["bytes"] // 7000) > 2


def test_a_second_data_set_with_the_same_names_does_not_collide(folder, url, tmp_path):
    other = random_data_set(tmp_path / "other", seed=1)
    Store.put(other, "elsewhere/data")
    remotes = ShardSet(url, tmp_path / "cache"), ShardSet("store://elsewhere/data", tmp_path / "cache")
    assert is_same(ShardSet(folder), remotes[0]) and is_same(ShardSet(other), remotes[1])


def test_a_data_set_that_changed_is_noticed_and_what_did_not_change_is_kept(folder, url, tmp_path):
    assert is_same(ShardSet(folder), ShardSet(url, tmp_path / "cache"))
    Store.requests.clear()
    assert is_same(ShardSet(folder), ShardSet(url, tmp_path / "cache"))
    assert set(Store.requests) == {"manifest.json"}
    longer = random_data_set(tmp_path / "longer", shards=SHARDS + 1)  # the first shards' sizes differ: all is new
    Store.put(longer, "data")
    remote = ShardSet(url, tmp_path / "cache")
    assert len(remote) == CLIPS + 3 and is_same(ShardSet(longer), remote)


# ---- room ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_cache_never_holds_more_than_it_may(folder, url, tmp_path, shards):
    limit, most = room_for(folder, shards), []

    def answer(name, data):
        with locked(tmp_path / "i2v-staged" / ".lock"):
            most.append(sum(sizes(tmp_path).values()))
        return data

    Store.answer = staticmethod(answer)
    local, remote = ShardSet(folder), ShardSet(url, tmp_path, limit)
    with ThreadPoolExecutor(4) as threads:
        for seed in range(3):
            remote.expect(np.random.default_rng(seed).permutation(SHARDS))
            assert all(threads.map(lambda clip: is_same(local, remote, [clip]), np.random.default_rng(seed).permutation(CLIPS)))
    assert max(most) <= limit


def test_what_is_expected_is_staged_ahead(folder, url, tmp_path):
    remote = ShardSet(url, tmp_path)
    remote.expect([2, 0, 2])
    wait_for(lambda: staged_shards(tmp_path) == ["shard-000000", "shard-000002"])
    Store.answer = fail("shard-000000.tar", "shard-000002.tar")
    assert is_same(ShardSet(folder), remote, [0, 1, 2, 6, 7, 8])


def test_staging_ahead_removes_nothing_that_is_expected(folder, url, tmp_path):
    remote = ShardSet(url, tmp_path, room_for(folder, 2))
    for _ in range(3):
        remote.expect([3, 1, 0, 2])
        wait_for(lambda: remote.files._workers == 0)
    fetched = [f"{name}.tar" for name in staged_shards(tmp_path)]
    assert len(fetched) == 2 and sorted(name for name in Store.requests if name.endswith(".tar")) == fetched
    remote.expect([2, 3])
    wait_for(lambda: staged_shards(tmp_path) == ["shard-000002", "shard-000003"])


def test_the_least_recently_used_shard_goes_first(folder, url, tmp_path):
    remote = ShardSet(url, tmp_path, room_for(folder, 3))
    for clip in (0, 3, 6, 1, 9):  # shards 0 1 2 0 3
        remote.read(clip, [0])
        let_time_pass(tmp_path)
    assert staged_shards(tmp_path) == ["shard-000000", "shard-000002", "shard-000003"]


def test_a_shard_that_is_being_read_and_an_open_index_stay(folder, url, tmp_path):
    ShardSet(url, tmp_path).read(0, [0])
    remote = ShardSet(url, tmp_path, room_for(folder, 2))
    with remote.files.open(remote._shards[0]) as descriptor:
        for clip in (3, 6, 9, 4):
            remote.read(clip, [0])
        assert "shard-000000" in staged_shards(tmp_path)
        assert os.pread(descriptor, 1 << 20, 0) == (folder / "shard-000000.tar").read_bytes()
    assert len([name for name in sizes(tmp_path) if name.endswith(".npy")]) == 2
    del remote
    small = random_data_set(tmp_path / "other", shards=3, seed=1)
    assert is_same(ShardSet(small), ShardSet(Store.put(small, "b"), tmp_path, room_for(small, 1)), range(9))
    assert len([name for name in sizes(tmp_path) if name.endswith(".npy")]) == 2  # those of b


def test_a_large_shard_takes_the_place_of_several_small_ones(folder, url, tmp_path):
    large = random_data_set(tmp_path / "large", shards=1, clips=8, seed=1)
    local, remote = ShardSet(large), ShardSet(Store.put(large, "large"), tmp_path / "cache")
    limit = room_for(folder, 0) + room_for(large, 1)
    small = ShardSet(url, tmp_path / "cache", limit)
    small.files.cache.limit = remote.files.cache.limit = limit
    assert is_same(ShardSet(folder), small, range(6)) and len(staged_shards(tmp_path / "cache")) == 2
    assert is_same(local, remote, range(8))
    assert len(staged_shards(tmp_path / "cache")) == 1 and sum(sizes(tmp_path / "cache").values()) <= limit


def test_a_cache_smaller_than_a_shard_is_refused(folder, url, tmp_path):
    remote = ShardSet(url, tmp_path, room_for(folder, 1) - 1000)
    with pytest.raises(StoreError, match=r"has no room for the [\d,]+ bytes of store://data/.* cache_size is [\d,]+ bytes"):
        for clip in range(CLIPS):
            remote.read(clip, [0])


@pytest.mark.parametrize("where", ["posix_fallocate", "pwrite"])
def test_a_full_disk_makes_room_or_says_so(folder, url, tmp_path, monkeypatch, where):
    limit, real = room_for(folder, 2), getattr(os, where)

    def full(descriptor, *arguments):
        if sum(sizes(tmp_path).values()) + (arguments[-1] if where == "posix_fallocate" else 0) > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, *arguments)

    monkeypatch.setattr(os, where, full)
    remote = ShardSet(url, tmp_path)
    assert is_same(ShardSet(folder), remote)
    limit = 0
    Store.put(random_data_set(tmp_path / "other", seed=1), "other")
    with pytest.raises(StoreError, match="has no room for .* .its disk has .* cache_size is not set.: make room"):
        ShardSet("store://other", tmp_path)


# ---- stores that fail ------------------------------------------------------------------------------------------------


def test_a_store_that_fails_now_and_then_is_asked_again(folder, url, tmp_path):
    count = [0]

    def answer(name, data):
        count[0] += 1
        if count[0] % 4:
            raise [OSError("reset"), ValueError("503 slow down"), RuntimeError("what")][count[0] % 3]
        return data

    Store.answer = staticmethod(answer)
    assert is_same(ShardSet(folder), ShardSet(url, tmp_path))


@pytest.mark.parametrize("name", ["manifest.json", "clips.npy", "fragments.npy", "shard-000002.tar"])
def test_a_store_that_keeps_failing_is_an_error_that_says_what_was_tried(url, tmp_path, name):
    Store.answer = fail(name)
    with pytest.raises(StoreError, match=rf"store://data/{name} cannot be read, tried 4 times \(OSError: connection reset\)"):
        ShardSet(url, tmp_path).read(7, [0])
    assert Store.requests.count(name) == 4


def test_wrong_data_of_the_right_size_is_not_taken(folder, url, tmp_path):
    wrong = [6]

    def answer(name, data):
        wrong[0] -= name == "shard-000002.tar"
        return bytes(len(data)) if name == "shard-000002.tar" and wrong[0] >= 0 else data

    Store.answer = staticmethod(answer)
    remote = ShardSet(url, tmp_path)
    with pytest.raises(StoreError, match="shard-000002.tar cannot be read, tried 4 times .*its checksum is not the manifest's"):
        remote.read(7, [0])
    assert is_same(ShardSet(folder), remote)  # right from the third answer on


@pytest.mark.parametrize("size", [None, 100])
def test_a_store_that_misses_a_shard_is_found_out_at_the_start(url, tmp_path, size):
    shard = Store.files.pop("data/shard-000001.tar")
    if size:
        Store.files["data/shard-000001.tar"] = shard[:size]
    with pytest.raises(
        StoreError, match="store://data/shard-000001.tar (does not exist|has 100 bytes where the manifest says)"
    ):
        ShardSet(url, tmp_path)


def test_a_store_that_cannot_list_is_read_all_the_same(folder, url, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "ls", lambda *_, **__: (_ for _ in ()).throw(NotImplementedError()))
    assert is_same(ShardSet(folder), ShardSet(url, tmp_path))


def test_threads_that_wait_for_the_same_shard_fail_together(url, tmp_path, monkeypatch):
    remote, waiting = ShardSet(url, tmp_path), []

    def counting(path):
        waiting.append(path)
        return locked(path)

    def answer(name, data):
        wait_for(lambda: len([path for path in waiting if path.suffix == ".lock" and "2-" in path.name]) == 4)
        raise OSError("connection reset")

    monkeypatch.setattr(staging, "locked", counting)
    Store.answer = staticmethod(answer)
    with ThreadPoolExecutor(4) as threads:
        reads = [threads.submit(remote.read, 7, [0]) for _ in range(4)]
        assert all("tried 4 times" in str(read.exception()) for read in reads)
    assert Store.requests.count("shard-000002.tar") == 4


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), OSError("no number"), MemoryError(), ValueError("odd"), KeyError(1)]
)
@pytest.mark.parametrize("where", ["_stage", "_open_staged"])
def test_whatever_a_staging_thread_meets_staging_goes_on(url, tmp_path, monkeypatch, error, where):
    remote = ShardSet(url, tmp_path)

    def failing(*args, **kwargs):
        raise error

    for _ in range(2):  # more often than there are threads
        with monkeypatch.context() as patched:
            patched.setattr(StagedFiles, where, failing)
            remote.expect(range(SHARDS))
            wait_for(lambda: remote.files._workers == 0)
    assert staged_shards(tmp_path) == []
    remote.expect(range(SHARDS))
    wait_for(lambda: len(staged_shards(tmp_path)) == SHARDS and remote.files._workers == 0)


def test_a_staged_file_that_cannot_be_locked_is_told_as_the_stores(url, tmp_path, monkeypatch):
    remote = ShardSet(url, tmp_path)
    remote.read(0, np.array([0]))

    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(staging.fcntl, "flock", flock)
    with pytest.raises(StoreError, match="No locks available.*check the cache's disk"):
        remote.read(0, np.array([0]))


def test_failures_ahead_of_need_are_reported_when_needed(url, tmp_path):
    remote = ShardSet(url, tmp_path)
    Store.answer = fail("shard-000001.tar")
    remote.expect(range(SHARDS))
    wait_for(lambda: remote.files._workers == 0)
    remote.read(0, [0])
    with pytest.raises(StoreError, match="shard-000001.tar cannot be read, tried 4 times"):
        remote.read(3, [0])


# ---- copies that are lost or damaged ---------------------------------------------------------------------------------


def test_copies_that_vanish_or_rot_are_fetched_again(folder, url, tmp_path):
    import shutil

    local, remote = ShardSet(folder), ShardSet(url, tmp_path)
    assert is_same(local, remote)
    for path in (tmp_path / "i2v-staged").glob("*/*.tar"):
        path.write_bytes(bytes(path.stat().st_size)) if "2-" in path.name else path.unlink()
    assert is_same(local, remote)
    for path in (tmp_path / "i2v-staged").glob("*/*.tar"):
        os.truncate(path, 1000)
    assert is_same(local, remote)
    shutil.rmtree(tmp_path / "i2v-staged")
    assert is_same(local, remote)


def test_a_damaged_copy_that_cannot_be_removed_is_an_error_of_the_cache(url, tmp_path, monkeypatch):
    remote = ShardSet(url, tmp_path)
    remote.read(0, [0])
    (path,) = (tmp_path / "i2v-staged").glob("*/*.tar")
    path.write_bytes(bytes(path.stat().st_size))

    def refuse(self, **_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StoreError, match="shard-000000-.*.tar cannot be removed .Permission denied.: check the cache's disk"):
        remote.read(0, [0])


@pytest.mark.parametrize("name", ["clips", "fragments"])
def test_a_damaged_copy_of_the_index_is_fetched_again(folder, url, tmp_path, name):
    ShardSet(url, tmp_path)
    (path,) = (tmp_path / "i2v-staged").glob(f"*/{name}-*.npy")
    data = bytearray(path.read_bytes())
    data[200 if name == "clips" else 20] ^= 16
    path.write_bytes(data)
    assert is_same(ShardSet(folder), ShardSet(url, tmp_path))


def test_damage_that_is_in_the_store_too_is_reported_and_fetched_once(url, tmp_path):
    """The shard is as the manifest says, but the index asks for something else."""
    remote = ShardSet(url, tmp_path)
    remote.fragments = remote.fragments.copy()
    remote.fragments["crc"][7 * 20] ^= 1
    for _ in range(3):
        with pytest.raises(RuntimeError, match="clip 7: .*frame 0 is damaged"):
            remote.read(7, [0])
    assert Store.requests.count("shard-000002.tar") == 2


def test_a_damaged_copy_that_another_process_has_replaced_is_not_fetched_again(folder, url, tmp_path):
    remote = ShardSet(url, tmp_path)
    file, path = remote._shards[0], remote.files._local(remote._shards[0])
    with remote.files.open(file) as descriptor:
        path.unlink()
        path.write_bytes((folder / file.name).read_bytes())
        assert remote.files.discard(file, descriptor) and path.exists()
    with remote.files.open(file) as descriptor:
        assert remote.files.discard(file, descriptor) and not path.exists()
    with remote.files.open(file) as descriptor:
        assert not remote.files.discard(file, descriptor) and path.exists()


PROGRAM = """
import sys, time, numpy as np
from i2v.pipelines import staging, store
from i2v.pipelines.shards import ShardSet
{setup}
local, remote = ShardSet({folder!r}), ShardSet({url!r}, {cache!r}, {limit})
for clip in np.random.default_rng({seed}).permutation(np.repeat(np.arange(12), 20)):
    assert np.array_equal(local.read(clip, [7, 8])[0], remote.read(clip, [7, 8])[0])
"""


def program(folder, cache, limit=None, seed=0, setup=""):
    code = PROGRAM.format(folder=str(folder), url=f"file://{folder}", cache=str(cache), limit=limit, seed=seed, setup=setup)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)


def test_processes_share_a_cache_that_is_too_small_for_all(folder, tmp_path):
    running = [program(folder, tmp_path, room_for(folder, 2), seed) for seed in range(3)]
    assert [process.wait(LIMIT) for process in running] == [0, 0, 0]
    assert sum(sizes(tmp_path).values()) <= room_for(folder, 2)


def test_a_killed_download_leaves_nothing_that_is_taken_for_a_shard(folder, tmp_path):
    stall = "store.CHUNK = 5000; pwrite = staging.os.pwrite\n" + (
        "staging.os.pwrite = lambda *a: (a[2] < 15000 or (print('here', flush=True), time.sleep(600))) and pwrite(*a)"
    )
    process = program(folder, tmp_path, setup=stall)
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = (name for name in sizes(tmp_path) if name.endswith(".part"))
    size = (folder / "shard-000000.tar").stat().st_size
    assert staged_shards(tmp_path) == [] and sizes(tmp_path)[left] > size / 2
    remote = ShardSet(f"file://{folder}", tmp_path, room_for(folder, 1))  # what was left takes room until it is removed
    assert is_same(ShardSet(folder), remote)
    assert not any(name.endswith(".part") for name in sizes(tmp_path))


# ---- settings --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_opened_says_why(url, tmp_path):
    with pytest.raises(StoreError, match="store://data is remote: set cache to a folder on a local disk"):
        ShardSet(url)
    with pytest.raises(StoreError, match="nosuch://data cannot be opened: .*nosuch"):
        ShardSet("nosuch://data", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used as a cache .*: set cache to a folder"):
        ShardSet(url, tmp_path / "file")
    with pytest.raises(ValueError, match="cache_size is 'much'"):
        ShardSet(url, tmp_path, "much")


def test_names_in_a_manifest_are_never_paths(folder, url, tmp_path):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["crc32"]
    for name in ("../shard-000000.tar", "/tmp/x.tar", "", "..", "a/b.tar", 7):
        manifest["shards"][0]["name"] = name
        Store.files["data/manifest.json"] = json.dumps(manifest).encode()
        with pytest.raises(ShardError, match="manifest.json is damaged .shards is missing or wrong"):
            ShardSet(url, tmp_path)


def test_a_shard_without_a_checksum_cannot_be_staged(folder, url, tmp_path):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["crc32"], manifest["index_crc32"]
    Store.files["data/manifest.json"] = json.dumps(manifest).encode()
    with pytest.raises(StoreError, match="has no checksum of clips.npy: run make_shards again"):
        ShardSet(url, tmp_path)


@given(number=st.integers(1, 10**15))
def test_sizes_are_read_as_numbers(number):
    assert parse_size(number) == parse_size(str(number)) == parse_size(f" {number}B ") == number


def test_sizes_are_read_as_text():
    texts = {"200GB": 200 * 10**9, "1.5 tb": 15 * 10**11, "2GiB": 2 << 30, "10k": 10**4, "2e12": 2 * 10**12, "3M": 3 * 10**6}
    assert {text: parse_size(text) for text in texts} == texts
    for wrong in ("", "0", "-1", "GB", "1 PB x", "nan", 0, -5, True, 0.2):
        with pytest.raises(ValueError, match="must be a number of bytes, or a text such as 200GB"):
            parse_size(wrong)


def test_local_files_keep_a_bounded_number_open(folder, monkeypatch):
    monkeypatch.setattr(files, "OPEN_FILES", 2)
    shards = ShardSet(folder)
    for clip in range(CLIPS):
        shards.read(clip, [0])
        assert shards.files._opened.cache_info().currsize <= 2
    with pytest.raises(ShardError, match="nothing.tar cannot be read"), shards.files.open(File("nothing.tar")):
        pass
