"""A file that is being replaced is the old one or the new one for whoever reads it, whatever ends the writer."""

import os
from dataclasses import replace

import pytest
import torch

from i2v import atomic, checkpoint
from i2v.atomic import remove_leftovers, replacing
from i2v.checkpoint import Backbone, Meta, load_checkpoint, save_checkpoint


class Died(BaseException):
    """What no handler of errors catches, as a kill."""


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, Died])
def test_until_all_is_written_the_old_file_is_there(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old" and temporary.parent == path.parent
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    """Root may replace /dev/null itself, and then nothing on the machine works."""
    path = tmp_path / "a"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/null")}[kind]()
    with pytest.raises(OSError, match=str(path if kind != "device" else "/dev/null")), replacing(path):
        raise AssertionError("nothing is made that has no place")
    assert not path.is_file() and os.listdir(tmp_path) == ["a"] and not os.path.isfile("/dev/null")


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to("there")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "new"


def test_two_writers_do_not_share_a_temporary_file(tmp_path):
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as other:
        assert one != other
        one.touch(), other.touch()


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_it_returns(tmp_path, monkeypatch):
    """Else a power cut leaves an empty file under the right name, or the old one after the new one was promised."""
    events, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        events.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def replaced(source, target):
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "fsync", synced)
    monkeypatch.setattr(atomic.os, "replace", replaced)
    with replacing(tmp_path / "a") as temporary:
        temporary.touch()
    assert events == [f"sync {temporary.name}", "replace", f"sync {tmp_path.name}"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "a.tmp").touch()
    with replacing(tmp_path / "b") as temporary:
        temporary.touch()
    temporary.touch()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.tmp", "b"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, Died])
def test_a_checkpoint_that_is_being_written_does_not_touch_the_one_before(tmp_path, monkeypatch, error):
    path, meta = tmp_path / "last.safetensors", Meta({}, Backbone("", "", None), [])
    save_checkpoint(path, {"a": torch.ones(3)}, meta)
    before, save = path.read_bytes(), checkpoint.save_file

    def save_half(tensors, name, metadata):
        save(tensors, name, metadata)
        with open(name, "r+b") as file:
            file.truncate(20)
        assert path.read_bytes() == before
        raise error

    monkeypatch.setattr(checkpoint, "save_file", save_half)
    with pytest.raises(error):
        save_checkpoint(path, {"a": torch.zeros(3)}, replace(meta, progress={"step": 2}))
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
    monkeypatch.undo()
    save_checkpoint(path, {"a": torch.zeros(3)}, replace(meta, progress={"step": 2}))
    tensors, meta = load_checkpoint(path)
    assert meta.progress["step"] == 2 and torch.equal(tensors["a"], torch.zeros(3))
