"""What lists and folders hold is used, said not to be, or refused."""

import pytest

from i2v.shard_tools.paths import SourceError, is_video
from i2v.shard_tools.sources import load_sources, read_sources
from tests.test_sources import touch, write


def parts(path):
    return [(video.start, video.end) for video in load_sources(path)[0]]


@pytest.mark.parametrize(
    "start, end",
    [
        ("start", "end"),
        ("start_sec", "end_sec"),
        ("begin", "stop"),
        ("t_start", "t_end"),
        ("startTime", "endTime"),
        ("Start (s)", "End (s)"),
        ("start_timestamp", "stop_timestamp"),
        ("segment_start", "segment_end"),
        ("begin-seconds", "finish-seconds"),
        ("start", "duration"),
        ("start_sec", "duration_sec"),
        ("begin", "length"),
    ],
)
def test_columns_of_parts(tmp_path, start, end):
    last = ("3.5", "0:00:20.5", "") if not end.startswith(("duration", "length")) else ("2.25", "0:10.5", "")
    text = f"videoPath,{start},{end},className\na.mp4,1.25,{last[0]},x\na.mp4,0:10,{last[1]},x\nb.mp4,,{last[2]},x\n"
    source = write(tmp_path / "list.csv", text)
    assert parts(source) == [(1.25, 3.5), (10.0, 20.5), (0.0, None)] and not read_sources(source).notes


def test_a_duration_beside_an_end_is_the_videos_own(tmp_path):
    source = write(tmp_path / "list.csv", "path,duration,start,end,label\na.mp4,90,1,2,x\n")
    assert parts(source) == [(1.0, 2.0)] and "the columns duration, which are not used" in read_sources(source).notes[0]
    assert parts(write(source, "path,duration,label\na.mp4,90,x\n")) == [(0.0, None)]
    with pytest.raises(SourceError, match="row 2 .*start '1' and duration '0' .* the duration more than 0"):
        load_sources(write(source, "path,start,duration,label\na.mp4,1,0,x\n"))


EPIC = """narration_id,participant_id,video_id,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,verb_class
P01_01_0,P01,P01_01,00:00:00.14,00:00:03.37,8,202,open door,3
P01_01_1,P01,P01_01,00:01:04.37,00:01:06.17,262,370,turn on light,6
"""


def test_epic_kitchens(tmp_path):
    root = touch(tmp_path / "videos", "P01/P01_01.MP4")
    videos, classes, notes = read_sources(write(tmp_path / "EPIC_100_train.csv", EPIC), root)
    assert [(video.start, video.end) for video in videos] == [(0.14, 3.37), (64.37, 66.17)]
    assert {video.path for video in videos} == {str(root / "P01/P01_01.MP4")} and not classes
    unused = "narration_id, participant_id, start_frame, stop_frame, narration, verb_class"
    assert f"the columns {unused}, which are not used" in notes[0] and "has no column of labels" in notes[1]
    labelled = write(tmp_path / "verbs.csv", EPIC.replace("verb_class", "label"))
    assert [video.label for video in load_sources(labelled, root)[0]] == [3, 6]


@pytest.mark.parametrize("columns", ["start_ms,end_ms", "start_frame,end_frame", "onset,offset"])
def test_columns_that_look_like_parts_are_said(tmp_path, columns):
    (note,) = read_sources(write(tmp_path / "list.csv", f"path,{columns},label\na.mp4,0,10,x\n")).notes
    assert f"the columns {columns.replace(',', ', ')}, which are not used: parts are start,end" in note


def test_columns_that_are_not_used_are_said(tmp_path):
    (note,) = read_sources(write(tmp_path / "list.csv", ",path,label,Views\n0,a.mp4,x,7\n")).notes
    assert "has the columns no. 1, Views, which are not used." in note
    assert not read_sources(write(tmp_path / "list.csv", "path,split\na.mp4,test\n")).notes


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("header", ["", "path,label\n"])
def test_rows_have_as_many_cells_as_the_first(tmp_path, separator, header):
    line = 3 if header else 2
    for row, cells in (("b.mp4,x,y", "3 cells"), ("b.mp4", "1 cell")):
        text = f"{header}a.mp4,x\n{row}\n".replace(",", separator)
        with pytest.raises(SourceError, match=f"row {line} of .* has {cells}, but the first row has 2 cells: mend"):
            load_sources(write(tmp_path / "list.csv", text))
    for row in ("b.mp4,x,,", "b.mp4,x"):  # cells that hold nothing are none
        text = f"{header}a.mp4,x\n{row}\n".replace(",", separator)
        assert len(load_sources(write(tmp_path / "list.csv", text))[0]) == 2


