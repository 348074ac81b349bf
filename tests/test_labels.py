"""Labels: which are names, which are numbers, which cannot be meant; and how a map renames them."""

import json

import pytest

from i2v.shard_tools.lists.classes import read_class_list
from i2v.shard_tools.paths import SourceError
from i2v.shard_tools.sources import load_sources, read_sources
from tests.lists import listed, touch, write


def test_given_classes_fix_the_order(tmp_path):
    names = write(tmp_path / "classes.txt", "run\nclimb\nswim\n")
    manifest = write(tmp_path / "manifest.json", json.dumps({"classes": ["run", "climb", "swim"]}))
    by_name, by_number = write(tmp_path / "a.csv", "a.mp4,climb\n"), write(tmp_path / "b.csv", "a.mp4,1\n")
    for source in (by_name, by_number):
        for classes in (names, manifest):
            videos, listed_names = load_sources(source, classes=classes)
            assert (listed(videos), listed_names) == ([("a.mp4", 1, "climb")], read_class_list(names).names)


def test_labels_are_all_names_or_all_indices(tmp_path):
    names = write(tmp_path / "classes.txt", "1\n2\n3\n")
    for labels, expected in (("123", [0, 1, 2]), ("012", [0, 1, 2]), ("221", [1, 1, 0]), ("200", [2, 0, 0])):
        source = write(tmp_path / "list.csv", "".join(f"{i}.mp4,{label}\n" for i, label in enumerate(labels)))
        assert [video.label for video in load_sources(source, classes=names)[0]] == expected


@pytest.mark.parametrize("text", ["0.0 1.0", "1.00 0", "2.0 2."])
def test_integers_may_be_written_as_floats(tmp_path, text):
    labels = text.split()
    videos, classes, _ = read_sources(write(tmp_path / "l.csv", "".join(f"{i}.mp4,{x}\n" for i, x in enumerate(labels))))
    assert [video.label for video in videos] == [int(float(label)) for label in labels]
    assert classes == [str(i) for i in range(max(int(float(label)) for label in labels) + 1)]


NOT_A_LABEL = {
    "stands for none": ["nan", "NaN", "None", "null", "NULL", "N/A", "<NA>"],
    "looks like several": [
        "['a','b']",
        "['a']",
        "[1 2]",
        "{1, 2}",
        "('a', 'b')",
        "a|b",
        "a | b",
        "dog;cat",
        "1;2",
        "1,2",
        "1 2",
    ],
}


@pytest.mark.parametrize("message, label", [(message, label) for message, all_ in NOT_A_LABEL.items() for label in all_])
def test_what_cannot_be_one_label_is_refused(tmp_path, message, label):
    source = write(tmp_path / "list.csv", f'path,label\na.mp4,x\nb.mp4,"{label}"\n')
    with pytest.raises(SourceError, match=f"row 3 of .* has the label .*, which {message}.*--classes"):
        load_sources(source)
    classes = write(tmp_path / "classes.json", ["x", label])  # who names it means it
    assert [video.class_name for video in load_sources(source, classes=classes)[0]] == ["x", label]


def test_names_that_only_look_odd_are_labels(tmp_path):
    odd = ["petting animal (not cat)", "run, then; jump", "0.5", "3 dogs", "[something] on [something]", "nano", "(other)"]
    text = "path\tlabel\n" + "".join(f"{i}.mp4\t{label}\n" for i, label in enumerate(odd))
    assert [video.class_name for video in load_sources(write(tmp_path / "list.tsv", text))[0]] == odd
    touch(tmp_path / "folders", "None/a.mp4", "a|b/c.mp4")
    assert load_sources(tmp_path / "folders")[1] == ["None", "a|b"]


ALIKE = [("run", "run "), ("1", "1.0"), ("a  b", "a b"), ("cafe\u0301", "caf\u00e9")]


