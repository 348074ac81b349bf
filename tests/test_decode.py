"""Which stream of a file is the video, and which of its frames a segment means: what a person sees in a player."""

import base64
import struct

import numpy as np
import pytest

from i2v.shard_tools.encode import EncodeSettings, encode_video
from i2v.shard_tools.source_video import open_video
from i2v.shard_tools.sources import Video
from tests.reference import ffmpeg, pictures
from tests.test_encode import SMALL, grey, reason, which, write_timed
from tests.videos import moving, solid, write_video

# ---- which stream ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A video of 50 frames, sound, and a larger picture, to be put together."""
    folder = tmp_path_factory.mktemp("parts")
    write_video(folder / "video.mp4", moving(50), options={"preset": "ultrafast", "g": "10"})
    write_video(folder / "video.avi", moving(50), "mpeg4")
    ffmpeg("-f", "lavfi", "-i", "sine=440", "-t", "2", folder / "sound.wav")
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=320x240", "-frames:v", "1", folder / "picture.jpg")
    return folder


DEFAULT = ["-disposition:v:0", "default", "-disposition:v:1", "0"]  # the thumbnail, against what is seen
THUMBNAILS = {
    "a.mp4": [],
    "b.mp4": DEFAULT,
    "a.mov": DEFAULT,
    "a.mkv": [],
    "b.mkv": DEFAULT,
    "a.avi": ["-c:v:0", "mpeg4"],
    "fragments.mp4": [*DEFAULT, "-movflags", "frag_keyframe+empty_moov"],
    "a.nut": DEFAULT,
    "cover.mp4": ["-disposition:v:0", "attached_pic"],
}


@pytest.mark.parametrize("name", THUMBNAILS)
def test_a_thumbnail_before_the_video_is_not_the_video(name, parts, tmp_path):
    source, path = parts / ("video.avi" if name == "a.avi" else "video.mp4"), tmp_path / name
    maps = ["-map", "0", "-map", "1", "-c", "copy"]
    ffmpeg("-i", parts / "picture.jpg", "-i", source, *maps, *THUMBNAILS[name], path)
    assert encode_video(path, SMALL).data == encode_video(source, SMALL).data
    cut = Video(str(path), start=1.0, end=1.4)
    assert encode_video(cut, SMALL).data == encode_video(cut._replace(path=str(source)), SMALL).data


def test_a_picture_attached_to_a_video_is_not_the_video(parts, tmp_path):
    attached = ["-attach", parts / "picture.jpg", "-metadata:s:t", "mimetype=image/jpeg"]
    ffmpeg("-i", parts / "video.mp4", *attached, "-c", "copy", "-disposition:v:0", "0", tmp_path / "a.mkv")
    assert encode_video(tmp_path / "a.mkv", SMALL).data == encode_video(parts / "video.mp4", SMALL).data


def flac_picture(jpeg: bytes) -> str:
    kind = b"image/jpeg"
    head = struct.pack(">II", 3, len(kind)) + kind + struct.pack(">IIIIII", 0, 320, 240, 24, 0, len(jpeg))
    return base64.b64encode(head + jpeg).decode()


COVERS = {
    "a.mp3": ["-c:v", "copy"],
    "a.m4a": ["-c:v", "copy", "-disposition:v", "attached_pic"],
    "a.flac": ["-c:v", "copy", "-disposition:v", "attached_pic"],
    "a.aiff": ["-c:v", "copy", "-write_id3v2", "1"],
    "a.wma": ["-c:v", "copy"],
    "a.mka": ["-c:a", "flac", "-c:v", "copy"],
    "a.mp4": ["-c:v", "copy"],
    "b.mp4": ["-c:v", "libx264", "-pix_fmt", "yuv420p"],
    "a.mov": ["-c:v", "png"],
    "a.mkv": ["-c:v", "copy"],
    "a.webm": ["-c:v", "libvpx-vp9", "-c:a", "libopus"],
    "a.avi": ["-c:v", "mpeg4"],
    "a.ts": ["-c:v", "mpeg2video"],
    "a.mpg": ["-c:v", "mpeg2video"],
    "a.flv": ["-c:v", "flv1", "-ar", "44100"],
}


@pytest.mark.parametrize("name", [*COVERS, "a.ogg", "attached.mka"])
def test_sound_with_a_cover_is_not_a_video_of_one_frame(name, parts, tmp_path):
    sound, picture, path = parts / "sound.wav", parts / "picture.jpg", tmp_path / name
    if name == "a.ogg":
        tag = f"METADATA_BLOCK_PICTURE={flac_picture(picture.read_bytes())}"
        ffmpeg("-i", sound, "-metadata", tag, "-c:a", "libvorbis", path)
    elif name == "attached.mka":
        ffmpeg("-i", sound, "-attach", picture, "-metadata:s:t", "mimetype=image/jpeg", "-c:a", "flac", path)
    else:
        ffmpeg("-i", sound, "-i", picture, "-map", "0", "-map", "1", *COVERS[name], path)
    with open_video(Video(str(path))) as (container, _):
        assert len(container.streams.video) == 1  # the cover is there
    assert reason(path) in ("it has no video stream", "it is sound with one picture, not a video")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_video_of_one_frame_without_sound_is_one(name, tmp_path):
    assert encode_video(write_video(tmp_path / name, moving(1)), SMALL).frames == 1


# ---- the clock -------------------------------------------------------------------------------------------------------

