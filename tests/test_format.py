"""docs/format.md is true: its tables are the index, and its programs read shards with nothing of ours."""

import importlib.util
import io
import json
import re
from pathlib import Path

import av
import numpy as np
import pytest

from i2v.pipelines.index import CLIP, FORMAT, FRAGMENT, VERSION
from i2v.pipelines.shards import ShardSet

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(program, shapes):
    """The names that a program of the page leaves behind."""
    left = {}
    exec(compile(program.replace("shards/train", str(shapes / "vp9")), "docs/format.md", "exec"), left)
    return left


def whole(shards, clip):
    """All frames of a stored clip, (frames, H, W, 3)."""
    with av.open(io.BytesIO(shards.read_whole(clip))) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


@pytest.mark.parametrize("kind", [CLIP, FRAGMENT], ids=["clips", "fragments"])
def test_the_tables_are_the_index(kind):
    rows = re.findall(r"^\| `(\w+)` \| `(<\w\d)` \|", PAGE, re.MULTILINE)
    assert [row for row in rows if row[0] in kind.names] == [(name, kind[name].str) for name in kind.names]
    assert len(rows) == len(CLIP.names) + len(FRAGMENT.names)


def test_what_the_page_says_of_manifest_and_json(shapes):
    manifest = json.loads((shapes / "vp9" / "manifest.json").read_text())
    said = re.search(r"\*\*manifest.json\*\*.*?\n\n", PAGE, re.DOTALL)[0]
    named = set(re.findall(r"`(\w+)`", said))
    assert named <= manifest.keys() and (manifest["format"], manifest["version"]) == (FORMAT, VERSION)
    said = re.search(r"\*\*The JSON\*\*.*?\n\n", PAGE, re.DOTALL)[0]
    named = set(re.findall(r"`(\w+)`", said)) - {"start", "end", "begin"}
    assert named <= ShardSet(shapes / "vp9").metadata(0).keys()


def test_webdataset_and_pyav_read_every_video(shapes):
    assert "mp4" in run(PROGRAMS[0], shapes)["sample"]  # the program's own assertions hold for all of them


@pytest.mark.parametrize("number, wanted", [(0, 0), (3, 13), (8, 19)])
def test_a_frame_is_read_from_its_group_alone(shapes, number, wanted):
    program = PROGRAMS[1].replace("3, 13", f"{number}, {wanted}")
    left = run(program, shapes)
    shards = ShardSet(shapes / "vp9")
    assert np.array_equal(left["frame"], whole(shards, number)[wanted])
    assert len(left["video"]) < len(shards.read_whole(number))


@pytest.mark.skipif(importlib.util.find_spec("torchcodec") is None, reason="torchcodec is not installed")
def test_torchcodec_reads_them(shapes):
    from torchcodec.decoders import VideoDecoder

    shards = ShardSet(shapes / "vp9")
    frames = VideoDecoder(shards.read_whole(3))[:]
    assert frames.shape == (len(whole(shards, 3)), 3, *whole(shards, 3).shape[1:3])
