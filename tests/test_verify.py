"""Verify: a good data set passes, and damage of every kind is found, named, and hides no other."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from i2v.pipelines.index import manifest_crc32
from i2v.pipelines.shards import ShardSet
from i2v.pipelines.store import ShardError
from i2v.shard_tools import verify as command
from i2v.shard_tools.checks import Problem, decode
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.sources import Video, load_sources
from i2v.shard_tools.verify import main, verify, write_bad
from tests.videos import moving, write_video

ROOT = Path(__file__).resolve().parent.parent
SHARD = "shard-000001.tar"
CLIP = 5  # the second clip of SHARD, of 4


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """11 videos in 3 classes, and in good/ the shards of them: 4 + 4 + 3 clips of 12 frames, a keyframe every 8."""
    root = tmp_path_factory.mktemp("verify")
    for n in range(11):
        write_video(root / "videos" / "abc"[n % 3] / f"{n}.mp4", moving(seed=n))
    make_shards(*load_sources(root / "videos"), root / "good", EncodeSettings(short_side=48), shard_clips=4)
    return root


@pytest.fixture
def data(videos, tmp_path):
    shutil.copytree(videos / "good", tmp_path / "data")
    return tmp_path / "data"


def flip(path, at, value=0x5A):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ value]))


def edit_index(path, clip, field, value):
    index = np.load(path)
    index[field][clip] = value
    np.save(path, index)


def edit_manifest(data, **changes):
    manifest = json.loads((data / "manifest.json").read_text()) | changes
    (data / "manifest.json").write_text(json.dumps(manifest | {"crc32": manifest_crc32(manifest)}))


def place(data, clip):
    """Where in its tar a clip's header, fragments and json begin, and where the next clip does."""
    shards = ShardSet(data)
    record = shards.clips[clip]
    first = int(record["first_fragment"])
    sizes = shards.fragments["size"][first : first + int(record["frames"])]
    start = int(record["offset"])
    ends = start + int(record["header_size"]) + np.cumsum(sizes)
    json_at = start + -(-(int(ends[-1]) - start) // 512) * 512
    return start, [start + int(record["header_size"]), *ends.tolist()], json_at, json_at + 1024


def found(data, decode=0):
    """{clip number or None: what} of the problems."""
    return {problem.clip: problem.what for problem in verify(data, decode)["problems"]}


@pytest.mark.process
def test_a_good_data_set_passes(videos, tmp_path, capsys):
    assert command.main([str(videos / "good"), "--decode", "all", "--workers", "1", "--json", str(tmp_path / "r.json")]) == 0
    assert "all is well" in capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    size = sum(path.stat().st_size for path in (videos / "good").glob("*.tar"))
    assert (report["problems"], report["clips"], report["decoded"], report["bytes"]) == ([], 11, 11, size)
    assert verify(videos / "good", 4)["decoded"] == 4


@pytest.mark.parametrize("label", [0, (0, 1)])
def test_a_data_set_whose_videos_were_all_rejected_passes(tmp_path, label, capsys):
    make_shards([Video("missing.mp4", label, "a", "missing.mp4")], ["a", "b"], tmp_path / "none", EncodeSettings())
    assert main([str(tmp_path / "none"), "--workers", "1"]) == 0
    assert "0 clips in 0 shards" in capsys.readouterr().out


def test_a_damaged_frame_is_named(data, capsys):
    _, fragments, _, _ = place(data, CLIP)
    flip(data / SHARD, fragments[7] + 20)
    assert found(data, None) == {CLIP: "damaged (checksum differs): frame 7"}
    assert command.main([str(data), "--decode", "0"]) == 1
    shards = ShardSet(data)
    shown = capsys.readouterr().out
    assert shards.key(CLIP) in shown and shards.metadata(CLIP)["source"] in shown and f"restore {SHARD}" in shown


def test_a_damaged_header_and_json_and_tar_header_are_named(data):
    start, _, _json_at, _end = place(data, CLIP)
    for _clip, at in ((4, place(data, 4)[0] + 8), (5, start - 512), (6, place(data, 6)[2]), (7, place(data, 7)[2] + 512)):
        flip(data / SHARD, at)
    problems = found(data)
    assert set(problems) == {4, 5, 6, 7}
    assert "the header" in problems[4] and "tar header of 000001-000001.mp4" in problems[5]
    assert "tar header of 000001-000002.json" in problems[6] and problems[7] == "its json is damaged"


@pytest.mark.parametrize(
    "old, new, what",
    [(b'"frames": 12', b'"frames": 13', "says frames 13, the index 12"), (b'"class": "', b'"class": "x', "class")],
)
def test_a_json_that_disagrees_is_named(data, old, new, what):
    _, _, json_at, _ = place(data, CLIP)
    content = bytearray((data / SHARD).read_bytes())
    at = content.index(old, json_at)
    content[at : at + len(new)] = new
    (data / SHARD).write_bytes(content)
    problems = found(data)
    assert set(problems) == {CLIP} and what in problems[CLIP]


def test_a_member_of_another_name_or_size_is_named(data):
    for clip, name, size in ((5, "000001-000009.mp4", None), (6, "000001-000002.mp4", 100)):
        start, fragments, _, _ = place(data, clip)
        info = tarfile.TarInfo(name)
        info.size = size or fragments[-1] - start
        with open(data / SHARD, "r+b") as file:
            file.seek(start - 512)
            file.write(info.tobuf(tarfile.USTAR_FORMAT))
    problems = found(data)
    assert set(problems) == {5, 6} and problems[5] == "the tar has 000001-000009.mp4 where 000001-000001.mp4 should be"
    assert problems[6].startswith("the tar says 100 bytes")


def test_a_truncated_shard_loses_its_last_clips_only(data):
    _start, fragments, _, _ = place(data, 6)
    with open(data / SHARD, "r+b") as file:
        file.truncate(fragments[3])
    problems = found(data)
    assert set(problems) == {None, 6, 7} == set(found(data, None))
    assert "bytes, the manifest says" in problems[None] and "ends" in problems[6] and "ends" in problems[7]


@pytest.mark.process
def test_a_missing_shard_is_one_of_several_problems_and_its_videos_are_listed(data, videos, tmp_path, capsys):
    (data / SHARD).unlink()
    flip(data / "shard-000002.tar", 512 + 8)  # in the first clip's header
    assert set(found(data)) == {4, 5, 6, 7, 8}
    bad = tmp_path / "bad.csv"
    assert command.main([str(data), "--workers", "1", "--bad", str(bad)]) == 1
    assert "5 source videos" in capsys.readouterr().out
    rows = list(csv.DictReader(open(data / "clips.csv")))[4:9]
    listed, classes = load_sources(bad, videos / "videos", data / "manifest.json")
    assert [video.source for video in listed] == [row["path"] for row in rows] and classes == ["a", "b", "c"]
    assert [video.class_name for video in listed] == [row["class"] for row in rows]
    assert all(Path(video.path).exists() for video in listed)


def test_members_of_tars_are_said_to_be_in_no_list(tmp_path):
    problems = [Problem("x", "y", clip, source={"path": path}) for clip, path in enumerate(["a.mp4", "t.tar/b.mp4"])]
    assert "2 source videos; 1 of them are members of tars, such as t.tar/b.mp4" in write_bad(tmp_path / "bad.csv", problems)
    assert write_bad(tmp_path / "bad.csv", problems[:1]).endswith("1 source videos")


@pytest.mark.parametrize("flag", ["--bad", "--json"])
def test_a_full_disk_is_told_with_the_file(data, flag, capsys):
    assert main([str(data), "--workers", "1", "--decode", "0", flag, "/dev/full"]) == 2
    assert "verify: /dev/full cannot be written (No space left on device)" in capsys.readouterr().err


def test_swapped_shards_are_noticed(data):
    (data / SHARD).rename(data / "x")
    (data / "shard-000000.tar").rename(data / SHARD)
    (data / "x").rename(data / "shard-000000.tar")
    assert set(range(8)) <= set(found(data))


def test_bytes_that_no_clip_needs_are_told_apart(data):
    flip(data / SHARD, (data / SHARD).stat().st_size - 1)
    (problem,) = verify(data, 0)["problems"]
    assert "every clip in it is as it was written" in problem.what and "training can use it" in problem.remedy


@pytest.mark.parametrize(
    "field, value, what",
    [
        ("label", 99, "its label"),
        ("label", -5, "its label"),
        ("offset", 1000, "its offset"),
        ("offset", 1 << 60, "its offset"),
        ("width", 0, "its size"),
        ("fps", np.nan, "its fps"),
        ("frames", 0, "its number"),
        ("frames", 1 << 30, "its number"),
        ("shard", 7, "its shard"),
        ("header_crc", 1, "header"),
        ("header_size", 1 << 31, "its header size"),
        ("height", 64, "height"),
    ],
)
def test_a_damaged_index_is_named_and_the_shard_is_not_blamed(data, field, value, what):
    edit_index(data / "clips.npy", CLIP, field, value)
    problems = verify(data, 0)["problems"]
    assert what in {problem.clip: problem.what for problem in problems}[CLIP]
    assert "clips.npy is damaged (checksum differs)" in [problem.what for problem in problems]
    assert {problem.clip for problem in problems} <= {None, CLIP - 1, CLIP}
    assert all("index" in problem.remedy or ".npy" in problem.remedy for problem in problems)


def test_a_wrong_label_is_noticed(data):
    edit_index(data / "clips.npy", CLIP, "label", (ShardSet(data).clips["label"][CLIP] + 1) % 3)
    assert "its json says label" in found(data)[CLIP]


@pytest.mark.parametrize("field, value", [("size", 10), ("size", 1 << 31), ("crc", 5), ("time", -1.0), ("time", np.nan)])
def test_damaged_fragments_are_named(data, field, value):
    first = int(ShardSet(data).clips["first_fragment"][CLIP])
    edit_index(data / "fragments.npy", first + 3, field, value)
    problems = found(data)
    assert set(problems) == {None, CLIP} and problems[None] == "fragments.npy is damaged (checksum differs)"


@pytest.mark.parametrize("name", ["clips.npy", "fragments.npy"])
def test_without_an_index_the_shards_are_still_read(data, name):
    (data / name).unlink()
    flip(data / SHARD, 700)
    problems = [(problem.what, problem.shard) for problem in verify(data, 0)["problems"]]
    assert any(what.startswith(f"{name} cannot be used") for what, _ in problems)
    assert any("crc32" in what and shard == SHARD for what, shard in problems)


def test_an_edited_manifest_and_table_are_noticed(data):
    text = (data / "manifest.json").read_text()
    (data / "manifest.json").write_text(text.replace('"short_side": 48', '"short_side": 64', 1))
    rows = (data / "clips.csv").read_text().splitlines()
    (data / "clips.csv").write_text("\n".join(rows[:5] + rows[6:]) + "\n")
    problems = [problem.what for problem in verify(data, 0)["problems"]]
    assert len(problems) == 2 and "manifest.json" in problems[0]
    assert "clips.csv" in problems[1] and "1 clips, such as 000001-000000" in problems[1]


def test_clips_that_do_not_play_as_the_manifest_says_are_found_by_decoding(data):
    edit_manifest(data, gop=4)
    assert found(data, 0) == {}
    assert found(data, None) == dict.fromkeys(range(11), "frame 4 is not a keyframe, one every 4 is expected")
    edit_manifest(data, gop=8, codec="h264")
    assert found(data, 2).popitem()[1] == "it is vp9, the manifest says h264"


def test_what_is_decoded_is_counted_and_measured(data):
    shards = ShardSet(data)
    clip, whole = shards.clips[CLIP].copy(), shards.read_whole(CLIP)
    assert decode(whole, clip, "vp9", 8) is None
    said = {"frames": "it decodes to 12 frames, the index says 5", "width": "frame 0 is 64x48, the index says 5x48"}
    for field, what in said.items():
        other = clip.copy()
        other[field] = 5
        assert decode(whole, other, "vp9", 8) == what


def test_damage_from_before_the_checksums_is_found_by_decoding(data):
    _, fragments, _, _ = place(data, CLIP)
    content = bytearray((data / SHARD).read_bytes())
    content[fragments[0] + 120 : fragments[1]] = bytes(fragments[1] - fragments[0] - 120)  # the first frame
    (data / SHARD).write_bytes(content)
    shards = ShardSet(data)
    manifest = shards.manifest
    manifest["shards"][1]["crc32"] = zlib.crc32(content)
    edit_index(
        data / "fragments.npy",
        int(shards.clips["first_fragment"][CLIP]),
        "crc",
        zlib.crc32(content[fragments[0] : fragments[1]]),
    )
    manifest["index_crc32"]["fragments"] = zlib.crc32((data / "fragments.npy").read_bytes())
    edit_manifest(data, **manifest)
    assert found(data, 0) == {}
    assert set(found(data, None)) == {CLIP}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["shard-000000.tar", SHARD, "shard-000002.tar", "clips.npy", "fragments.npy", "manifest.json"]),
    where=st.floats(0, 1, exclude_max=True),
    value=st.integers(1, 255),
    cut=st.booleans(),
)
def test_no_byte_can_change_unnoticed(data, name, where, value, cut):
    content = (data / name).read_bytes()
    at = int(where * len(content))
    if cut:
        (data / name).write_bytes(content[:at])
    else:
        flip(data / name, at, value)
    try:
        # a manifest may differ in white space, or lack its checksum
        assert verify(data, 0)["problems"] or name == "manifest.json"
    except ShardError:
        assert name == "manifest.json"
    finally:
        (data / name).write_bytes(content)


