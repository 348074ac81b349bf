"""One shard: what is on the disk is believed only as far as it is what was written, and is on the disk before it counts."""

import os
from pathlib import Path

import pytest

from i2v.shard_tools import writer as writing
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.output import Output, OutputError
from i2v.shard_tools.source_video import RejectedVideo
from i2v.shard_tools.sources import load_sources
from i2v.shard_tools.writer import ShardWriter
from tests.making import Stop, contents, stop_after
from tests.videos import noise, write_video


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Five videos and one that is none."""
    root = tmp_path_factory.mktemp("source")
    for index in range(5):
        write_video(root / "climb" / f"{index}.mp4", noise(4 + index, seed=index))
    (root / "climb" / "text.mp4").write_text("no video\n" * 100)
    return root


def make(source, out: Path, stop_at=None, **arguments) -> dict[str, str]:
    """Checksums of what is made, or of what there is after `stop_at` videos."""
    on_progress = stop_after(stop_at) if stop_at else None
    videos, classes = load_sources(source)
    try:
        make_shards(videos, classes, out, EncodeSettings(short_side=48), shard_clips=6, on_progress=on_progress, **arguments)
    except Stop:
        pass
    return contents(out)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    return make(source, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("place", [0.0, 0.1, 0.4, 0.7, 0.999])
def test_bytes_of_an_unfinished_tar_that_rotted_are_made_again(source, whole, tmp_path, place):
    """Of the same size, so that only the journal's checksum tells."""
    make(source, tmp_path, stop_at=4)
    partial = tmp_path / "shard-000000.tar.partial"
    data = bytearray(partial.read_bytes())
    data[int(place * len(data))] ^= 1
    partial.write_bytes(data)
    assert make(source, tmp_path) == whole


def test_what_stands_behind_the_last_video_that_was_confirmed_is_cut_off(source, whole, tmp_path):
    """However long: nothing that comes later would write over the end of it."""
    make(source, tmp_path, stop_at=4)
    with open(tmp_path / "shard-000000.tar.partial", "ab") as file:
        file.write(b"x" * 1_000_000)
    with open(tmp_path / "shard-000000.journal.jsonl", "ab") as file:
        file.write(b'{"video": 4')
    assert make(source, tmp_path) == whole


@pytest.mark.parametrize("line", [1, 2, 4])
def test_a_line_of_the_journal_that_cannot_be_read_ends_it(source, whole, tmp_path, line):
    make(source, tmp_path, stop_at=4)
    journal = tmp_path / "shard-000000.journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[line] = b"\0" * len(lines[line])
    journal.write_bytes(b"".join(lines))
    assert make(source, tmp_path) == whole


@pytest.mark.parametrize("change", [{"seed": 1}, {"videos": "others"}, {}])
def test_a_journal_of_something_else_is_begun_again(source, tmp_path, change):
    """And one of the same is gone on with."""
    videos, _ = load_sources(source)
    output, made_with = Output(tmp_path), {"seed": 0, "videos": "these"}
    for made, expected in ((made_with, 0), (made_with | change, 0 if change else 1)):
        writer = ShardWriter(output, 0, videos)
        writer.resume(made)
        assert writer.done == expected
        if not writer.done:
            writer.add(RejectedVideo("it is a test"))
        writer.close()


def test_two_writers_of_a_shard_one_after_the_other(source, tmp_path):
    videos, _ = load_sources(source)
    first = ShardWriter(Output(tmp_path), 0, videos)
    with pytest.raises(OutputError, match="another make_shards is writing to"):
        ShardWriter(Output(tmp_path), 0, videos)
    first.close()
    ShardWriter(Output(tmp_path), 0, videos).close()


def test_a_journal_that_its_owner_has_just_removed_is_not_taken(source, tmp_path, monkeypatch):
    """Between opening it and locking it, whoever had it finished: a lock on a file without a name keeps nobody out."""
    videos, _ = load_sources(source)
    flock, names = writing.fcntl.flock, []

    def flock_late(descriptor, how):
        if not names:
            (tmp_path / "shard-000000.journal.jsonl").unlink()
        names.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr(writing.fcntl, "flock", flock_late)
    writer = ShardWriter(Output(tmp_path), 0, videos)
    assert len(names) == 2 and os.fstat(names[-1]).st_nlink == 1
    writer.close()


def test_everything_is_on_the_disk_before_what_says_that_it_is_there(source, tmp_path, monkeypatch):
    """A power cut at any time leaves files that are whole, and none that promises another one which is not."""
    events, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        events.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def renamed(old, new):
        events.append(("name", os.path.basename(new), os.path.basename(old)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    make(source, tmp_path)
    named = [event for event in events if event[0] == "name"]
    order = [name for _, name, _ in named]
    assert order[:3] == ["making.json", "shard-000000.tar", "shard-000000.part"] and order[-1] == "manifest.json"
    for event in named:
        at = events.index(event)
        assert ("sync", event[2]) in events[:at] and events[at + 1] == ("sync", tmp_path.name)
    assert ("sync", "shard-000000.journal.jsonl") in events[: events.index(named[1])]
