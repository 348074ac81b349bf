"""Source lists: what is read, and what every mistake is told."""

import csv
import io
import json
import os
import re

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from i2v.pipelines.store import UnknownStore, is_url
from i2v.shard_tools import make_shards
from i2v.shard_tools.encode import EncodeSettings, encode_video
from i2v.shard_tools.paths import SourceError
from i2v.shard_tools.sources import load_sources, read_sources, source_hash
from tests.lists import listed, write, write_tar
from tests.test_layouts import SSV2, SSV2_LABELS
from tests.videos import moving, write_video


def test_a_path_may_be_any_bytes_but_a_label_is_text(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"path,label\nclip\xe9.mp4,x\n")
    (video,), _, notes = read_sources(tmp_path / "list.csv")
    assert os.fsencode(video.path) == os.fsencode(tmp_path) + b"/clip\xe9.mp4" and "are not UTF-8" in notes[0]
    (tmp_path / "list.csv").write_bytes(b"a.mp4,caf\xe9\n")
    with pytest.raises(SourceError, match="row 1 of .*a label that is not UTF-8"):
        load_sources(tmp_path / "list.csv")
    for data in (b"a.mp4,x\n\0", "a.mp4,x\n".encode("utf-16")):
        (tmp_path / "list.csv").write_bytes(data)
        with pytest.raises(SourceError, match="not a text file"):
            load_sources(tmp_path / "list.csv")


@pytest.mark.process
def test_two_colons_in_a_path_do_not_make_it_a_url(tmp_path, monkeypatch):
    """fsspec puts two colons between URLs of which one is in the other."""
    monkeypatch.chdir(tmp_path)
    for name in ("Show::1.mp4", "memory::1.mp4"):
        write_video(tmp_path / "videos" / "std::vector" / name, moving(7))
    folders, _ = load_sources("videos")
    (tmp_path / "list.csv").write_text("path,label\nShow::1.mp4,a\nmemory::1.mp4,a\n")
    listed, _ = load_sources("list.csv", "videos/std::vector")
    assert [encode_video(video, EncodeSettings(short_side=48)).frames for video in folders + listed] == [7, 7, 7, 7]
    assert is_url("simplecache::s3://bucket/a.mp4") and is_url("zip://a.mp4::/data/a.zip")


