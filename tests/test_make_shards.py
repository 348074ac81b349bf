"""Folders of shards: the same bytes however they come about, and one sentence for everything that can go wrong."""

import csv
import errno
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import pytest

from i2v.pipelines.shards import ShardSet
from i2v.pipelines.store import StoreError
from i2v.shard_tools import make_shards as make_shards_module
from i2v.shard_tools import source_video, writer
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings, encode_video
from i2v.shard_tools.make_shards import main, summary
from i2v.shard_tools.output import Output, OutputError
from i2v.shard_tools.source_video import RejectedVideo
from i2v.shard_tools.sources import Video, load_sources
from tests.making import Stop, contents, stop_after, stop_publishing
from tests.videos import REAL_VIDEOS, decode, moving, noise, write_audio, write_video

REPOSITORY = Path(__file__).resolve().parents[1]
OPTIONS = ["--short-side", "48", "--shard-clips", "5", "--workers", "1", "--seed", "3"]
FAULTS = {"climb/audio.mp4", "climb/empty.mp4", "run/text.mp4", "run/truncated.mp4"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Twelve good videos and four bad ones, in three classes."""
    root = tmp_path_factory.mktemp("source")
    for index in range(12):
        write_video(root / ["climb", "run", "swim"][index % 3] / f"{index}.mp4", noise(5 + index, seed=index))
    write_audio(root / "climb" / "audio.mp4")
    (root / "climb" / "empty.mp4").touch()
    (root / "run" / "text.mp4").write_text("no video\n" * 100)
    (root / "run" / "truncated.mp4").write_bytes((root / "run" / "1.mp4").read_bytes()[:-500])
    return root


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Shards of it, made in one go in this process."""
    return build(source, tmp_path_factory.mktemp("whole") / "out")


def build(source, out, **arguments):
    videos, classes = load_sources(source)
    make_shards(videos, classes, out, EncodeSettings(short_side=48), **{"seed": 3, "shard_clips": 5, **arguments})
    return out


def command(*arguments, program="shard_tools/make_shards.py") -> subprocess.Popen:
    line = [sys.executable, program, *map(str, arguments)]
    return subprocess.Popen(line, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_is_written(source, whole):
    shards = ShardSet(whole)
    manifest = shards.manifest
    names = [shard["name"] for shard in manifest["shards"]]
    assert names == [f"shard-{number:06d}.tar" for number in range(4)]
    tables = ["clips.csv", "clips.npy", "fragments.npy", "manifest.json", "rejected.csv"]
    assert sorted(contents(whole)) == sorted(tables + names)
    assert sum(shard["clips"] for shard in manifest["shards"]) == 12 and manifest["made_with"]["shard_clips"] == 5
    for shard in manifest["shards"]:
        assert zlib.crc32((whole / shard["name"]).read_bytes()) == shard["crc32"]
    assert (len(shards), shards.classes, manifest["clips_per_class"]) == (12, ["climb", "run", "swim"], [4, 4, 4])
    assert manifest["frames"] == sum(range(5, 17)) and manifest["sizes"] == {"64x48": 12}
    rows = list(csv.DictReader(open(whole / "rejected.csv")))
    assert {row["path"] for row in rows} == FAULTS and all(row["reason"] for row in rows)
    assert [row["label"] for row in rows] == ["climb", "climb", "run", "run"]
    table = list(csv.DictReader(open(whole / "clips.csv")))
    assert len(table) == 12
    order = []
    for clip_id in range(12):
        facts = shards.metadata(clip_id)
        order.append(facts["source"])
        clip = encode_video(source / facts["source"], EncodeSettings(short_side=48))
        assert shards.read_whole(clip_id) == clip.data
        assert facts["class"] == facts["source"].split("/")[0] == shards.classes[shards.clips[clip_id]["label"]]
        assert (facts["start"], facts["end"]) == (0, None)
        row = table[clip_id]
        assert (row["key"], row["path"], row["class"]) == (shards.key(clip_id), facts["source"], facts["class"])
        assert (int(row["frames"]), float(row["seconds"])) == (facts["frames"], facts["frames"] / 25)
        assert (row["start"], row["end"], row["width"], row["height"]) == ("", "", "64", "48")
    assert order != sorted(order)


@pytest.mark.process
def test_the_bytes_do_not_depend_on_the_processes(source, whole, tmp_path):
    assert contents(build(source, tmp_path / "two", workers=2)) == contents(whole)


def test_a_class_with_a_comma_is_told_as_one(whole):
    manifest = ShardSet(whole).manifest | {"classes": ["run, fast", "walk"]}
    assert "  classes   'run, fast', walk\n" in summary(manifest, Output(whole), 0)


def test_the_seed_decides_the_order(source, whole, tmp_path):
    others = [ShardSet(build(source, tmp_path / str(seed), seed=seed)) for seed in (4, 5)]
    orders = [tuple(shards.metadata(clip_id)["source"] for clip_id in range(12)) for shards in (ShardSet(whole), *others)]
    assert len(set(orders)) == 3 and len({tuple(sorted(order)) for order in orders}) == 1


@pytest.mark.parametrize("seed", range(12))
def test_interrupted_and_damaged_at_random_it_ends_the_same(seed, source, whole, tmp_path):
    rng, out = np.random.default_rng(seed), tmp_path / "out"
    for _ in range(4):
        try:
            build(source, out, on_progress=stop_after(rng.integers(1, 17)))
        except Stop:
            assert not (out / "manifest.json").exists()
            damage(out, rng)
    build(source, out)
    assert contents(out) == contents(whole)


def damage(out: Path, rng) -> None:
    """What a kill or a power cut may leave: files that end early, or in something that was not confirmed."""
    for path in (*out.glob("*.journal.jsonl"), *out.glob("*.partial")):
        data = path.read_bytes()
        choice = rng.integers(3)
        if choice == 0:
            path.write_bytes(data[: len(data) - int(rng.integers(0, min(len(data), 3000)))])
        elif choice == 1:
            path.write_bytes(data + rng.bytes(700))


@pytest.mark.parametrize("step", ["shard-000001.tar", "shard-000001.part", "fragments.npy", "rejected.csv", "manifest.json"])
@pytest.mark.parametrize("after", [False, True])
def test_killed_around_every_step_that_others_see(step, after, source, whole, tmp_path, monkeypatch):
    """A tar, its part of the index, and the index are published one after the other: what if it ends in between?"""
    stop_publishing(monkeypatch, step, after)
    with pytest.raises(Stop):
        build(source, tmp_path / "out")
    monkeypatch.undo()
    assert (tmp_path / "out" / step).exists() == after
    assert contents(build(source, tmp_path / "out")) == contents(whole)


@pytest.mark.process
def test_killed_and_asked_to_stop_it_continues(source, whole, tmp_path):
    """In the middle of a write to a tar or a journal: the first one, and later ones."""
    out = tmp_path / "out"
    for kind, write in ((signal.SIGKILL, 7), (signal.SIGINT, 0), (signal.SIGTERM, 3), (signal.SIGKILL, 12)):
        process = command(kind.name, write, source, "--out", out, *OPTIONS, program="tests/killed_make_shards.py")
        _, errors = process.communicate()
        assert process.returncode == (-9 if kind == signal.SIGKILL else 130), errors
        assert "Traceback" not in errors and not (out / "manifest.json").exists()
        if kind != signal.SIGKILL:
            assert errors.splitlines()[-1] == ("make_shards: interrupted; what is done is kept, the same command continues.")
    process = command(source, "--out", out, *OPTIONS)
    text, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "continuing after" in errors
    assert "12 clips of 16 videos" in text and "rejected.csv" in text
    assert contents(out) == contents(whole)


@pytest.mark.process
def test_a_store_that_stalls_ends_the_run_and_the_same_command_continues(source, tmp_path):
    """It says nothing about the video, which is not rejected."""
    folder = tmp_path / "data"
    folder.mkdir()
    for index, name in enumerate(("0.mp4", "1.mp4", "2.mp4", "stalled.mp4")):
        (folder / name).write_bytes((source / ["climb", "run", "swim"][index % 3] / f"{index}.mp4").read_bytes())
    (folder / "stall").touch()
    (folder / "list.csv").write_text("".join(f"store://data/{path.name},x\n" for path in sorted(folder.glob("*.mp4"))))
    arguments = ("tests.stalled_make_shards", folder / "list.csv", "--out", tmp_path / "out", *OPTIONS)
    process = command(*arguments, program="-m")
    _, errors = process.communicate()
    assert process.returncode == 1 and errors.splitlines()[-1] == (
        "make_shards: store://data/stalled.mp4 cannot be read, tried 2 times (TimeoutError: no answer in 0.06 s); "
        "what is done is kept, the same command continues."
    )
    (folder / "stall").unlink()
    process = command(*arguments, program="-m")
    text, errors = process.communicate()
    assert process.returncode == 0 and "4 clips of 4 videos" in text, errors


@pytest.mark.process
@pytest.mark.parametrize("room", [0, 3_000, 30_000, 70_000])
def test_a_full_disk_is_one_sentence_and_the_state_is_kept(room, source, whole, tmp_path, monkeypatch, capsys):
    def full(descriptor, data):
        nonlocal room
        os.write(descriptor, data[:room])
        if room < len(data):
            room = 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= len(data)

    monkeypatch.setattr(writer, "_write", full)
    if room:
        with pytest.raises(OSError):
            build(source, tmp_path / "out")
    else:
        assert main([str(source), "--out", str(tmp_path / "out"), *OPTIONS]) == 1
        assert "(No space left on device); what is done is kept" in capsys.readouterr().err
    monkeypatch.undo()
    assert contents(build(source, tmp_path / "out")) == contents(whole)


def test_a_file_that_cannot_be_read_is_not_called_the_output(source, tmp_path, monkeypatch, capsys):
    for place, sentence in (
        (source / "x", f"cannot read {source / 'x'} (Input/output error)"),
        (tmp_path / "out/y", f"cannot write to {tmp_path / 'out'} (Input/output error)"),
        (tmp_path, f"cannot write to {tmp_path / 'out'} (Input/output error)"),
    ):

        def fail(*_, **__):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(place))

        monkeypatch.setattr(make_shards_module, "make_shards", fail)
        assert main([str(source), "--out", str(tmp_path / "out"), *OPTIONS]) == 1
        assert sentence in capsys.readouterr().err


def test_a_disk_that_fails_is_not_a_damaged_video(tmp_path, monkeypatch):
    """FFmpeg says the same of both."""
    video = tmp_path / "a.mp4"
    video.write_bytes(b"no video")

    def fail(*_, **__):
        raise av.error.OSError(errno.EIO, "Input/output error", str(video))

    monkeypatch.setattr(source_video.av, "open", fail)
    with pytest.raises(RejectedVideo, match="cannot be opened as a video"):
        encode_video(video, EncodeSettings(short_side=48))
    monkeypatch.setattr(source_video, "_is_readable", lambda path: False)
    with pytest.raises(StoreError, match="a.mp4 cannot be read"):
        encode_video(video, EncodeSettings(short_side=48))


def test_a_complete_folder_is_left_alone(source, whole, capsys):
    before = contents(whole)
    assert main([str(source), "--out", str(whole), *OPTIONS]) == 0
    assert "is complete already: 12 clips; rejected: 4." in capsys.readouterr().out
    assert contents(whole) == before


@pytest.mark.parametrize(
    "change, sentence",
    [
        (["--gop", "4"], "was made with gop 8, this command says 4: choose a new folder"),
        (["--seed", "9"], "was made with seed 3, this command says 9"),
        (["--codec", "mjpeg"], "was made with codec vp9, this command says mjpeg"),
        (None, "was made from another source list"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_a_folder_of_something_else_is_refused(change, sentence, complete, source, whole, tmp_path, capsys):
    out = whole
    if not complete:
        out = tmp_path / "out"
        with pytest.raises(Stop):
            build(source, out, on_progress=stop_after(3))
    before = contents(out)
    (tmp_path / "list.csv").write_text("a.mp4,x\n")
    arguments = [str(source if change else tmp_path / "list.csv"), "--out", str(out), *OPTIONS, *(change or [])]
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["none.csv"], "none.csv does not exist"),
        (["empty.csv"], "empty.csv has no rows"),
        (["nothing"], "no class folders with videos"),
        (["."], "--out out lies inside the folder of videos .: choose a folder outside of it"),
        (["list.csv", "--classes", "classes.txt"], "row 1 of list.csv: 'x' is not in the class list classes.txt"),
        (["list.csv", "--short-side", "250"], "short side 250 is not a multiple of 16"),
        (["list.csv", "--codec", "mjpeg", "--gop", "8"], "mjpeg has only keyframes"),
        (["list.csv", "--crf", "99"], "crf 99 is not between"),
        (["list.csv", "--workers", "0"], "--workers must be at least 1"),
        (["list.csv", "--root", "nowhere"], "the root folder nowhere does not exist"),
        (["pipe.csv"], "pipe.csv cannot be read: it is a pipe, not a file"),
        (["list.csv", "--classes", "pipe.csv"], "pipe.csv cannot be read: it is a pipe, not a file"),
        (["list.csv", "--out", ""], "--out is empty: perhaps a variable of the shell is not set"),
        ([""], "SOURCE is empty"),
    ],
)
def test_mistakes_write_nothing(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty.csv").touch()
    Path("nothing").mkdir()
    os.mkfifo("pipe.csv")
    Path("list.csv").write_text("a.mp4,x\n")
    Path("classes.txt").write_text("y\n")
    try:
        code = main(["--out", "out", *arguments])
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    assert sentence in capsys.readouterr().err
    assert not Path("out").exists() and not Path("manifest.json").exists()


@pytest.mark.process
def test_folders_that_cannot_be_written(source, whole, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(source), "--out", str(tmp_path / "file"), *OPTIONS]) == 1
    assert "cannot write to" in capsys.readouterr().err
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange/shard-000000.tar").touch()
    assert main([str(source), "--out", str(tmp_path / "strange"), *OPTIONS]) == 2
    assert "holds shards but no making.json" in capsys.readouterr().err
    with pytest.raises(Stop):
        build(source, tmp_path / "lost", on_progress=stop_after(10))
    (tmp_path / "lost/shard-000000.tar").unlink()
    with pytest.raises(OutputError, match="shard-000000.tar is missing or not as .*: delete shard-000000.part beside"):
        build(source, tmp_path / "lost")
    (tmp_path / "lost/shard-000000.part").unlink()
    assert contents(build(source, tmp_path / "lost")) == contents(whole)


@pytest.mark.process
def test_two_at_once_are_refused(source, tmp_path):
    def second(done, total, rejected):
        with pytest.raises(OutputError, match="another make_shards is writing"):
            build(source, tmp_path / "out")
        raise Stop

    with pytest.raises(Stop):
        build(source, tmp_path / "out", on_progress=second)


@pytest.mark.process
def test_the_rejected_ones_can_be_repaired_and_given_again(source, whole, tmp_path, capsys):
    for path in FAULTS:
        write_video(tmp_path / "repaired" / path, moving(3))
    arguments = [str(whole / "rejected.csv"), "--root", str(tmp_path / "repaired"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--classes", str(whole / "manifest.json"), *OPTIONS]) == 0
    assert "4 clips of 4 videos" in capsys.readouterr().out
    shards = ShardSet(tmp_path / "out")
    assert shards.classes == ["climb", "run", "swim"] and sorted(shards.clips["label"]) == [0, 0, 1, 1]


def test_videos_without_labels_and_without_a_file(source, tmp_path):
    videos = [Video(str(source / "run/1.mp4"), source="1.mp4"), Video(str(source / "none.mp4"), source="none.mp4")]
    manifest = make_shards(videos, [], tmp_path / "out", EncodeSettings(short_side=48))
    assert (manifest["clips"], manifest["rejected"], manifest["clips_per_class"]) == (1, 1, [])
    assert ShardSet(tmp_path / "out").metadata(0)["label"] == -1
    assert (tmp_path / "out/rejected.csv").read_text() == "path,start,end,label,reason\nnone.mp4,,,,the file does not exist\n"


@pytest.mark.process
def test_no_usable_video_at_all(source, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("run/text.mp4,x\n")
    assert main([str(tmp_path / "list.csv"), "--root", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "every video was rejected" in capsys.readouterr().err


@pytest.mark.process
def test_a_root_that_is_mended_after_total_failure(source, tmp_path, capsys):
    """The list is the same, so the data set is known; it is not complete, and the sentence says how it gets there."""
    (tmp_path / "list.csv").write_text("run/1.mp4,run\n")
    given = [str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), "--workers", "1", "--short-side", "48"]
    assert main([*given, "--root", str(tmp_path)]) == 1
    assert f"every video was rejected, {tmp_path}/run/1.mp4 among them" in capsys.readouterr().err  # where it was looked for
    mended = [*given, "--root", str(source)]
    assert main(mended) == 1
    said = capsys.readouterr()
    assert "out/rejected.csv, mend them or --root, and give this command with --retry" in said.err
    assert "complete already" not in said.out
    assert main([*mended, "--retry"]) == 0 and len(ShardSet(tmp_path / "out")) == 1


def test_what_is_next_can_be_pasted_where_names_have_spaces(whole):
    manifest = json.loads((whole / "manifest.json").read_text()) | {"rejected": 0}
    said = summary(manifest, Output("my train"), 0)
    assert "--classes 'my train/manifest.json'" in said and "data.train='my train' data.val=DIR" in said
    for classes in ("my train/manifest.json", str(whole)):
        said = summary(manifest, Output("my val"), 0, classes)
        train = shlex.quote(classes.removesuffix("/manifest.json"))
        assert "  next      training: " in said and f" data.train={train} data.val='my val'" in said
    assert "data.train='my val' data.val=DIR" in summary(manifest, Output("my val"), 0, "names.txt")


@pytest.mark.process
def test_help_teaches_and_starts_quickly():
    process = command("--help")
    text, _ = process.communicate()
    assert process.returncode == 0
    assert "examples" in text and "rejected.csv" in text and "exit codes" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.process
def test_torch_and_dali_are_not_imported():
    program = "import sys, i2v.shard_tools.make_shards; sys.exit('torch' in sys.modules or 'nvidia.dali' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0


@pytest.mark.process
@pytest.mark.skipif(not REAL_VIDEOS.is_dir(), reason="the public test videos (../shared/videos) are not here")
def test_real_videos(tmp_path, capsys):
    names = sorted(path.name for path in REAL_VIDEOS.iterdir() if path.suffix != ".md")
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(names) + "\n")
    options = ["--root", str(REAL_VIDEOS), "--out", str(tmp_path / "out"), "--short-side", "64", "--workers", "2"]
    assert main([str(tmp_path / "list.csv"), *options]) == 0
    assert "15 clips of 16 videos" in capsys.readouterr().out
    (row,) = csv.DictReader(open(tmp_path / "out/rejected.csv"))
    assert row["path"] == "corrupted.mp4" and row["reason"].startswith("2 of 50 frames are damaged")
    shards = ShardSet(tmp_path / "out")
    ids = {shards.metadata(clip_id)["source"]: clip_id for clip_id in range(len(shards))}
    expected = {"flipping_a_pancake.mkv": 310, "nasa_13013.mp4": 390, "unordered.mov": 4, "h264_10bits.mp4": 30}
    assert {name: shards.clips[ids[name]]["frames"] for name in expected} == expected
    # Filmed with the phone upright: stored lying, to be shown turned clockwise by a right angle.
    stored = decode(io.BytesIO(shards.read_whole(ids["video_90.mov"])))
    lying = decode(str(REAL_VIDEOS / "video_90.mov"))
    assert (lying.shape, stored.shape) == ((3, 320, 568, 3), (3, 112, 64, 3))
    upright, upside_down = (np.rot90(lying, turns, axes=(1, 2))[:, 4:-4:5, 2:-2:5] for turns in (-1, 1))
    difference = [np.abs(stored.astype(int) - frames).mean() for frames in (upright, upside_down)]
    assert difference[0] < difference[1] / 2
