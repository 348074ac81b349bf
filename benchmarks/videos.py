"""The videos of the data benchmarks: H.264 with an encoder's default settings, 340x256, 30 frames per second, as Kinetics.

Made once, in a cache folder: from real videos if there are any, which are cut, or played to and fro, until they have
the wanted length; else from moving shapes, which are easier to decode than what a camera sees.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import av

from benchmarks.moving_shapes import CLASSES, render_clip
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.sources import load_sources

WIDTH, HEIGHT, FPS = 340, 256, 30
LEAST_FRAMES, LEAST_SIDE = 32, 224  # of a real video that is used
DRAWN_FRAMES = 60  # of a video of moving shapes, before it is played to and fro


def make_videos(cache: Path, count: int, seconds: int, material: Path | None) -> tuple[Path, dict]:
    """`count` videos in a folder of class folders below `cache`, and what they are, for the result.

    material: a folder of real videos; what cannot be decoded, is short or is small is left out. Raises ValueError if
    nothing is left.
    """
    sources = _usable(material) if material else []
    made_from = "real videos" if sources else "moving shapes"
    facts = {"videos": count, "seconds": seconds, "size": f"{WIDTH}x{HEIGHT}", "fps": FPS, "codec": "h264"}
    facts |= {"made_from": made_from} | ({"of": len(sources)} if sources else {})
    names = "".join(f"{path.name} {path.stat().st_size}" for path in sources)
    folder = cache / f"{made_from.split()[0]}-{count}x{seconds}s-{hashlib.sha256(names.encode()).hexdigest()[:8]}" / "videos"
    if not folder.exists():
        partial = folder.with_name("videos.partial")
        for index in range(count):
            source, again = (sources[index % len(sources)], index // len(sources)) if sources else (None, 0)
            frames = _decoded(source) if source else _drawn(index)
            path = partial / "all" / f"{index:04d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, frames, seconds * FPS, first=23 * again)
        partial.rename(folder)
    facts["bytes"] = sum(path.stat().st_size for path in folder.rglob("*.mp4"))
    return folder, facts


def shard_videos(folder: Path, settings: EncodeSettings) -> Path:
    """Shards of a folder's videos, beside it; nothing to do if they are there."""
    videos, classes = load_sources(folder)
    out = folder.parent / f"{settings.codec}-gop{settings.gop}"
    make_shards(videos, classes, out, settings, workers=len(os.sched_getaffinity(0)))
    return out


def _usable(material: Path) -> list[Path]:
    """The files of a folder that are videos, long and large enough."""
    if not material.is_dir():
        raise ValueError(f"{material} is not a folder: give one with videos in it, or none.")
    paths = sorted(path for path in material.iterdir() if path.is_file() and _is_usable(path))
    if not paths:
        least = f"{LEAST_FRAMES} frames and {LEAST_SIDE} pixels"
        raise ValueError(f"{material} holds no video of {least}: give another folder, or none.")
    return paths


def _is_usable(path: Path) -> bool:
    try:
        with av.open(str(path)) as container:
            frames = [min(frame.width, frame.height) for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError):
        return False
    return len(frames) >= LEAST_FRAMES and min(frames) >= LEAST_SIDE


def _decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return [frame.reformat(WIDTH, HEIGHT, "yuv420p") for frame in container.decode(video=0)]


def _drawn(seed: int) -> list[av.VideoFrame]:
    images = render_clip(seed, CLASSES[seed % len(CLASSES)], DRAWN_FRAMES, (HEIGHT, WIDTH))
    return [av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p") for image in images]


def _write(path: Path, frames: list[av.VideoFrame], count: int, first: int) -> None:
    """`count` frames from `first` on, to and fro."""
    there_and_back = frames + frames[-2:0:-1]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23"})  # its default, instead of a bit rate
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        for index in range(count):
            frame = there_and_back[(first + index) % len(there_and_back)]
            frame.pts, frame.time_base, frame.pict_type = index, 1 / stream.codec_context.framerate, 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
