"""Tars as WebDataset has them: whose label is whose, and no label is lost."""

import json
import tarfile

import pytest

from i2v.predictor import find_videos
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.paths import SourceError
from i2v.shard_tools.sources import load_sources, read_sources
from tests.lists import listed, touch, write, write_tar
from tests.videos import solid, write_video


@pytest.mark.parametrize(
    "labels",
    [
        {"000.cls": b"1", "001.cls": b"0"},
        {"000.json": b'{"label": 1, "cls": true}', "001.json": b'{"cls": 0}'},
        {"000.cls": b"1", "000.json": b'{"caption": "x"}', "000.txt": b"a caption", "001.json": b'{"label": 0}'},
        {"000.txt": b"y\n", "001.txt": b"x\n"},
        {"000.json": b'{"label": 7, "class": "y"}', "001.json": b'{"label": "x"}'},
    ],
)
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_webdataset(tmp_path, labels, format):
    deep = "d" * 120 + "/000."
    videos = {"000.mp4": b"first", "001.webm": b"the second"}
    members = {**labels, **videos, "notes.md": b"?"}
    members = {name.replace("000.", deep): data for name, data in members.items()}
    path = write_tar(tmp_path / "a-000.tar", members, format)
    found, classes = load_sources(path)
    assert [(v.path, v.source, v.label) for v in found] == [
        (str(path), f"a-000.tar/{deep}mp4", 1),
        (str(path), "a-000.tar/001.webm", 0),
    ]
    assert [path.read_bytes()[v.offset : v.offset + v.size] for v in found] == list(videos.values())
    assert classes in (["x", "y"], ["0", "1"])


def test_webdatasets_of_many_tars(tmp_path):
    for i in range(11):
        write_tar(tmp_path / f"v-{i:03d}.tar", {f"{i}.avi": b"x", f"{i}.cls": str(i).encode()})
    everything, _ = load_sources(tmp_path)
    assert [video.source for video in everything] == [f"v-{i:03d}.tar/{i}.avi" for i in range(11)]
    assert load_sources(tmp_path / "v-{000..010}.tar")[0] == everything
    assert load_sources(tmp_path / "v-0{08..10}.tar")[0] == everything[8:]
    with pytest.raises(SourceError, match="v-011.tar cannot be read: No such file"):
        load_sources(tmp_path / "v-{009..011}.tar")
    with pytest.raises(SourceError, match="no label but"):
        write_tar(tmp_path / "v-011.tar", {"11.mp4": b"x"})
        load_sources(tmp_path)
    (tmp_path / "v-011.tar").write_bytes((tmp_path / "v-010.tar").read_bytes()[:700])
    with pytest.raises(SourceError, match="not a whole, uncompressed tar"):
        load_sources(tmp_path)
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.mp4"))
    with pytest.raises(SourceError, match="not a whole, uncompressed tar"):
        load_sources(tmp_path / "packed.tar.gz")
    same = write_tar(tmp_path / "same.tar", {"y/0.mp4": b"", "y/0.cls": b"y", "x/0.mp4": b"", "x/0.cls": b"x"})
    assert listed(load_sources(same)[0]) == [("same.tar/y/0.mp4", 1, "y"), ("same.tar/x/0.mp4", 0, "x")]
    with pytest.raises(SourceError, match="no tar file with video members"):
        load_sources(write_tar(tmp_path / "empty.tar", {"a.txt": b"x"}))


def test_our_own_shards_are_a_webdataset(shapes):
    clips = json.loads((shapes / "vp9" / "manifest.json").read_text())["clips"]
    videos, classes, notes = read_sources(shapes / "vp9")
    originals = load_sources(shapes / "train")
    assert classes == originals[1] and len(videos) == clips and any("costs quality" in note for note in notes)
    assert sorted(video.class_name for video in videos) == sorted(video.class_name for video in originals[0])


KINDS = {  # lists, and how they are read
    "one class": ("path,label\na.mp4,run\nb.mp4,sit\n", {}),
    "factors": ("path,verb,noun\na.mp4,wash,plate\nb.mp4,cut,cup\n", {"factors": ["verb", "noun"]}),
    "several": ("path,label\na.mp4,run|sit\nb.mp4,\nc.mp4,sit\n", {"multi_label": True}),
    "none": ("path\na.mp4\nb.mp4\n", {}),
}