LATER = 0.68  # seconds from the beginning of the sound to that of the video: 17 frames
CLOCKS = {
    "a.mp4": [],
    "a.mov": [],
    "a.mkv": [],
    "a.flv": [],
    "a.webm": ["-c:v", "libvpx-vp9", "-crf", "10", "-c:a", "libopus"],
    "a.ts": ["-output_ts_offset", "36000"],
    "a.mpg": ["-c:v", "mpeg2video", "-q:v", "2", "-c:a", "mp2"],
    "a.asf": ["-c:v", "wmv2"],
    "late.mkv": ["-output_ts_offset", "3600"],
    "late.mp4": ["-output_ts_offset", "50"],
}


@pytest.fixture(scope="module")
def greys(tmp_path_factory):
    """50 frames in 2 seconds, told by their greys."""
    options = {"preset": "ultrafast", "qp": "4", "g": "10"}
    return write_timed(tmp_path_factory.mktemp("greys") / "a.mp4", [40 * i for i in range(50)], options=options)


def from_second(path, start) -> list[int]:
    """The frames that FFmpeg gives from a second of its clock on, told by their greys."""
    frames = pictures(path, 64, 48, start)[:, 20, 20].mean(axis=-1)
    return np.abs(frames[:, None] - [grey(i) for i in range(50)]).argmin(axis=1).tolist()


@pytest.mark.parametrize("name", CLOCKS)
def test_segments_are_cut_by_the_clock_of_players(name, greys, tmp_path):
    path, settings = tmp_path / name, EncodeSettings(short_side=48, crf=10)
    sound = ["-f", "lavfi", "-t", "2.68", "-i", "sine=440", "-map", "0", "-map", "1"]
    ffmpeg("-itsoffset", LATER, "-i", greys, *sound, "-c:v", "copy", "-fps_mode", "passthrough", *CLOCKS[name], path)
    whole = encode_video(path, settings)
    assert which(whole, 50) == list(range(50)) and whole.begin == pytest.approx(LATER, abs=0.05)
    for start, end in ((0, 1), (0.5, 0.9), (1.01, 1.5), (2.0, 2.31), (2.5, 9)):
        clip = encode_video(Video(str(path), start=start, end=end), settings)
        expected, after = from_second(path, start), from_second(path, end) if end < 9 else []
        assert which(clip, 50) == expected[: len(expected) - len(after)], (start, end)
        assert max(LATER - 0.04, start) <= clip.begin < max(LATER, start) + 0.05
    assert reason(Video(str(path), end=0.5)).startswith("the segment ends at second 0.5, but the first frame is shown at ")
    assert encode_video(path, EncodeSettings(short_side=48, max_seconds=0.4)).frames == 10  # of the video, not of the clock


def test_a_first_timestamp_that_is_damaged_does_not_move_the_clock(greys, tmp_path):
    """The sound begins at 0, and the pictures, it says, hours later."""
    path = tmp_path / "a.mkv"
    sound = ["-f", "lavfi", "-t", "2", "-i", "sine=440", "-map", "0", "-map", "1"]
    ffmpeg("-itsoffset", 7200, "-i", greys, *sound, "-c", "copy", path)
    assert encode_video(path, SMALL).begin == 0.0
    assert encode_video(Video(str(path), start=1.0, end=1.2), SMALL).frames == 5


# ---- segments within a frame -----------------------------------------------------------------------------------------

LONG = [0, 40, 80, 3000, 3040]  # milliseconds; of a recording of a screen, say


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize(
    "start, end, frame",
    [(0.05, 0.07, 1), (0.1, 2.9, 2), (2.5, 2.6, 2), (2.9, 3.01, 3), (3.01, 3.02, 3), (3.0405, None, 4), (3.0405, 9, 4)],
)
def test_a_segment_in_which_no_frame_begins_is_the_frame_on_the_screen(start, end, frame, name, tmp_path):
    clip = encode_video(Video(str(write_timed(tmp_path / name, LONG)), start=start, end=end), SMALL)
    assert which(clip, 5) == [frame]
    assert clip.begin == pytest.approx(max(start, LONG[frame] / 1000), abs=1e-6)


@pytest.mark.parametrize("fps", [10, 18, 25])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_a_segment_that_begins_before_the_video_ends_has_its_last_frame(name, fps, tmp_path):
    codec = "mpeg4" if name == "a.avi" else "libx264"
    path = write_video(tmp_path / name, solid((9, 99, 9), 12), codec, fps=fps)
    end = 12 / fps
    for start in (end - 0.01, end - 0.004):
        for until in (None, end, 99):
            clip = encode_video(Video(str(path), start=start, end=until), SMALL)
            assert clip.frames == 1 and clip.begin == pytest.approx(start)
    for start in (end + 0.0005, end + 0.004, end + 0.006, 9):
        begins, lasts = reason(Video(str(path), start=start)).split(", but ")
        assert float(begins.split()[-1]) >= float(lasts.split()[-3]) == round(end, 2)


def test_the_last_frame_lasts_as_long_as_the_file_says(tmp_path):
    """A GIF whose last picture is shown for three seconds."""
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in solid((9, 99, 9), 3)]
    for index, picture in enumerate(pictures):
        picture.putpixel((index, 0), (255, 255, 255))
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[100, 100, 3000])
    clip = encode_video(Video(str(tmp_path / "a.gif"), start=2.0, end=3.0), SMALL)
    assert clip.frames == 1 and clip.begin == 2.0
    assert reason(Video(str(tmp_path / "a.gif"), start=3.3)).endswith(" at second 3.3, but the video is 3.20 seconds long")