@pytest.mark.process
def test_processes_find_the_same(data, tmp_path):
    for name in ("shard-000000.tar", SHARD):
        flip(data / name, 700)
    options = ["--workers", "2", "--json", str(tmp_path / "r.json")]
    tool = [sys.executable, str(ROOT / "shard_tools" / "verify.py"), str(data), *options]
    done = subprocess.run(tool, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stderr, done.stderr
    problems = verify(data, 100)["problems"]
    assert json.loads((tmp_path / "r.json").read_text())["problems"] == list(map(asdict, problems)) != []


def test_wrong_use_ends_with_2(tmp_path):
    for arguments in ([str(tmp_path)], [str(tmp_path), "--decode", "some"], []):
        with pytest.raises(SystemExit) as stop:
            command.main(arguments)
        assert stop.value.code == 2


SCRIPTS = (
    "shard_tools/make_shards.py",
    *(f"shard_tools/{name}.py" for name in ("verify", "describe", "relabel")),
    "pipelines/preview.py",
)


@pytest.mark.process
@pytest.mark.parametrize("path", SCRIPTS)
def test_every_tool_runs_as_a_file_where_other_packages_have_our_names(path, tmp_path):
    for name in ("pipelines", "shard_tools"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('another package')")
    there = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path)}}
    done = subprocess.run([sys.executable, str(ROOT / path), "--help"], capture_output=True, text=True, **there)
    assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr


def test_a_url_is_refused_with_the_remedy(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["s3://bucket/k400"])
    assert stopped.value.code == 2 and "copy the data set to this machine" in capsys.readouterr().err
