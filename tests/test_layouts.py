"""Data sets' own lists, one by one."""

import re
import subprocess
from pathlib import Path

import pytest

from i2v.shard_tools.lists.classes import read_class_list
from i2v.shard_tools.paths import SourceError
from i2v.shard_tools.sources import load_sources, read_sources
from tests.lists import found, listed, touch, write
from tests.videos import moving, write_video

ROOT = Path(__file__).parent.parent


def test_a_folder_of_class_folders(tmp_path):
    for name in ("run/b.mp4", "run/a.MKV", "climb/deep/er/c.webm", "climb/notes.txt", "run/.hidden.mp4", ".git/x.mp4"):
        write(tmp_path / name, "x")
    (tmp_path / "empty").mkdir()
    videos, classes = load_sources(tmp_path)
    assert classes == ["climb", "empty", "run"]
    assert listed(videos) == [("climb/deep/er/c.webm", 0, "climb"), ("run/a.MKV", 2, "run"), ("run/b.mp4", 2, "run")]
    assert videos[0].path == str(tmp_path / "climb/deep/er/c.webm")


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
    (tmp_path / "a.MP4").write_bytes(b"\0\0\0\x18ftyp")
    with pytest.raises(SourceError, match="a.MP4 is a video: give the folder that holds a folder for each class"):
        load_sources(tmp_path / "a.MP4")


def test_films_in_one_folder_are_listed_as_the_page_on_long_videos_says(tmp_path):
    page = (ROOT / "docs" / "localisation.md").read_text()
    listing, *words = re.search(r"^    (ls .*)\n    i2v shards (\S+) --root (\S+) --out", page, re.MULTILINE).groups()
    touch(tmp_path / words[1], "a film, long.mp4", "b.mkv")
    subprocess.run(listing, shell=True, cwd=tmp_path, check=True)
    videos, classes = load_sources(tmp_path / words[0], root=tmp_path / words[1])
    assert found(videos, tmp_path / words[1]) == ["a film, long.mp4", "b.mkv"] and not classes


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path / "disk", "a.mp4", "deep/b.mp4")
    touch(tmp_path / "other", "c.mp4")
    (tmp_path / "disk" / "more").symlink_to(tmp_path / "other")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "deep" / "back").symlink_to(tmp_path / "disk")
    assert [video.source for video in load_sources(tmp_path / "videos")[0]] == ["run/a.mp4", "run/deep/b.mp4", "run/more/c.mp4"]
    (tmp_path / "other" / "round").symlink_to(tmp_path / "disk")  # the two lead to each other
    assert [video.source for video in load_sources(tmp_path / "videos")[0]] == ["run/a.mp4", "run/deep/b.mp4", "run/more/c.mp4"]
    (tmp_path / "videos" / "jump").symlink_to(tmp_path / "other")  # another way to the same folder is no circle
    assert len(load_sources(tmp_path / "videos")[0]) == 6


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
    other = write(tmp_path / "other.csv", "path,label\nA_3_4,x\n")
    with pytest.raises(SourceError, match="none of the 1 videos"):  # that is no name of a clip
        load_sources(other)
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
        assert classes == list(SSV2_LABELS) == read_class_list(labels).names
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


@pytest.mark.parametrize("label", [["a", "b"], {"a": 1}, True])
def test_a_label_in_json_is_a_name_or_an_integer(tmp_path, label):
    with pytest.raises(SourceError, match="entry 1 of .* has the label .*: a video has one"):
        load_sources(write(tmp_path / "train.json", [{"id": "1", "template": label}]))


def test_ids_are_looked_up_in_their_folder_too(tmp_path):
    touch(tmp_path, "val/run/-3B32lodo2M.mp4", "run/-3B32lodo2M.webm", "run/clip")
    videos, _ = load_sources(write(tmp_path / "a.txt", "run/-3B32lodo2M 0\n"))
    assert found(videos, tmp_path) == ["run/-3B32lodo2M.webm"] and listed(videos) == [("run/-3B32lodo2M", 0, "0")]
    with pytest.raises(SourceError, match="is both run/.* and val/run/"):
        load_sources(write(tmp_path / "b.txt", "-3B32lodo2M 0\n"))
    videos, _ = load_sources(write(tmp_path / "c.txt", "run/clip 0\n"))  # a file as it is
    assert listed(videos) == [("run/clip", 0, "0")]


def test_one_id_is_one_video_also_in_two_class_folders(tmp_path):
    touch(tmp_path, "run/A.mp4", "climb/A.mp4")
    with pytest.raises(SourceError, match="row 2 and row 3 of .* the same video, A, as 'run' and as 'climb'"):
        load_sources(write(tmp_path / "list.csv", "id,label\nA,run\nA,climb\n"))


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