@pytest.mark.parametrize("one, other", ALIKE)
def test_classes_that_look_the_same_are_refused(tmp_path, one, other):
    touch(tmp_path / "videos", f"{one}/a.mp4", f"{other}/b.mp4", "jump/c.mp4")
    with pytest.raises(SourceError, match=f"{one!r} and {other!r} are two classes of .* that look the same: write both alike"):
        load_sources(tmp_path / "videos")
    meant = write(tmp_path / "manifest.json", json.dumps({"classes": [one, other, "jump"], "shards": []}))
    assert [video.class_name for video in load_sources(tmp_path / "videos", classes=meant)[0]].count(other) == 1


def test_numbers_among_names_are_not_two_classes_by_their_form(tmp_path):
    with pytest.raises(SourceError, match="'1' and '1.0' are two classes"):
        load_sources(write(tmp_path / "list.csv", "a.mp4,1\nb.mp4,1.0\nc.mp4,run\n"))
    assert load_sources(write(tmp_path / "other.csv", "a.mp4,1\nb.mp4,1.5\nc.mp4,Run\nd.mp4,run\n"))[1] == [
        "1",
        "1.5",
        "Run",
        "run",
    ]


def test_several_integers_after_a_path(tmp_path):
    with pytest.raises(SourceError, match="row 2 of .*'1 2', which looks like several"):
        load_sources(write(tmp_path / "list.txt", "a.mp4 3\nb.mp4 1 2\n"))


def test_a_map_renames_merges_and_leaves_out(tmp_path):
    source = write(tmp_path / "list.csv", "a.mp4,run\nb.mp4,jog\nc.mp4,rest\nd.mp4,swim\n")
    renames = write(tmp_path / "map.csv", 'from,to\nrun,moving\njog,moving\nrest,\nswimm,water\n"x, y",z\n')
    videos, classes, notes = read_sources(source, map=renames)
    assert classes == ["moving", "swim"]
    assert listed(videos) == [("a.mp4", 0, "moving"), ("b.mp4", 0, "moving"), ("d.mp4", 1, "swim")]
    assert any(note.startswith("1 of 4 videos are left out") for note in notes)
    assert any("2 ('swimm', 'x, y')" in note and "it has 'swim'" in note for note in notes)
    names = write(tmp_path / "classes.txt", "swim\nmoving\n")
    assert [video.label for video in load_sources(source, classes=names, map=renames)[0]] == [1, 1, 0]
    for name in ("run", "jog", "rest"):
        touch(tmp_path / "videos" / name, "a.mp4")
    assert load_sources(tmp_path / "videos", map=renames)[1] == ["moving"]
    (tmp_path / "videos" / "swimm").mkdir()  # a class without videos occurs, too
    _, classes, notes = read_sources(tmp_path / "videos", map=renames)
    assert classes == ["moving", "water"] and "1 ('x, y') of" in notes[0]
    numbers = write(tmp_path / "numbers.csv", "a.mp4,0\nb.mp4,1\n")
    assert load_sources(numbers, map=write(tmp_path / "n.csv", "0,x\n1,y\n"))[1] == ["x", "y"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has no rows"),
        ("run\n", "row 1 of .* is not from,to"),
        ("run,a\nrun,b\n", "row 2 of .* renames 'run' a second time"),
        ("run,\n", "leaves out all videos"),
    ],
)
def test_maps_that_cannot_be_meant(tmp_path, text, message):
    source = write(tmp_path / "list.csv", "a.mp4,run\n")
    with pytest.raises(SourceError, match=message):
        load_sources(source, map=write(tmp_path / "map.csv", text))


def test_what_is_odd_is_noted(tmp_path):
    captions = write(tmp_path / "captions.csv", "".join(f"{i}.mp4,a video of {i}\n" for i in range(30)))
    assert read_sources(captions).notes == ["30 classes for 30 videos: are these labels, or captions?"]
    names = write(tmp_path / "classes.txt", "x\ny\nz\n")
    assert read_sources(write(tmp_path / "list.csv", "a.mp4,y\n"), classes=names).notes == [
        f"class names are those of {names}: 3 names, in the order of its lines.",
        "2 ('x', 'z') of 3 classes occur in no video.",
    ]