@pytest.mark.parametrize("text, how", KINDS.values(), ids=KINDS)
def test_our_own_shards_are_a_source_whatever_they_are_labelled_with(tmp_path, text, how):
    for name in "abc":
        write_video(tmp_path / f"{name}.mp4", solid([9, 9, 9]))
    videos, classes, _ = read_sources(write(tmp_path / "list.csv", text), **how)
    make_shards(videos, classes, tmp_path / "shards", EncodeSettings(short_side=48))
    again = read_sources(tmp_path / "shards")
    assert again.classes == classes
    assert sorted(video.label for video in again.videos) == sorted(video.label for video in videos)
    if classes:
        assert read_sources(tmp_path / "shards", classes=tmp_path / "shards")[:2] == again[:2]


def test_a_list_in_a_json_member_is_several_classes(tmp_path):
    labels = {"a": b'{"label": ["run", "sit"]}', "b": b'{"class": []}', "c": b'{"cls": "sit"}'}
    members = {f"{key}.{suffix}": label for key, label in labels.items() for suffix in ("mp4", "json")}
    videos, classes = load_sources(write_tar(tmp_path / "a.tar", members), multi_label=True)
    assert classes == ["run", "sit"] and [video.label for video in videos] == [(0, 1), (), (1,)]


LABELS = {  # members -> the label of each video
    "a part of the extension": ({"b.x.mp4": None, "b.x.cls": b"1", "b.y.mp4": None, "b.y.cls": b"0"}, ["1", "0"]),
    "numbers": ({"v.1.mp4": None, "v.1.txt": b"p", "v.10.webm": None, "v.10.txt": b"q"}, ["p", "q"]),
    "a key of one video": ({"b.x.mp4": None, "b.cls": b"run"}, ["run"]),
    "a label of two videos": ({"b.l.mp4": None, "b.r.mp4": None, "b.json": b'{"class": "run"}'}, ["run", "run"]),
    "its own before all": ({"b.l.mp4": None, "b.r.mp4": None, "b.cls": b"x", "b.r.json": b'{"label": "y"}'}, ["x", "y"]),
    "info.json": ({"a.mp4": None, "a.info.json": b'{"label": "run"}'}, ["run"]),
    "mp4.json": ({"a.mp4": None, "a.mp4.json": b'{"class": "run"}'}, ["run"]),
    "x.mp4.json": ({"a.x.mp4": None, "a.x.mp4.json": b'"run"', "a.y.mp4": None, "a.y.mp4.json": b'"walk"'}, ["run", "walk"]),
    "label": ({"a.mp4": None, "a.label": "\ufeffrün\n".encode()}, ["rün"]),
    "another word": ({"a.mp4": None, "a.action.cls": b"run"}, ["run"]),
    "capitals": ({"a.MP4": None, "a.CLS": b"run"}, ["run"]),
    "folders": ({"x.y/a.mp4": None, "x.y/a.cls": b"p", "x.z/a.mp4": None, "x.z/a.cls": b"q"}, ["p", "q"]),
    "cls first": ({"a.mp4": None, "a.mp4.json": b'{"label": "x"}', "a.cls": b"y", "a.txt": b"a caption"}, ["y"]),
    "integers as floats": ({"a.mp4": None, "a.json": b'{"label": 1.0}', "b.mp4": None, "b.cls": b"0"}, ["1", "0"]),
    "no member at all": ({"a.mp4": None, "a.caption.txt": b"someone runs", "a.json": b'{"url": "x"}'}, [None]),
}


