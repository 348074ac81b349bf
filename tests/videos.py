"""Tiny videos for tests, written with PyAV."""

from __future__ import annotations

import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}  # weights of red and blue
COLORSPACE = {"bt601": 5, "bt709": 1}  # AVColorSpace
REAL_VIDEOS = Path(__file__).resolve().parents[2] / "shared" / "videos"


def write_video(
    path,
    frames: np.ndarray,
    codec: str = "libx264",
    fps=25,
    *,
    matrix: str = "bt601",
    full_range: bool = False,
    tagged: bool = True,
    pixel_shape=None,
    options: dict | None = None,
) -> Path:
    """frames: (T, H, W, 3) uint8 RGB, H and W even. YUV is of this matrix and range, and says so if `tagged`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if pixel_shape:
            stream.codec_context.sample_aspect_ratio = pixel_shape
        if tagged:
            stream.codec_context.colorspace = COLORSPACE[matrix]
            stream.codec_context.color_range = 2 if full_range else 1
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(_yuv420(rgb, matrix, full_range), stream.pix_fmt)
            if tagged:
                frame.colorspace, frame.color_range = COLORSPACE[matrix], 2 if full_range else 1
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def moving(frames: int = 12, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A bright square on a random gradient, moving: (T, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(40, 200, (2, 2, 3))
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    ground = (1 - y) * ((1 - x) * corners[0, 0] + x * corners[0, 1]) + y * ((1 - x) * corners[1, 0] + x * corners[1, 1])
    video = np.repeat(ground[None], frames, axis=0).astype(np.uint8)
    side = min(height, width) // 3
    for t in range(frames):
        top, left = (2 * t) % (height - side), (3 * t) % (width - side)
        video[t, top : top + side, left : left + side] = rng.integers(0, 256, 3) if t == 0 else video[0, 0, 0] + 60
    return video


def solid(color, frames: int = 3, height: int = 48, width: int = 64) -> np.ndarray:
    """One colour everywhere: (T, H, W, 3) uint8."""
    return np.broadcast_to(np.uint8(color), (frames, height, width, 3)).copy()


def noise(frames: int = 12, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Every frame a scene cut: (T, H, W, 3) uint8."""
    blocks = np.random.default_rng(seed).integers(0, 256, (frames, height // 8, width // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


def panned(frames: int = 30, height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    """A random texture that moves four pixels per frame, so that no frame is like another: (T, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    wide = rng.integers(0, 256, (height // 8, (width + 4 * frames) // 8 + 1, 3), dtype=np.uint8)
    wide = wide.repeat(8, axis=0).repeat(8, axis=1)
    return np.stack([wide[:, 4 * t : 4 * t + width] for t in range(frames)])


def ffmpeg(*arguments, frames: np.ndarray | None = None) -> Path:
    """Run FFmpeg's own program; the last argument is the file that it writes. `frames`, at 25 per second, are its input."""
    source = []
    if frames is not None:
        size = f"{frames.shape[2]}x{frames.shape[1]}"
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "25", "-i", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, *map(str, arguments)]
    subprocess.run(command, input=None if frames is None else frames.tobytes(), check=True, capture_output=True)
    return Path(arguments[-1])


def write_audio(path, seconds: float = 0.2) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, int(seconds * 16000), 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Path(path)


def decode(data) -> np.ndarray:
    """Frames of an mp4 given as path or file object: (T, H, W, 3) uint8 RGB."""
    with av.open(data) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _yuv420(rgb: np.ndarray, matrix: str, full_range: bool) -> np.ndarray:
    red, blue = LUMA[matrix]
    r, g, b = np.moveaxis(rgb.astype(np.float64), -1, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    chroma = [(b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)]
    height, width = y.shape
    chroma = [c.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for c in chroma]
    luma = y if full_range else y * 219 / 255 + 16
    planes = [luma, *(c * (1 if full_range else 224 / 255) + 128 for c in chroma)]
    flat = np.concatenate([plane.ravel() for plane in planes])
    return np.clip(np.rint(flat), 0, 255).astype(np.uint8).reshape(height * 3 // 2, width)