@pytest.mark.parametrize(
    "text", ["path,label\na.mp4,x\nb c.mp4,y\n", "a.mp4,x\nb c.mp4,y\n", "a.mp4 x\nb c.mp4 y\n", "a.mp4\tx\nb c.mp4\ty\n"]
)
def test_comments_are_neither_header_nor_video(tmp_path, text):
    lines = text.splitlines()
    for comment in ("# a list, of videos; 2020", "#", "  # path,label", '# "quoted, and', "#\tpath 1"):
        source = write(tmp_path / "list.txt", "\n".join([comment, *lines[:-1], comment, lines[-1], comment]))
        videos, _classes, notes = read_sources(source)
        assert [(video.source, video.class_name) for video in videos] == [("a.mp4", "x"), ("b c.mp4", "y")] and not notes
    with pytest.raises(SourceError, match="row 4 of .*'nan'"):  # lines keep their numbers
        load_sources(write(tmp_path / "list.txt", "# x\na.mp4,x\n# y\nb.mp4,nan\n"))
    with pytest.raises(SourceError, match="has no rows"):
        load_sources(write(tmp_path / "list.txt", "# only this\n"))


def test_a_file_whose_name_begins_like_a_comment_is_a_video(tmp_path):
    touch(tmp_path, "#1_Gum_chew.avi")
    videos, _, notes = read_sources(write(tmp_path / "list.csv", "#1_Gum_chew.avi,x\n#2_Gum_chew.avi,x\na.avi,x\n"))
    assert [video.source for video in videos] == ["#1_Gum_chew.avi", "a.avi"]
    assert "skipped as comments, though 1 of them name a video" in notes[0]


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


def test_several_integers_after_a_path(tmp_path):
    with pytest.raises(SourceError, match="row 2 of .*'1 2', which looks like several"):
        load_sources(write(tmp_path / "list.txt", "a.mp4 3\nb.mp4 1 2\n"))


@pytest.mark.parametrize("label", [["a", "b"], {"a": 1}, True])
def test_a_label_in_json_is_a_name_or_an_integer(tmp_path, label):
    with pytest.raises(SourceError, match="entry 1 of .* has the label .*: a video has one"):
        load_sources(write(tmp_path / "train.json", [{"id": "1", "template": label}]))


SUFFIXES = "h264 264 h265 265 hevc m2v m1v mjpg mjpeg ivf obu av1 avs nut dv wtv MP4 webm"


@pytest.mark.parametrize("suffix", SUFFIXES.split())
def test_streams_without_a_container_are_videos(suffix):
    assert is_video(f"a.{suffix}") and not is_video(suffix) and not is_video(f"a.{suffix}.txt")


def test_files_of_class_folders_that_are_no_videos_are_said(tmp_path):
    touch(tmp_path, "run/a.h264", "run/b.xyz", "run/deep/c.XYZ", "run/README", "walk/d.jpg", "run/.hidden")
    videos, _, notes = read_sources(tmp_path)
    assert [video.source for video in videos] == ["run/a.h264"]
    assert "4 files in" in notes[0] and "2 .xyz" in notes[0] and "1 without a suffix" in notes[0] and "1 .jpg" in notes[0]
    (tmp_path / "run" / "a.h264").unlink()
    with pytest.raises(SourceError, match="no class folders with videos .* but 2 .xyz"):
        load_sources(tmp_path)


@pytest.mark.parametrize(
    "names", ["train val", "training validation testing", "Test Train", "train", "train_256 val_256", "videos_train videos_val"]
)
def test_splits_are_no_classes(tmp_path, names):
    names = names.split()
    touch(tmp_path, *(f"{name}/{label}/{name}.mp4" for name in names for label in ("run", "walk")), "lists/train.csv")
    train = next(name for name in names if "train" in name.lower())
    rest = "".join(f", and .*/{name} with --classes" for name in sorted(names) if name != train)
    with pytest.raises(SourceError, match=f"are splits, not classes .*: give .*/{train}{rest}"):
        load_sources(tmp_path)
    assert load_sources(tmp_path / train)[1] == ["run", "walk"]


def test_splits_without_classes_are_no_classes_either(tmp_path):
    with pytest.raises(SourceError, match="are splits, not classes .test, train.: give .*/train, and .*/test with"):
        load_sources(touch(tmp_path, "train/a.mp4", "test/b.mp4"))


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, "train/a.mp4", "bus/b.mp4", "train/steam/c.mp4")
    assert load_sources(tmp_path)[1] == ["bus", "train"]
