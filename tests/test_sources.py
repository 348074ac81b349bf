"""Source lists: what is read, and what every mistake is told."""

import json

import pytest

from shard_tools.sources import SourceError, load_sources, read_classes, source_hash


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def listed(videos):
    return [(video.source, video.label, video.class_name) for video in videos]


def test_a_folder_of_class_folders(tmp_path):
    for name in ("run/b.mp4", "run/a.MKV", "climb/deep/er/c.webm", "climb/notes.txt", "run/.hidden.mp4", ".git/x.mp4"):
        write(tmp_path / name, "x")
    (tmp_path / "empty").mkdir()
    videos, classes = load_sources(tmp_path)
    assert classes == ["climb", "empty", "run"]
    assert listed(videos) == [("climb/deep/er/c.webm", 0, "climb"), ("run/a.MKV", 2, "run"), ("run/b.mp4", 2, "run")]
    assert videos[0].path == str(tmp_path / "climb/deep/er/c.webm")


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4,run\nb c.mp4,climb\n",
        "path,label\na.mp4,run\n\nb c.mp4,climb\n",
        "\ufeffLabel,Split,Video_Path\r\nrun,x,a.mp4\r\nclimb,y,b c.mp4\r\n",
        "a.mp4\trun\nb c.mp4\tclimb\n",
        'a.mp4,run\n"b c.mp4",climb\n',
    ],
)
def test_lists_with_names(tmp_path, text):
    videos, classes = load_sources(write(tmp_path / "list.csv", text))
    assert classes == ["climb", "run"]
    assert listed(videos) == [("a.mp4", 1, "run"), ("b c.mp4", 0, "climb")]
    assert videos[1].path == str(tmp_path / "b c.mp4")


@pytest.mark.parametrize("text", ["a.mp4,2\nb c.mp4,0\n", "path label\na.mp4 2\nb c.mp4 0\n", "a.mp4 2\nb c.mp4 0\n"])
def test_lists_with_integers(tmp_path, text):
    videos, classes = load_sources(write(tmp_path / "list.txt", text))
    assert classes == ["0", "1", "2"]
    assert listed(videos) == [("a.mp4", 2, "2"), ("b c.mp4", 0, "0")]


@pytest.mark.parametrize("text", ["path\na.mp4\nb c.mp4\n", "a.mp4\nb c.mp4\n", "path,label\na.mp4,\nb c.mp4,\n"])
def test_lists_without_labels(tmp_path, text):
    videos, classes = load_sources(write(tmp_path / "list.csv", text))
    assert classes == []
    assert listed(videos) == [("a.mp4", -1, None), ("b c.mp4", -1, None)]


def test_given_classes_fix_the_order(tmp_path):
    names = write(tmp_path / "classes.txt", "run\nclimb\nswim\n")
    manifest = write(tmp_path / "manifest.json", json.dumps({"classes": ["run", "climb", "swim"]}))
    by_name, by_number = write(tmp_path / "a.csv", "a.mp4,climb\n"), write(tmp_path / "b.csv", "a.mp4,1\n")
    for source in (by_name, by_number):
        for classes in (names, manifest):
            videos, listed_names = load_sources(source, classes=classes)
            assert (listed(videos), listed_names) == ([("a.mp4", 1, "climb")], read_classes(names))


def test_root_changes_where_files_are_not_what_is_listed(tmp_path):
    source = write(tmp_path / "list.csv", "a.mp4,x\n/abs/b.mp4,x\na.mp4,x\n")
    here, classes = load_sources(source)
    (tmp_path / "other").mkdir()
    there, _ = load_sources(source, root=tmp_path / "other")
    assert there[0].path == str(tmp_path / "other" / "a.mp4") and there[1].path == "/abs/b.mp4"
    assert source_hash(here, classes) == source_hash(there, classes)
    assert source_hash(here[:2], classes) != source_hash(here, classes) != source_hash(here, ["y"])


@pytest.mark.parametrize(
    "name, text, classes, message",
    [
        ("none.csv", None, None, "does not exist"),
        ("list.csv", "", None, "has no rows"),
        ("list.csv", "path,label\n", None, "has no rows"),
        ("list.csv", "a.mp4,runn\n", "climb\nrunning\n", "row 1 of .*'runn' is not in .*nearest name is 'running'"),
        ("list.csv", "path,label\na.mp4,1\n\nb.mp4,2\n", "x\ny\n", r"row 4 of .*label 2 is out of range.*\(0 to 1\)"),
        ("list.csv", "a.mp4,-3\n", None, "label -3 is out of range"),
        ("list.csv", "a.mp4,99999999\n", None, "label 99999999: labels are class indices"),
        ("list.csv", "a.mp4,x\nb.mp4,\n", None, "row 2 of .*has no label but row 1 has"),
        ("list.csv", "a.mp4,x\n,y\n", None, "row 2 of .*has no path"),
        ("list.csv", "a.mp4,x,y\n", None, "3 columns and no header"),
        ("list.csv", "a.mp4,x\n", "x\nx\n", "more than once"),
        ("list.csv", "a.mp4,x\n", "\n", "is empty"),
    ],
)
def test_mistakes_are_told_in_one_sentence(tmp_path, name, text, classes, message):
    if text is not None:
        write(tmp_path / name, text)
    if classes is not None:
        classes = write(tmp_path / "classes.txt", classes)
    with pytest.raises(SourceError, match=message) as error:
        load_sources(tmp_path / name, classes=classes)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_folders_that_are_not_sources(tmp_path):
    with pytest.raises(SourceError, match="no class folders with videos"):
        load_sources(tmp_path)
    write(tmp_path / "run/a.mp4", "x")
    classes = write(tmp_path / "classes.txt", "climb\n")
    with pytest.raises(SourceError, match="folder run of .*'run' is not in the class list"):
        load_sources(tmp_path, classes=classes)
    write(tmp_path / "b.mp4", "x")
    with pytest.raises(SourceError, match="videos outside of class folders"):
        load_sources(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81" * 9)
    with pytest.raises(SourceError, match="not a text file"):
        load_sources(tmp_path / "binary.csv")