@pytest.mark.parametrize("members, expected", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("labels_first", [False, True])
def test_labels_are_found_by_webdatasets_keys(tmp_path, members, expected, labels_first):
    order = sorted(members.items(), key=lambda pair: (pair[1] is None) == labels_first)
    videos, _ = load_sources(write_tar(tmp_path / "a.tar", {name: data or b"video" for name, data in order}))
    assert [video.source for video in videos] == [f"a.tar/{name}" for name, data in members.items() if data is None]
    assert [video.class_name for video in videos] == expected


@pytest.mark.parametrize(
    "label, data, message",
    [
        ("a.cls", b"", "member a.cls of .*, the label of a.mp4, is empty: write it as"),
        ("a.cls", b"\xff\xfe", "a.cls .* is not text in UTF-8"),
        ("a.label", b"1" * 70_000, "a.label .* is too long for a label .70,000 bytes"),
        ("a.json", b'{"label": ', "a.json .* is not JSON"),
        ("a.info.json", b'{"label": ["x", "y"]}', r"has the label 'x\|y', which looks like several"),
        ("a.json", b'{"label": ["x", {}]}', r'a.json .* has the label \["x", {}\], which is neither'),
        ("a.json", b'{"label": {"id": 3}}', "neither a name nor an integer"),
        ("a.json", b'{"label": NaN}', "'nan', which stands for none"),
        ("a.json", b'{"label": -1}', "label -1 is out of range"),
        ("a.cls.npy", b"\x93NUMPY", r"a.cls.npy .* is in a form that is not read \(npy\)"),
        ("a.json.gz", b"\x1f\x8b", r"a.json.gz .* is in a form that is not read \(gz\)"),
        ("a.cls", b"1 2", "'1 2', which looks like several"),
        ("a.cls", b"x\ny", "looks like several"),
    ],
)
def test_a_label_that_cannot_be_read_is_refused(tmp_path, label, data, message):
    with pytest.raises(SourceError, match=message) as error:
        load_sources(write_tar(tmp_path / "a.tar", {"a.mp4": b"video", label: data}))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["v.3.cls", "v.3.json"])
def test_a_label_that_may_be_anothers_is_refused(tmp_path, name):
    members = {"v.1.mp4": b"video", name: b'"x"'}
    with pytest.raises(SourceError, match=f"member {name} of .* agrees with v.1.mp4 up to the first dot only"):
        load_sources(write_tar(tmp_path / "a.tar", members))
    videos, _ = load_sources(write_tar(tmp_path / "a.tar", members | {"v.1.cls": b"y"}))
    assert [video.class_name for video in videos] == ["y"]
    with pytest.raises(SourceError, match="a.tar/v.2.mp4 of .* has no label but a.tar/v.1.mp4 has"):
        load_sources(write_tar(tmp_path / "a.tar", {"v.1.mp4": b"video", "v.1.cls": b"y", "v.2.mp4": b"video"}))


def test_what_tars_leave_out_is_said_once(tmp_path):
    for i in range(3):
        write_tar(tmp_path / f"{i}.tar", {f"{i}.mp4": b"video", f"{i}.json": b'{"url": "x"}', f"{i}.npy": b"x"})
    (note,) = read_sources(tmp_path).notes
    assert "hold no labels" in note and "3 .json, 3 .npy" in note
    with tarfile.open(tmp_path / "2.tar", "a") as tar:
        link = tarfile.TarInfo("twin.mp4")
        link.type, link.linkname = tarfile.LNKTYPE, "2.mp4"
        tar.addfile(link)
    videos, _, notes = read_sources(tmp_path)
    assert len(videos) == 3 and "1 videos in tars of" in notes[0] and "the first is 2.tar/twin.mp4" in notes[0]


HIDDEN = (
    "._a.mp4",
    ".DS_Store",
    ".trash/a.mp4",
    "__MACOSX/run/._a.mp4",
    "__MACOSX/a.mp4",
    "PaxHeaders.12/a.mp4",
    "run/PaxHeaders/b.mp4",
    "run/@eaDir/a.mp4",
)


def test_what_is_hidden_is_no_video_in_tars_folders_lists_and_predict(tmp_path):
    tar = write_tar(
        tmp_path / "a.tar",
        {"./run/a.mp4": b"x", "./run/a.cls": b"x", "run/._a.cls": b"\xff", **{f"./{name}": b"x" for name in HIDDEN}},
    )
    assert [video.source for video in load_sources(tar)[0]] == ["a.tar/./run/a.mp4"]
    root = touch(tmp_path / ".cache" / "videos", "run/a.mp4", *HIDDEN)  # where the folder itself lies is no matter
    videos, classes, notes = read_sources(root)
    assert ([video.source for video in videos], classes, notes) == (["run/a.mp4"], ["run"], [])
    assert find_videos([root]) == [str(root / "run/a.mp4")]
    assert find_videos([root / "._a.mp4"]) == [str(root / "._a.mp4")]  # as it was asked for
    (tmp_path / "ids.csv").write_text("id,label\na,x\n")  # a.mp4 would be two files
    assert [video.path for video in load_sources(tmp_path / "ids.csv", root)[0]] == [str(root / "run/a.mp4")]