def test_a_missing_video_of_ids_is_retried_once_it_is_fetched(tmp_path):
    source, root, out = write(tmp_path / "train.json", SSV2), tmp_path / "videos", tmp_path / "out"
    write_video(root / "42326.mp4", moving(6), fps=5)
    command = [str(source), "--root", str(root), "--out", str(out), "--short-side", "48", "--workers", "1"]
    assert make_shards.main(command) == 0
    with open(out / "rejected.csv", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["78687"]
    write_video(root / "deep" / "78687.mp4", moving(7), fps=5)
    assert [video.source for video in load_sources(out / "rejected.csv", root)[0]] == ["78687"]
    assert make_shards.main([*command, "--retry"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["clips"], manifest["rejected"]) == (2, 0)
    assert (out / "rejected.csv").read_text().count("\n") == 1  # the header
    assert make_shards.main([*command, "--append"]) == 0  # nothing is new
    assert json.loads((out / "manifest.json").read_text()) == manifest


def test_root_changes_where_files_are_not_what_is_listed(tmp_path):
    source = write(tmp_path / "list.csv", "a.mp4,x\n/abs/b.mp4,x\nc.mp4,x\n")
    here, classes = load_sources(source)
    (tmp_path / "other").mkdir()
    there, _ = load_sources(source, root=tmp_path / "other")
    assert there[0].path == str(tmp_path / "other" / "a.mp4") and there[1].path == "/abs/b.mp4"
    assert source_hash(here, classes) == source_hash(there, classes)
    assert source_hash(here[:2], classes) != source_hash(here, classes) != source_hash(here, ["y"])
    for change in ({"start": 1.0}, {"end": 2.0}, {"offset": 512}, {"label": 1}):
        assert source_hash([here[0]._replace(**change), *here[1:]], classes) != source_hash(here, classes)


@pytest.mark.parametrize(
    "name, text, classes, message",
    [
        ("none.csv", None, None, "does not exist"),
        ("list.csv", "", None, "has no rows"),
        ("list.csv", "path,label\n", None, "has no rows"),
        ("list.csv", "a.mp4,runn\n", "climb\nrunning\n", "row 1 of .*'runn' is not in .*nearest name is 'running'"),
        ("list.csv", "path,label\na.mp4,1\n\nb.mp4,2\n", "x\ny\n", r"row 4 of .*label 2 is out of range.*\(0 to 1\)"),
        ("list.csv", "a.mp4,-3\n", None, "row 1 of .*label -3 is out of range, they begin at 0"),
        ("list.csv", "a.mp4,99999999\n", None, "label 99999999: labels are class indices"),
        ("list.csv", "a.mp4,x\nb.mp4,\n", None, "row 2 of .*has no label but row 1 has"),
        ("list.csv", "a.mp4,x\n,y\n", None, "row 2 of .*has no path"),
        ("list.csv", "a.mp4,x,y\n", None, "3 columns and no header"),
        ("list.csv", "a.mp4,x\n", "x\nx\n", "more than once"),
        ("list.csv", "a.mp4,x\nb.mp4,x\n./a.mp4,x\n", None, r"row 1 and row 3 of .* list the same video.*\(1 such"),
        ("list.csv", "a.mp4,x\na.mp4,y\n", None, "as 'x' and as 'y', but a video has one label"),
        ("list.csv", "path,start,end,label\na.mp4,3,3,x\n", None, "row 2 of .*start '3' and end '3' are not two times"),
        ("list.csv", "path,start,end,label\na.mp4,-1,3,x\n", None, "row 2 .* at least 0"),
        ("list.csv", "path,start,end,label\na.mp4,nan,3,x\n", None, "row 2 .*start 'nan'"),
        ("list.csv", "path,start,end,label\na.mp4,0,inf,x\n", None, "row 2 .*end 'inf'"),
        ("list.csv", "path,start,end,label\na.mp4,soon,3,x\n", None, "row 2 .*start 'soon'"),
        ("list.csv", f"path,start,end,label\na.mp4,{'9' * 400}:0:0,3,x\n", None, "row 2 .*start '9999"),
        ("list.json", "[1", None, "is not JSON"),
        ("list.json", "[" * 10**5, None, "is not JSON"),
        ("list.json", '{"classes": [], "shards": []}', None, "is a manifest, whose folder is what to give"),
        ("list.json", '[{"id": "1"}, {"key": "2"}]', None, "entry 2 of .* has no id"),
        ("list.txt", "12\n13\n", None, "none of the 2 videos of .*the first is '12': give their folder as the root"),
        ("list.csv", "a.mp4,x\n", "0 x\n2 y\n", "line 2 has the number 2, but no name has 1"),
        ("list.csv", "a.mp4,x\n", "\n", "is empty"),
        ("list.csv", "video_name,tag\na.mp4,0\nb.mp4,1\n", None, "looks like a header: call its columns path and"),
        ("list.csv", "video_name\na.mp4\n", None, "looks like a header"),
        ("list.csv", "video_name;tag\n12;0\n13;1\n", None, "looks like a header"),
        ("list.csv", "a.mp4,1\nb.mp4,0\nc.mp4,3\n", "1\n2\n3\n", r"row 3 of .*label 3 is out of range, .*\(0 to 2\)"),
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


def test_lists_round_trip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    text = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12).map(str.strip)
    names = text.filter(lambda name: name and not re.fullmatch(r"[-\d.]+", name))
    paths = st.lists(text.map(lambda name: f"v{name}v.mp4"), min_size=1, max_size=6, unique=True)

    @given(paths, st.data(), st.sampled_from(",;\t"), st.booleans())
    @settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
    def check(paths, data, delimiter, header):
        labels = data.draw(st.lists(names, min_size=len(paths), max_size=len(paths)))
        file = io.StringIO()
        rows = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL if delimiter == ";" else csv.QUOTE_MINIMAL)
        rows.writerows([("path", "label")] * header + list(zip(paths, labels)))
        listed = list(zip(paths, labels))
        try:
            videos, classes = load_sources(write(folder / "list.csv", file.getvalue()))
        except SourceError as error:
            assert re.search("same video|looks like several|stands for none", str(error))  # a/../b.mp4 and b.mp4; a|b; na
            return
        assert [(video.source, video.class_name) for video in videos] == listed
        assert classes == sorted(set(labels)) and all(classes[video.label] == video.class_name for video in videos)

    check()


@pytest.fixture
def memory():
    file_system = fsspec.filesystem("memory")
    yield lambda files: file_system.pipe({f"/bucket/{name}": data for name, data in files.items()})
    file_system.store.clear()
    file_system.pseudo_dirs[:] = [""]


def test_lists_and_videos_behind_urls(tmp_path, memory):
    memory(
        {
            "lists/a.csv": b"a.mp4,x\nb/../c.mp4,y\n/local/d.mp4,x\ns3://other/e.mp4,x\n",
            "lists/classes.txt": b"y\nx\n",
            "lists/v2.json": json.dumps(SSV2).encode(),
            "lists/labels.json": json.dumps(SSV2_LABELS).encode(),
            "videos/run/a.mp4": b"x",
            "videos/run/deep/b.mp4": b"x",
            "videos/climb/c.mp4": b"x",
            "videos/.x/d.mp4": b"x",
            "ids/78687.webm": b"x",
            "ids/z/42326.mp4": b"x",
        }
    )
    url = "memory://bucket"
    videos, classes = load_sources(f"{url}/lists/a.csv", classes=f"{url}/lists/classes.txt")
    assert [video.path for video in videos] == [f"{url}/lists/a.mp4", f"{url}/lists/c.mp4", "/local/d.mp4", "s3://other/e.mp4"]
    assert classes == ["y", "x"]
    assert load_sources(f"{url}/lists/a.csv", f"{url}/videos/")[0][0].path == f"{url}/videos/a.mp4"
    local = write(tmp_path / "a.csv", "a.mp4,x\n")
    assert load_sources(local, f"{url}/videos")[0][0].path == f"{url}/videos/a.mp4"
    videos, classes = load_sources(f"{url}/videos")
    assert classes == ["climb", "run"]
    assert listed(videos) == [("climb/c.mp4", 0, "climb"), ("run/a.mp4", 1, "run"), ("run/deep/b.mp4", 1, "run")]
    assert videos[2].path == f"{url}/videos/run/deep/b.mp4"
    videos, classes = load_sources(f"{url}/lists/v2.json", f"{url}/ids")
    assert [video.path for video in videos] == [f"{url}/ids/78687.webm", f"{url}/ids/z/42326.mp4"]
    assert classes == list(SSV2_LABELS)
    with pytest.raises(SourceError, match="memory://bucket/none.csv does not exist"):
        load_sources(f"{url}/none.csv")
    with pytest.raises(UnknownStore, match="nothing://x cannot be opened: Protocol not known"):
        load_sources("nothing://x")


def test_a_webdataset_behind_a_url(tmp_path, memory):
    data = write_tar(tmp_path / "a.tar", {"0.mp4": b"zero", "0.cls": b"x", "1.mp4": b"one", "1.cls": b"y"}).read_bytes()
    memory({"tars/a.tar": data})
    for source in ("memory://bucket/tars", "memory://bucket/tars/a.tar"):
        videos, _classes = load_sources(source)
        assert [(v.path, v.source, v.label) for v in videos] == [
            ("memory://bucket/tars/a.tar", "a.tar/0.mp4", 0),
            ("memory://bucket/tars/a.tar", "a.tar/1.mp4", 1),
        ]
        assert data[videos[1].offset :][: videos[1].size] == b"one"
