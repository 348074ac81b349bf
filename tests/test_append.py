"""A data set that grows: what was there stays, also for who reads it meanwhile, and whatever breaks on the way."""

import csv
import hashlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
from fsspec.implementations.memory import MemoryFileSystem

from i2v.pipelines.shards import ShardSet
from i2v.shard_tools.dataset import _begin_append, make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.make_shards import main
from i2v.shard_tools.output import MAKING, Output, OutputError
from i2v.shard_tools.sources import Video, load_sources
from tests.making import Stop, contents, stop_after, stop_publishing
from tests.videos import noise, write_video

OPTIONS = ["--short-side", "48", "--shard-clips", "3", "--workers", "1"]
SETTINGS = EncodeSettings(short_side=48)
BAD = {"climb/bad0.mp4", "run/bad1.mp4"}


@pytest.fixture
def source(tmp_path):
    """Five good videos and two bad ones in two classes; `grow` adds four more, one of them bad."""
    root = tmp_path / "source"
    for index in range(5):
        write_video(root / ["climb", "run"][index % 2] / f"{index}.mp4", noise(4 + index, seed=index))
    for path in BAD:
        (root / path).write_text("no video\n" * 100)
    return root


def grow(source):
    for index in range(5, 8):
        write_video(source / ["climb", "run"][index % 2] / f"{index}.mp4", noise(4 + index, seed=index))
    (source / "run" / "bad2.mp4").touch()
    return source


def make(source, out, **arguments):
    return make_shards(*load_sources(source), out, SETTINGS, **{"shard_clips": 3, **arguments})


def sources(shards: ShardSet) -> list[str]:
    return [shards.metadata(clip_id)["source"] for clip_id in range(len(shards))]


