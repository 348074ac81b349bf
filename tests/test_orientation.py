"""Every orientation that a file can have is stored as FFmpeg's autorotation shows it."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from i2v.shard_tools.encode import EncodeSettings, encode_video
from i2v.shard_tools.sources import Video
from tests.reference import ffmpeg, pictures
from tests.videos import decode, moving, write_video

SETTINGS = EncodeSettings(short_side=48, crf=10)
LYING = moving(3, 48, 96)
MATRICES = {  # a b c d: (x, y) is shown at (a x + c y, b x + d y)
    "as it is": (1, 0, 0, 1),
    "left to right": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "half a turn": (-1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "clockwise": (0, 1, -1, 0),
    "counter-clockwise": (0, -1, 1, 0),
    "the other diagonal": (0, -1, -1, 0),
    "enlarged": (0, 3, -3, 0),
    "a little askew": (0.003, 1, 0.99, 0.003),
    "zeros": (0, 0, 0, 0),
    "singular": (-1, 0, 0, 0),
    "singular too": (0, 0, 0, -1),
    "nearly a turn": (0, 1, 0, 0),
}
FORMATS = {
    "a.mp4": ("libx264", {"qp": "6", "preset": "ultrafast"}),
    "a.mov": ("libx264", {"qp": "6", "preset": "ultrafast"}),
    "b.mp4": ("libx265", {"x265-params": "log-level=none:qp=6"}),
    "b.mov": ("mjpeg", {"qmin": "2", "qmax": "2"}),
}


def show_as(path: Path, matrix) -> Path:
    """Write the display matrix into the file's (only) track."""
    a, b, c, d = (round(65536 * value) for value in matrix)
    matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40
    path.write_bytes(data[:at] + matrix + data[at + 36 :])
    return path


def compared(path):
    """What is stored of the video, and the largest mean difference of one of its frames to FFmpeg's picture."""
    clip = encode_video(path, SETTINGS)
    stored, expected = decode(io.BytesIO(clip.data)).astype(int), pictures(path, clip.width, clip.height)
    return clip, np.abs(stored - expected).mean(axis=(1, 2, 3)).max()


@pytest.mark.parametrize("pixel_shape", [None, Fraction(3, 2)], ids=["square", "wide"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_eight_orientations(name, pixel_shape, tmp_path):
    codec, options = FORMATS[name]
    source = write_video(tmp_path / name, LYING, codec, options=options, pixel_shape=pixel_shape)
    long_side = 144 if pixel_shape else 96
    for which, (a, b, c, d) in MATRICES.items():
        clip, difference = compared(show_as(source, (a, b, c, d)))
        assert difference < 3, which
        upright = abs(b * c) > abs(a * d)
        assert (clip.width, clip.height) == ((48, long_side) if upright else (long_side, 48)), which


@pytest.mark.parametrize("which", ["left to right", "transposed", "clockwise", "zeros"])
def test_in_matroska_and_mpeg_ts(which, tmp_path):
    source = show_as(write_video(tmp_path / "a.mp4", LYING, options={"qp": "6"}), MATRICES[which])
    for name in ("a.mkv", "a.ts"):  # Matroska keeps the orientation, MPEG-TS knows none
        ffmpeg("-i", source, "-c", "copy", tmp_path / name)
        assert compared(tmp_path / name)[1] < 3, name


@pytest.mark.parametrize("turn", ["rotate=90", "rotate=0:flip=horizontal", "rotate=270:flip=vertical"])
def test_an_orientation_among_the_pictures_holds_until_the_next(turn, tmp_path):
    """H.264 says it in the stream, before a keyframe; a segment that begins later is turned as well."""
    source = write_video(tmp_path / "a.mp4", moving(100, 48, 96), options={"qp": "6", "g": "20", "preset": "ultrafast"})
    turned = tmp_path / "b.mp4"
    ffmpeg("-i", source, "-c", "copy", "-bsf:v", f"h264_metadata=display_orientation=insert:{turn}", turned)
    assert compared(turned)[1] < 3
    clip = encode_video(Video(str(turned), start=3.1, end=3.3), SETTINGS)
    whole = pictures(turned, clip.width, clip.height)
    assert np.abs(decode(io.BytesIO(clip.data)).astype(int) - whole[78:83]).mean() < 3


@pytest.mark.parametrize("number", range(1, 9))
def test_the_orientation_of_jpegs(number, tmp_path):
    """EXIF, a kind of side data that PyAV has no name for."""
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuvj420p"
        for index, rgb in enumerate(LYING):
            exif, jpeg = Image.Exif(), io.BytesIO()
            exif[0x112] = number
            Image.fromarray(rgb).save(jpeg, "jpeg", exif=exif, quality=95)
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    assert compared(tmp_path / "a.avi")[1] < 3
