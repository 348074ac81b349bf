"""Shards with other class names: the same clips, the labels asked for, and nothing else changed."""

import csv
import errno
import json
import os
import re
import shutil

import numpy as np
import pytest

from i2v.pipelines.shards import ShardSet
from i2v.shard_tools.relabel import main
from i2v.shard_tools.verify import verify


def relabel(data, out, *options):
    return main([str(data), "--out", str(out), *map(str, options)])


def clips_of(folder):
    """Source path -> (the stored mp4, class name, label, all else that its json says)."""
    shards = ShardSet(folder)
    found = {}
    for clip in range(len(shards)):
        facts = shards.metadata(clip)
        name, label = facts.pop("class"), facts.pop("label")
        assert label == shards.clips["label"][clip] and (label < 0 or shards.classes[label] == name)
        found[facts["source"]] = (shards.read_whole(clip), name, label, facts)
    return found


def test_the_order_of_another_class_list(shapes, tmp_path):
    old = ShardSet(shapes / "vp9-val")
    names = [*reversed(old.classes), "never seen"]
    (tmp_path / "classes.json").write_text(json.dumps(names))
    assert relabel(shapes / "vp9-val", tmp_path / "new", "--classes", tmp_path / "classes.json") == 0
    before, after = clips_of(shapes / "vp9-val"), clips_of(tmp_path / "new")
    assert ShardSet(tmp_path / "new").classes == names and before.keys() == after.keys()
    for source, (data, name, label, facts) in before.items():
        assert after[source] == (data, name, len(old.classes) - 1 - label, facts)
    assert verify(tmp_path / "new", None)["problems"] == []
    for key in ("codec", "gop", "short_side", "sizes", "frames", "hours", "encoder"):
        assert ShardSet(tmp_path / "new").manifest[key] == old.manifest[key]


def test_classes_are_renamed_merged_and_left_out(shapes, tmp_path):
    (tmp_path / "map.csv").write_text("from,to\nleft,sideways\nright,sideways\nup,rising\ndown,\n")
    assert relabel(shapes / "vp9", tmp_path / "new", "--map", tmp_path / "map.csv") == 0
    wanted = {"left": "sideways", "right": "sideways", "up": "rising"}
    before, after = clips_of(shapes / "vp9"), clips_of(tmp_path / "new")
    assert {source: found[1] for source, found in after.items()} == {
        source: wanted.get(name, name) for source, (_, name, *_) in before.items() if name != "down"
    }
    with open(tmp_path / "new" / "clips.csv", newline="") as file:
        assert {row["path"]: row["class"] for row in csv.DictReader(file)} == {s: found[1] for s, found in after.items()}


@pytest.mark.parametrize(
    "option, text, sentence",
    [
        ("--map", "from,to\nlefft,a\n", "the map renames 'lefft', which is no class of .*: the nearest is 'left'"),
        ("--classes", "left\nright\n", "class 'clockwise' of .* is not among the new classes: the nearest is"),
        ("--map", "from,to\n", "has no rows"),
    ],
)
def test_mistakes(option, text, sentence, shapes, tmp_path, capsys):
    (tmp_path / "given.txt").write_text(text)
    assert relabel(shapes / "vp9", tmp_path / "new", option, tmp_path / "given.txt") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"^relabel: .*{sentence}", line) and not (tmp_path / "new").exists()


def test_a_damaged_clip_is_listed_and_the_others_are_copied(shapes, tmp_path, capsys):
    shutil.copytree(shapes / "vp9-val", tmp_path / "old")
    shards = ShardSet(tmp_path / "old")
    with open(tmp_path / "old" / "shard-000000.tar", "r+b") as file:
        file.seek(int(shards.clips["offset"][2]) + 1500)
        file.write(b"xxxx")
    (tmp_path / "map.csv").write_text("left,sideways\n")
    assert relabel(tmp_path / "old", tmp_path / "new", "--map", tmp_path / "map.csv") == 1
    assert f"{len(shards) - 1} clips of 8 classes" in capsys.readouterr().out
    with open(tmp_path / "new" / "rejected.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == shards.metadata(2)["source"] and "is damaged (checksum differs)" in row["reason"]


def test_a_full_disk_is_one_sentence(shapes, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("i2v.shard_tools.writer.ShardWriter.add", full)
    (tmp_path / "map.csv").write_text("left,sideways\n")
    assert relabel(shapes / "vp9-val", tmp_path / "new", "--map", tmp_path / "map.csv") == 1
    assert f"relabel: {tmp_path}/new cannot be read or written (No space left on device): " in capsys.readouterr().err


def test_a_damaged_index_is_not_copied_under_new_checksums(shapes, tmp_path, capsys):
    """A time that still lies between its neighbours is damage that only the checksum of fragments.npy tells."""
    shutil.copytree(shapes / "vp9-val", tmp_path / "old")
    fragments = np.load(tmp_path / "old" / "fragments.npy")
    fragments["time"][3] += 0.01
    np.save(tmp_path / "old" / "fragments.npy", fragments)
    (tmp_path / "map.csv").write_text("left,sideways\n")
    assert relabel(tmp_path / "old", tmp_path / "new", "--map", tmp_path / "map.csv") == 1
    assert "fragments.npy is damaged (checksum differs): restore" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_clips_csv_that_is_not_of_these_clips_is_refused(shapes, tmp_path, capsys):
    shutil.copytree(shapes / "vp9-val", tmp_path / "old")
    lines = (tmp_path / "old" / "clips.csv").read_text().splitlines()
    (tmp_path / "old" / "clips.csv").write_text("\n".join(lines[:3]) + "\n")
    (tmp_path / "map.csv").write_text("left,sideways\n")
    assert relabel(tmp_path / "old", tmp_path / "new", "--map", tmp_path / "map.csv") == 2
    assert "clips.csv does not list the clips that are there: restore it" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
