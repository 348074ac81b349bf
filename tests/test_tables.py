"""Text lists: what their columns hold is used, said not to be, or refused."""

import pytest

from i2v.shard_tools.paths import SourceError, is_video
from i2v.shard_tools.sources import load_sources, read_sources
from tests.lists import listed, touch, write


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
        with pytest.raises(SourceError, match=f"row {line} of .* has {cells}, but the first row has 2 cells: correct"):
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


SUFFIXES = "h264 264 h265 265 hevc m2v m1v mjpg mjpeg ivf obu av1 avs nut dv wtv MP4 webm"


@pytest.mark.parametrize("suffix", SUFFIXES.split())
def test_streams_without_a_container_are_videos(suffix):
    assert is_video(f"a.{suffix}") and not is_video(suffix) and not is_video(f"a.{suffix}.txt")


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


def test_a_label_after_a_space_may_hold_what_separates_other_lists(tmp_path):
    videos, _ = load_sources(write(tmp_path / "list.txt", "b c.mp4 run, then; jump\na.MP4 climb a wall\n"))
    assert listed(videos) == [("b c.mp4", 1, "run, then; jump"), ("a.MP4", 0, "climb a wall")]


@pytest.mark.parametrize("header, label", [("path\n", ""), ("", ' "jump, then run"'), ("", " 0")])
def test_quotes_around_a_path_with_a_comma_where_no_comma_separates(tmp_path, header, label):
    """pandas quotes only those cells that need it, and needs it for a comma in a list of one column."""
    text = f'{header}b c.mp4{label}\n"d, e/a.mp4"{label}\n'
    videos, _ = load_sources(write(tmp_path / "list.csv", text))
    assert [video.source for video in videos] == ["b c.mp4", "d, e/a.mp4"]


def test_a_split_column(tmp_path):
    source = write(tmp_path / "list.csv", "path,label,split\na.mp4,x,train\nb.mp4,y,val\nc.mp4,x,val\n")
    assert [video.source for video in load_sources(source, split="val")[0]] == ["b.mp4", "c.mp4"]
    videos, _, notes = read_sources(source)
    assert len(videos) == 3 and "train 1, val 2" in notes[0]
    with pytest.raises(SourceError, match="no split 'test': it has train 1, val 2"):
        load_sources(source, split="test")
    for header in ("", "path,label\n"):
        with pytest.raises(SourceError, match="has no splits"):
            load_sources(write(tmp_path / "plain.csv", f"{header}a.mp4,x\n"), split="val")
