"""Source lists: what is read, and what every mistake is told."""

import csv
import io
import json
import os
import re
import tarfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from i2v.pipelines.store import UnknownStore
from i2v.shard_tools import make_shards
from i2v.shard_tools.sources import SourceError, load_sources, read_classes, read_sources, source_hash
from tests.videos import moving, write_video


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


def touch(folder, *names):
    for name in names:
        write(folder / name, "x")
    return folder


def found(videos, root):
    return [str(Path(video.path).relative_to(root)) for video in videos]


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
        "a.mp4;run\nb c.mp4;climb\n",
        "a.mp4 run\nb c.mp4 climb\n",
        "path label\na.mp4  run\nb c.mp4 climb\n",
    ],
)
def test_lists_with_names(tmp_path, text):
    videos, classes = load_sources(write(tmp_path / "list.csv", text))
    assert classes == ["climb", "run"]
    assert listed(videos) == [("a.mp4", 1, "run"), ("b c.mp4", 0, "climb")]
    assert videos[1].path == str(tmp_path / "b c.mp4")


@pytest.mark.parametrize(
    "text", ["a.mp4,2\nb c.mp4,0\n", "path label\na.mp4 2\nb c.mp4 0\n", "a.mp4 2\nb c.mp4 0\n", "a.mp4\t2\nb c.mp4\t0\n"]
)
def test_lists_with_integers(tmp_path, text):
    videos, classes = load_sources(write(tmp_path / "list.txt", text))
    assert classes == ["0", "1", "2"]
    assert listed(videos) == [("a.mp4", 2, "2"), ("b c.mp4", 0, "0")]


@pytest.mark.parametrize("text", ["path\na.mp4\nb c.mp4\n", "\na.mp4\nb c.mp4\n", "path,label\na.mp4,\nb c.mp4,\n"])
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


def test_a_label_after_a_space_may_hold_what_separates_other_lists(tmp_path):
    videos, _ = load_sources(write(tmp_path / "list.txt", "b c.mp4 run, then; jump\na.MP4 climb a wall\n"))
    assert listed(videos) == [("b c.mp4", 1, "run, then; jump"), ("a.MP4", 0, "climb a wall")]


def test_labels_are_all_names_or_all_indices(tmp_path):
    names = write(tmp_path / "classes.txt", "1\n2\n3\n")
    for labels, expected in (("123", [0, 1, 2]), ("012", [0, 1, 2]), ("221", [1, 1, 0]), ("200", [2, 0, 0])):
        source = write(tmp_path / "list.csv", "".join(f"{i}.mp4,{label}\n" for i, label in enumerate(labels)))
        assert [video.label for video in load_sources(source, classes=names)[0]] == expected


def test_one_id_is_one_video_also_in_two_class_folders(tmp_path):
    touch(tmp_path, "run/A.mp4", "climb/A.mp4")
    with pytest.raises(SourceError, match="row 2 and row 3 of .* the same video, A, as 'run' and as 'climb'"):
        load_sources(write(tmp_path / "list.csv", "id,label\nA,run\nA,climb\n"))


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
        ("list.json", "[1", None, "is not JSON"),
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


def test_segments_are_parts_of_videos(tmp_path):
    text = "path,start,end,label\na.mp4,0,12.5,x\na.mp4,12.5,0:20,y\nb.mp4,1:02:03.5,,x\nb.mp4,,,y\n"
    videos, _ = load_sources(write(tmp_path / "list.csv", text))
    assert [(video.source, video.start, video.end, video.class_name) for video in videos] == [
        ("a.mp4", 0.0, 12.5, "x"),
        ("a.mp4", 12.5, 20.0, "y"),
        ("b.mp4", 3723.5, None, "x"),
        ("b.mp4", 0.0, None, "y"),
    ]
    with pytest.raises(SourceError, match="no header with path, start and end"):
        load_sources(write(tmp_path / "plain.csv", "a.mp4,x\n"), layout="segments")
    frames = write(tmp_path / "frames.csv", "path,start_frame,end_frame,label\na.mp4,0,10,x\n")
    assert "start_frame, end_frame, which are not used" in read_sources(frames).notes[0]


KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
petting animal (not cat),--0edUL8zmA,32,42,train,0
air drumming,-4WsuPpbGYE,0,10,train,0
air drumming,a_b-c_00012,121,131,train,1
"""


def test_kinetics_clips_wherever_they_lie(tmp_path):
    source = write(tmp_path / "train.csv", KINETICS)
    names = ("--0edUL8zmA_000032_000042", "-4WsuPpbGYE_000000_000010", "a_b-c_00012_000121_000131")
    flat = touch(tmp_path / "flat", f"{names[0]}.mp4", f"{names[1]}.mkv", f"{names[2]}.webm")
    folders = touch(
        tmp_path / "folders",
        f"train/petting animal (not cat)/{names[0]}.mp4",
        f"train/air_drumming/{names[1]}.mp4",
        f"train/skiing/{names[1]}.mp4",
        "train/air_drumming/a_b-c_00012_121_131.mp4",
    )
    for root, expected in (
        (flat, [f"{names[0]}.mp4", f"{names[1]}.mkv", f"{names[2]}.webm"]),
        (
            folders,
            [
                f"train/petting animal (not cat)/{names[0]}.mp4",
                f"train/air_drumming/{names[1]}.mp4",
                "train/air_drumming/a_b-c_00012_121_131.mp4",
            ],
        ),
    ):
        videos, classes, notes = read_sources(source, root)
        assert found(videos, root) == expected
        assert [video.source for video in videos] == list(names)
        assert [(video.start, video.end) for video in videos] == [(0.0, None)] * 3
        assert classes == ["air drumming", "petting animal (not cat)"]
        assert notes == [f"{source} has the columns is_cc, which are not used."]
    touch(folders, f"val/air_drumming/{names[1]}.mp4")
    with pytest.raises(SourceError, match="row 3: .* is both train/air_drumming/.* and train/skiing/"):
        load_sources(source, folders)


def test_kinetics_missing_clips_stay_listed(tmp_path):
    source = write(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\nA,5,15,test\nB,7,17,test\n")
    with pytest.raises(SourceError, match="none of the 2 videos .*'A_000005_000015.mp4': give their folder"):
        load_sources(source)
    touch(tmp_path, "B_000007_000017.mp4")
    videos, classes, notes = read_sources(source)
    assert listed(videos) == [("A_000005_000015", -1, None), ("B_000007_000017", -1, None)] and not classes
    assert len(notes) == 1 and notes[0].startswith("1 of the 2 videos")


@pytest.mark.parametrize("seconds, trimmed", [(1, True), (4, False)])
def test_kinetics_videos_without_times_are_cut_if_they_are_whole(tmp_path, seconds, trimmed):
    source = write(tmp_path / "val.csv", "label,youtube_id,time_start,time_end,split\nx,A,3,4,val\ny,B,2,3,val\n")
    for name in "AB":
        write_video(tmp_path / "x" / f"{name}.mp4", moving(5 * seconds), fps=5)
    videos, _, notes = read_sources(source)
    assert found(videos, tmp_path) == ["x/A.mp4", "x/B.mp4"]
    assert [video.source for video in videos] == ["A_000003_000004", "B_000002_000003"]
    parts = [(0.0, None)] * 2 if trimmed else [(3.0, 4.0), (2.0, 3.0)]
    assert [(video.start, video.end) for video in videos] == parts
    rows = "".join(f"{v.source},{v.start if v.end else ''},{v.end or ''},{v.class_name},reason\n" for v in videos)
    rejected = write(tmp_path / "rejected.csv", "path,start,end,class,reason\n" + rows)
    assert load_sources(rejected)[0] == videos
    clip = write(tmp_path / "clip.csv", "path,label\nA_000003_000004,x\n")
    if trimmed:
        assert found(load_sources(clip)[0], tmp_path) == ["x/A.mp4"]
    else:
        with pytest.raises(SourceError, match="none of the 1 videos"):  # a clip is not the whole video
            load_sources(clip)
    (tmp_path / "x" / "B.mp4").rename(tmp_path / "B")  # missing, it is the same video
    assert [video[1:] for video in load_sources(source)[0]] == [video[1:] for video in videos]
    assert ("they are taken whole" if trimmed else "their part is cut out") in notes[0]
    write_video(tmp_path / "x" / "B.mp4", moving(20 if trimmed else 5), fps=5)
    with pytest.raises(SourceError, match="whole videos and cut ones"):
        load_sources(source)


def test_a_split_column(tmp_path):
    source = write(tmp_path / "list.csv", "path,label,split\na.mp4,x,train\nb.mp4,y,val\nc.mp4,x,val\n")
    assert [video.source for video in load_sources(source, split="val")[0]] == ["b.mp4", "c.mp4"]
    videos, _, notes = read_sources(source)
    assert len(videos) == 3 and "train 1, val 2" in notes[0]
    with pytest.raises(SourceError, match="no split 'test': it has train 1, val 2"):
        load_sources(source, split="test")
    with pytest.raises(SourceError, match="has no splits"):
        load_sources(write(tmp_path / "plain.csv", "a.mp4,x\n"), split="val")


SSV2 = [
    {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    },
    {
        "id": "42326",
        "label": "approaching a chair with your camera",
        "template": "Approaching [something] with your camera",
        "placeholders": ["a chair"],
    },
]
SSV2_LABELS = {
    "Holding something next to something": "0",
    "Approaching something with your camera": "1",
    "Closing something": "2",
}


def test_something_something_v2(tmp_path):
    source = write(tmp_path / "something-something-v2-train.json", SSV2)
    test = write(tmp_path / "something-something-v2-test.json", [{"id": "42326"}, {"id": "1"}])
    root = touch(tmp_path / "videos", "78687.webm", "deep/42326.mp4")
    videos, classes, notes = read_sources(source, root)
    assert classes == sorted(list(SSV2_LABELS)[:2]) and "the labels that occur in it, sorted" in notes[0]
    labels = write(tmp_path / "labels.json", SSV2_LABELS)
    for class_list in (None, labels):
        videos, classes, notes = read_sources(source, root, class_list)
        assert classes == list(SSV2_LABELS) == read_classes(labels)
        assert found(videos, root) == ["78687.webm", "deep/42326.mp4"]
        assert listed(videos) == [("78687", 0, classes[0]), ("42326", 1, classes[1])]
        assert notes[0] == f"class names are those of {labels}: 3 names, numbered from 0."
        assert "1 ('Closing something') of 3 classes occur in no video." in notes
    videos, classes, notes = read_sources(test, root)
    assert listed(videos) == [("42326", -1, None), ("1", -1, None)] and classes == list(SSV2_LABELS)
    assert found(videos, root) == ["deep/42326.mp4", "1"]
    (tmp_path / "frames" / "78687").mkdir(parents=True)
    with pytest.raises(SourceError, match="78687 is a folder of frames, not a video"):
        load_sources(source, tmp_path / "frames")


def test_something_something_v1(tmp_path):
    long = "Tipping something with something in it over, so something in it falls out"
    source = write(tmp_path / "something-something-v1-train.csv", f"100218;{long}\n24413;Closing something\n")
    root = touch(tmp_path / "videos", "100218.webm", "24413.webm")
    _, classes, notes = read_sources(source, root)
    assert classes == ["Closing something", long] and "labels.csv is not beside" in notes[0]
    names = write(tmp_path / "something-something-v1-labels.csv", f"{long}\nClosing something\n")
    for class_list in (None, names):  # beside the list, they are its classes
        videos, classes, notes = read_sources(source, root, class_list)
        assert found(videos, root) == ["100218.webm", "24413.webm"]
        assert listed(videos) == [("100218", 0, long), ("24413", 1, "Closing something")]
        assert notes[0] == f"class names are those of {names}: 2 names, in the order of its lines."
    test = write(tmp_path / "something-something-v1-test.csv", "24413\n")
    assert listed(load_sources(test, root)[0]) == [("24413", -1, None)]


def test_ids_are_looked_up_in_their_folder_too(tmp_path):
    touch(tmp_path, "val/run/-3B32lodo2M.mp4", "run/-3B32lodo2M.webm", "run/clip")
    videos, _ = load_sources(write(tmp_path / "a.txt", "run/-3B32lodo2M 0\n"))
    assert found(videos, tmp_path) == ["run/-3B32lodo2M.webm"] and listed(videos) == [("run/-3B32lodo2M", 0, "0")]
    with pytest.raises(SourceError, match="is both run/.* and val/run/"):
        load_sources(write(tmp_path / "b.txt", "-3B32lodo2M 0\n"))
    videos, _ = load_sources(write(tmp_path / "c.txt", "run/clip 0\n"))  # a file as it is
    assert listed(videos) == [("run/clip", 0, "0")]


def test_ucf101(tmp_path):
    lists, root = tmp_path / "ucfTrainTestlist", tmp_path / "UCF-101"
    paths = ["HandstandPushups/v_HandStandPushups_g08_c01.avi", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi"]
    touch(root, *paths)
    train = write(lists / "trainlist01.txt", f"{paths[0]} 2\r\n{paths[1]} 1\r\n")
    test = write(lists / "testlist01.txt", f"{paths[1]}\n{paths[0]}\n")
    sorted_names = ["ApplyEyeMakeup", "HandstandPushups"]
    assert load_sources(train, root)[1] == sorted_names  # no class 0 without videos
    for text in ("1 HandstandPushups\n2 ApplyEyeMakeup\n", "2 ApplyEyeMakeup\n1 HandstandPushups\n"):
        names = write(lists / "classInd.txt", text)
        for classes in (None, names):
            videos, found = load_sources(train, root, classes)
            assert found == sorted_names[::-1]
            assert listed(videos) == [(paths[0], 0, "HandstandPushups"), (paths[1], 1, "ApplyEyeMakeup")]
            assert listed(load_sources(test, root, classes)[0]) == listed(videos)[::-1]
    assert load_sources(lists, root, split="train1") == load_sources(train, root)
    assert load_sources(lists, root, split="test1") == load_sources(test, root)
    with pytest.raises(SourceError, match="three splits: choose train1"):
        load_sources(lists, root)
    with pytest.raises(SourceError, match="holds no folder ApplyEyeMakeup: give"):
        load_sources(train)
    write(train, f"{paths[0]} 1\n{paths[1]} 1\n")
    with pytest.raises(SourceError, match="row 2 .* the number of HandstandPushups, 1: choose layout list"):
        load_sources(train, root)
    assert listed(load_sources(train, root, layout="list")[0]) == [(paths[0], 1, "1"), (paths[1], 1, "1")]
    own = write(lists / "own.csv", f"{paths[0]},sport\n{paths[1]},other\n")
    assert listed(load_sources(own, root)[0]) == [(paths[0], 1, "sport"), (paths[1], 0, "other")]


def test_hmdb51(tmp_path):
    lists, root = tmp_path / "testTrainMulti_7030_splits", touch(tmp_path / "hmdb51", "brush_hair/x.avi")
    for split, marks in ((1, "1 2 0"), (2, "2 1 1")):
        for name in ("brush_hair", "cartwheel"):
            files = [f"#{i}_(Rad)_{name}_f_cm_np1_le_med_0.avi" for i in range(3)]
            lines = (f"{file} {mark} \n" for file, mark in zip(files, marks.split()))
            write(lists / f"{name}_test_split{split}.txt", "".join(lines))

    def numbers(split):
        videos, classes = load_sources(lists, root, split=split)
        assert classes == ["brush_hair", "cartwheel"]
        assert all(video.source.startswith(f"{video.class_name}/#") for video in videos)
        return [(video.label, int(video.source.partition("#")[2][0])) for video in videos]

    assert numbers("train1") == [(0, 0), (1, 0)] and numbers("test1") == [(0, 1), (1, 1)]
    assert numbers("train2") == [(0, 1), (0, 2), (1, 1), (1, 2)] and numbers("test2") == [(0, 0), (1, 0)]
    for split in (None, "train", "train4"):
        with pytest.raises(SourceError, match="three splits: choose train1"):
            load_sources(lists, root, split=split)
    with pytest.raises(SourceError, match="holds no folder brush_hair"):
        load_sources(lists, split="train1")


def test_diving48(tmp_path):
    source = write(
        tmp_path / "Diving48_V2_train.json",
        [
            {"vid_name": "-mmq0PT-u8k_00155", "label": 2, "start_frame": 0, "end_frame": 48},
            {"vid_name": "2x00lRzlTVQ_00000", "label": 0, "start_frame": 0, "end_frame": 70},
        ],
    )
    touch(tmp_path / "rgb", "-mmq0PT-u8k_00155.mp4", "2x00lRzlTVQ_00000.mp4")
    videos, classes = load_sources(source, tmp_path / "rgb")
    assert classes == ["0", "1", "2"] and [video.label for video in videos] == [2, 0]
    vocabulary = write(
        tmp_path / "Diving48_vocab.json", [["Back", "15som", f"{twist}Twis", "FREE"] for twist in ("05", "15", "25")]
    )
    for class_list in (None, vocabulary):
        videos, classes = load_sources(source, tmp_path / "rgb", class_list)
        assert classes == [f"Back 15som {twist}Twis FREE" for twist in ("05", "15", "25")]
        assert found(videos, tmp_path / "rgb") == ["-mmq0PT-u8k_00155.mp4", "2x00lRzlTVQ_00000.mp4"]
        assert listed(videos) == [("-mmq0PT-u8k_00155", 2, classes[2]), ("2x00lRzlTVQ_00000", 0, classes[0])]
        assert all((video.start, video.end) == (0.0, None) for video in videos)  # the files are cut already


def write_tar(path, members, format=tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


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


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path / "disk", "a.mp4", "deep/b.mp4")
    touch(tmp_path / "other", "c.mp4")
    (tmp_path / "disk" / "more").symlink_to(tmp_path / "other")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "deep" / "back").symlink_to(tmp_path / "disk")
    assert [video.source for video in load_sources(tmp_path / "videos")[0]] == ["run/a.mp4", "run/deep/b.mp4", "run/more/c.mp4"]


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
    numbers = write(tmp_path / "numbers.csv", "a.mp4,0\nb.mp4,1\n")
    assert load_sources(numbers, map=write(tmp_path / "n.csv", "0,x\n1,y\n"))[1] == ["x", "y"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has no rows"),
        ("run\n", "row 1 of .* is not from,to"),
        ("run,a\nrun,b\n", "row 2 of .* renames 'run' a second time"),
        ("run,\n", "leaves out every video"),
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


def test_layouts_that_do_not_fit(tmp_path):
    touch(tmp_path, "run/a.mp4")
    source = write(tmp_path / "list.csv", "a.mp4,x\n")
    for wrong, layout, message in (
        (source, "nonsense", "layout 'nonsense' is not one of auto"),
        (source, "folder", "is a file, but layout folder"),
        (tmp_path, "kinetics", "is a folder, but layout kinetics"),
        (source, "kinetics", "no header with youtube_id"),
        (source, "ucf101", "not Class/video.avi"),
        (write(tmp_path / "v2.json", SSV2), "list", "is JSON, which layout list is not"),
        (source, "webdataset", "not a whole, uncompressed tar"),
    ):
        with pytest.raises(SourceError, match=message):
            load_sources(wrong, layout=layout)
    with pytest.raises(SourceError, match="no other root"):
        load_sources(tmp_path, root=tmp_path)
    with pytest.raises(SourceError, match="the root folder .*nowhere does not exist"):
        load_sources(source, root=tmp_path / "nowhere")