def rejected(out: Path) -> list[str]:
    with open(out / "rejected.csv", newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


def require_consistent(out: Path) -> ShardSet:
    """Index, tables and tars say the same."""
    shards = ShardSet(out)
    with open(out / "clips.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    urls = [str(out / shard["name"]) for shard in shards.manifest["shards"]]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [row["key"] for row in rows] == [sample["__key__"] for sample in samples]
    for clip_id, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        facts = shards.metadata(clip_id)
        assert shards.key(clip_id) == row["key"] and shards.read_whole(clip_id) == sample["mp4"]
        assert (row["path"], row["class"], int(row["frames"])) == (facts["source"], facts["class"] or "", facts["frames"])
        assert facts["class"] == (shards.classes[facts["label"]] if facts["label"] >= 0 else None)
    assert len(rejected(out)) == shards.manifest["rejected"]
    return shards


def test_new_videos_become_new_shards_and_the_old_ones_stay(source, tmp_path):
    out = tmp_path / "out"
    make(source, out)
    before, reader = contents(out), ShardSet(out)
    old = sources(reader)
    manifest = make(grow(source), out, append=True)
    after = contents(out)
    for name in before.keys() - {"manifest.json", "clips.csv", "rejected.csv"}:  # tars, and the index for old readers
        assert after[name] == before[name]
    assert sources(reader) == old
    shards = require_consistent(out)
    assert sources(shards)[:5] == old
    assert sorted(sources(shards)[5:]) == ["climb/6.mp4", "run/5.mp4", "run/7.mp4"]
    assert rejected(out) == ["climb/bad0.mp4", "run/bad1.mp4", "run/bad2.mp4"]
    assert (manifest["clips"], manifest["rejected"], manifest["clips_per_class"]) == (8, 3, [4, 4])
    assert [(part["clips"], part["rejected"]) for part in manifest["appended"]] == [(3, 1)]
    assert make(source, out, append=True) == manifest and contents(out) == after  # nothing is new


def test_the_same_first_command_still_knows_its_data_set(source, tmp_path):
    make(source, tmp_path / "out")
    videos, classes = load_sources(source)
    manifest = make(grow(source), tmp_path / "out", append=True)
    assert make_shards(videos, classes, tmp_path / "out", SETTINGS, shard_clips=3) == manifest


def test_many_generations_keep_one_index_for_readers(source, tmp_path):
    out = tmp_path / "out"
    make(source, out)
    for index in range(3):
        write_video(source / "run" / f"more{index}.mp4", noise(5, seed=20 + index))
        make(source, out, append=True)
    assert require_consistent(out).manifest["generation"] == 3
    names = {name for name in contents(out) if name.endswith(".npy")}
    assert names == {"clips-2.npy", "clips-3.npy", "fragments-2.npy", "fragments-3.npy"}


@pytest.mark.parametrize("name", ["clips.npy", "fragments.npy", "manifest.json"])
def test_a_damaged_index_does_not_become_a_sound_one(source, tmp_path, name):
    """Whose checksums would be right, and whose labels not. Mended, the same append goes on."""
    out = tmp_path / "out"
    make(source, out)
    whole = (out / name).read_bytes()
    damaged = whole.replace(b'"climb"', b'"clamb"') if name == "manifest.json" else whole[:-1] + bytes([whole[-1] ^ 1])
    (out / name).write_bytes(damaged)
    grow(source)
    with pytest.raises(OutputError, match=f"{name} is damaged .*checksum differs.*: restore it"):
        make(source, out, append=True)
    (out / name).write_bytes(whole)
    make(source, out, append=True)
    assert len(require_consistent(out)) == 8


@pytest.mark.process
def test_repaired_ones_are_tried_again(source, tmp_path, capsys):
    out = tmp_path / "out"
    make(source, out)
    write_video(source / "climb" / "bad0.mp4", noise(9, seed=9))
    grow(source)
    manifest = make(source, out, retry=True)  # not the new ones
    assert rejected(out) == ["run/bad1.mp4"] and (manifest["clips"], manifest["rejected"]) == (6, 1)
    assert sources(require_consistent(out))[5:] == ["climb/bad0.mp4"]
    assert main([str(source), "--out", str(out), "--retry", "--append", *OPTIONS]) == 0
    assert "9 clips of 11 videos" in (text := capsys.readouterr().out) and "3 of them last; rejected then: 2" in text
    assert rejected(out) == ["run/bad1.mp4", "run/bad2.mp4"]
    require_consistent(out)


def test_a_retry_in_vain_changes_nothing_that_matters(source, tmp_path):
    out = tmp_path / "out"
    make(source, out)
    before = contents(out)
    for _ in range(2):
        manifest = make(source, out, retry=True)
        assert (manifest["clips"], manifest["rejected"], len(manifest["shards"])) == (5, 2, 2)
    after = contents(out)
    assert all(after[name] == before[name] for name in before if name.endswith((".tar", ".csv")))
    make(grow(source), out, append=True)
    assert len(require_consistent(out)) == 8


def test_a_shard_of_which_nothing_is_left(source, tmp_path):
    """Its number is used for nothing else, and the keys of the others are theirs."""
    make(source, tmp_path / "out", shard_clips=1, seed=1)
    shards = require_consistent(tmp_path / "out")
    assert len(shards) == len(shards.manifest["shards"]) == 5
    assert shards.manifest["shards"][-1]["name"] == "shard-000006.tar"  # two of seven are missing
    make(grow(source), tmp_path / "out", append=True, shard_clips=1)
    assert len(require_consistent(tmp_path / "out")) == 8


def test_all_were_rejected_and_then_not(source, tmp_path):
    videos = [Video(str(source / path), source=path) for path in sorted(BAD)]
    assert make_shards(videos, [], tmp_path / "out", SETTINGS)["clips"] == 0
    for path in BAD:
        write_video(source / path, noise(4, seed=1))
    assert make_shards(videos, [], tmp_path / "out", SETTINGS, retry=True)["clips"] == 2
    assert rejected(tmp_path / "out") == [] and len(require_consistent(tmp_path / "out")) == 2


@pytest.fixture
def grown(source, tmp_path):
    """The data set before an append, and after one that nothing interrupted."""
    for name in ("before", "after"):
        make(source, tmp_path / name)
    grow(source)
    write_video(source / "climb" / "bad0.mp4", noise(9, seed=9))
    make(source, tmp_path / "after", append=True, retry=True, shard_clips=2)
    return tmp_path / "before", tmp_path / "after"


@pytest.mark.parametrize(
    "step", ["making-", "making.json", "shard-000004.tar", "shard-000004.part", "clips-1.npy", "rejected.csv", "manifest.json"]
)
@pytest.mark.parametrize("after", [False, True])
def test_killed_anywhere_the_old_data_set_is_whole(step, after, source, grown, monkeypatch):
    out, expected = grown
    for attempt in range(2):
        stop_publishing(monkeypatch, step, after)
        if attempt == 0 or not after:
            with pytest.raises(Stop):
                make(source, out, append=True, retry=True, shard_clips=2)
        monkeypatch.undo()
        shards = ShardSet(out)
        assert len(shards) == (9 if step == "manifest.json" and after else 5) and len(sources(shards)) == len(shards)
    make(source, out, append=True, retry=True, shard_clips=2)
    assert contents(out)["manifest.json"] == contents(expected)["manifest.json"]
    assert contents(out) == contents(expected)


def test_another_append_that_begins_at_the_same_time_leaves_what_was_chosen(source, grown, monkeypatch):
    """It had seen that nothing was being made, and is refused when it sees what is."""
    out, expected = grown
    stop_publishing(monkeypatch, "shard-", after=False)
    with pytest.raises(Stop):
        make(source, out, append=True, retry=True, shard_clips=2)
    monkeypatch.undo()
    output, others = Output(out), load_sources(source)[0][::-1]
    making = output.read_json(MAKING) | {"sources": "others"}
    with pytest.raises(OutputError, match="another command makes something in"):
        _begin_append(output, None, output.read_json("manifest.json"), others, making)
    make(source, out, append=True, retry=True, shard_clips=2)
    assert contents(out) == contents(expected)


@pytest.mark.process
def test_the_command_goes_on_where_it_was_killed_between_the_tables_and_the_manifest(source, tmp_path, monkeypatch):
    """Then rejected.csv has fewer rows than the manifest of before says."""
    out, expected = tmp_path / "out", tmp_path / "expected"
    make(source, out), make(source, expected)
    write_video(source / "climb" / "bad0.mp4", noise(9, seed=9))
    stop_publishing(monkeypatch, "manifest.json", after=False)
    with pytest.raises(Stop):
        make(source, out, append=True, retry=True)
    monkeypatch.undo()
    for folder in (out, expected):
        assert main([str(source), "--out", str(folder), "--append", "--retry", *OPTIONS]) == 0
    assert contents(out) == contents(expected)


def test_a_shard_without_clips_whose_append_was_killed_last(source, tmp_path, monkeypatch):
    """Its number is free again, but what it left behind is not a part of the next append."""
    out = tmp_path / "out"
    make(source, out)
    stop_publishing(monkeypatch, "manifest.json", after=True)
    with pytest.raises(Stop):
        make(source, out, retry=True)  # in vain
    monkeypatch.undo()
    make(grow(source), out, append=True)
    assert len(require_consistent(out)) == 8 and len(rejected(out)) == 3


@pytest.mark.parametrize("seed", range(6))
def test_a_job_array_that_crashes_appends_the_same(seed, source, grown):
    out, expected = grown
    rng = np.random.default_rng(seed)
    for _ in range(5):
        tasks, stop = int(rng.integers(1, 4)), stop_after(int(rng.integers(1, 4)))
        arguments = {"append": True, "retry": True, "shard_clips": 2, "task": (int(rng.integers(tasks)), tasks)}
        try:
            make(source, out, on_progress=stop, **arguments)
        except Stop:
            pass
    make(source, out, append=True, retry=True, shard_clips=2)
    assert contents(out) == contents(expected)


def test_in_a_store_it_is_the_same(source, grown, tmp_path):
    MemoryFileSystem.store.clear()
    out, expected = grown
    fs = fsspec.filesystem("memory")
    fs.put(f"{out}/", "/bucket/x/", recursive=True)
    with pytest.raises(Stop):
        make(
            source,
            "memory://bucket/x",
            append=True,
            retry=True,
            shard_clips=2,
            staging=tmp_path / "staging",
            on_progress=stop_after(3),
        )
    make(source, "memory://bucket/x", append=True, retry=True, shard_clips=2, staging=tmp_path / "other")
    found = {entry["name"].rsplit("/", 1)[-1]: fs.cat_file(entry["name"]) for entry in fs.ls("/bucket/x", detail=True)}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} == contents(expected)


def test_parts_of_one_video_are_videos_of_their_own(source, tmp_path):
    path = str(source / "run" / "3.mp4")  # 7 frames at 25 per second
    first, second, third = (Video(path, source="3.mp4", start=start, end=start + 0.1) for start in (0, 0.1, 0.12))
    make_shards([first, second], [], tmp_path / "out", SETTINGS)
    make_shards([first, second, third], [], tmp_path / "out", SETTINGS, append=True)
    shards = require_consistent(tmp_path / "out")
    assert sorted(shards.metadata(i)["start"] for i in range(3)) == [0, 0.1, 0.12]
    with open(tmp_path / "out" / "clips.csv", newline="") as file:
        assert [(row["start"], row["end"]) for row in csv.DictReader(file)][2] == ("0.12", str(0.12 + 0.1))


@pytest.mark.process
def test_new_classes_come_after_the_old_ones(source, tmp_path, capsys):
    out = tmp_path / "out"
    make(source, out)
    write_video(source / "abseil" / "x.mp4", noise(5, seed=5))
    with pytest.raises(OutputError, match="class 0 is 'climb' in .* and 'abseil' here: give the classes of .*manifest.json"):
        make(source, out, append=True)
    (tmp_path / "classes.txt").write_text("climb\nrun\nabseil\n")
    before = contents(out)
    command = [str(source), "--out", str(out), "--append", *OPTIONS]
    assert main(command) == 2  # the classes are those of the data set, unless told otherwise
    assert "'abseil' is not in the class list" in capsys.readouterr().err
    assert contents(out) == before
    assert main([*command, "--classes", str(tmp_path / "classes.txt")]) == 0
    shards = require_consistent(out)
    assert shards.classes == ["climb", "run", "abseil"] and shards.manifest["clips_per_class"] == [3, 2, 1]


@pytest.mark.process
def test_a_part_of_the_classes_is_enough_on_the_command_line(source, tmp_path):
    make(source, tmp_path / "out")
    write_video(tmp_path / "more" / "run" / "new.mp4", noise(5, seed=5))
    assert main([str(tmp_path / "more"), "--out", str(tmp_path / "out"), "--append", *OPTIONS]) == 0
    shards = require_consistent(tmp_path / "out")
    assert shards.classes == ["climb", "run"] and shards.metadata(5)["class"] == "run"


@pytest.mark.parametrize(
    "prepare, options, sentence",
    [
        ("make", ["--gop", "4"], "was made with gop 8, this command says 4: what is appended must be like what is there"),
        ("make", ["--fps", "5"], "was made with fps None, this command says 5.0"),
        (None, [], "holds no finished data set: make it first, without --append and --retry"),
        ("half", [], "holds no finished data set"),
        ("appending", ["--seed", "4"], "an append that is not finished, with seed 0, this command says 4: give its command"),
        ("appending", ["--retry"], "an append that is not finished, with retry False, this command says True"),
    ],
)
def test_what_cannot_be_appended(prepare, options, sentence, source, tmp_path, capsys):
    out = tmp_path / "out"
    if prepare in ("make", "appending"):
        make(source, out)
    grow(source)
    if prepare in ("half", "appending"):
        with pytest.raises(Stop):
            make(source, out, append=prepare == "appending", on_progress=stop_after(3))
    before = contents(out) if prepare else {}
    assert main([str(source), "--out", str(out), "--append", *OPTIONS, *options]) == 2
    assert sentence in capsys.readouterr().err
    assert (contents(out) if out.exists() else {}) == before


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_for_all_or_none(labelled, source, tmp_path):
    videos, classes = load_sources(source)
    bare = [Video(video.path, source=video.source) for video in videos]
    first, more = ((videos[:3], classes), (bare, [])) if labelled else ((bare[:3], []), (videos, classes))
    make_shards(*first, tmp_path / "out", SETTINGS)
    before = contents(tmp_path / "out")
    there, here = ("labels", "no labels") if labelled else ("no labels", "labels")
    with pytest.raises(OutputError, match=f"out have {there} and those of this list {here}: choose a new folder"):
        make_shards(*more, tmp_path / "out", SETTINGS, append=True)
    assert contents(tmp_path / "out") == before


@pytest.mark.process
def test_what_is_there_already_is_told(source, tmp_path, capsys):
    out = tmp_path / "out"
    make(source, out)
    command = [str(source), "--out", str(out), "--append", *OPTIONS]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert f"7 of 7 videos of {source} are in {out} already (by their listed path), such as climb/0.mp4\n" in text
    assert f"nothing of {source} is new; {out} has 5 clips; rejected: 2." in text and "complete already" not in text
    grow(source)
    assert main(command) == 0
    assert f"7 of 11 videos of {source} are in {out} already" in capsys.readouterr().out
    write_video(tmp_path / "other" / "run" / "other.mp4", noise(5, seed=50))
    assert main([str(tmp_path / "other"), *command[1:]]) == 0
    assert f"0 of 1 videos of {tmp_path / 'other'} are in {out} already (by their listed path)\n" in capsys.readouterr().out


def test_parts_of_an_unknown_append_are_not_taken(source, tmp_path):
    out = tmp_path / "out"
    make(source, out)
    with pytest.raises(Stop):
        make(grow(source), out, append=True, on_progress=stop_after(3))
    (out / "making.json").unlink()
    with pytest.raises(OutputError, match="holds parts of shards but no making.json that says how they were made: delete them"):
        make(source, out, append=True)


@pytest.mark.parametrize("name, keep", [("clips.csv", None), ("rejected.csv", None), ("clips.csv", 2), ("rejected.csv", 2)])
def test_tables_that_are_lost_or_cut(name, keep, source, tmp_path):
    """Without them it is not known what is new."""
    out = tmp_path / "out"
    make(source, out)
    data = (out / name).read_bytes()
    (out / name).unlink()
    if keep:
        (out / name).write_bytes(b"".join(data.splitlines(True)[:keep]))
    before = contents(out)
    with pytest.raises(OutputError, match=f"{name} is missing or not as it was written: restore it"):
        make(grow(source), out, append=True)
    assert contents(out) == before and len(ShardSet(out)) == 5
