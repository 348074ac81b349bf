"""FFmpeg itself, as imageio-ffmpeg brings it: what its pictures are is what ours must be."""

from __future__ import annotations

import subprocess

import imageio_ffmpeg
import numpy as np


def ffmpeg(*arguments) -> bytes:
    """Run FFmpeg. Returns what it wrote to standard output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def pictures(path, width: int, height: int, start: float | None = None) -> np.ndarray:
    """FFmpeg's own frames of a video, autorotated, each once: (T, height, width, 3) uint8.

    start: from this second on, of a video with sound.
    """
    options = ["-vf", f"scale={width}:{height}:flags=bicubic", "-fps_mode", "passthrough"]
    if start is not None:  # after -i, -ss is exact for every container, by the clock of the streams that are used
        options = ["-map", "0:a", "-f", "null", "-", "-map", "0:v", "-ss", start, *options]
    raw = ffmpeg("-i", path, *options, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
