"""Decode clips with FFmpeg, through PyAV, in threads of the loader: any codec of the shards, without a GPU.

The same pixels as DALI's CPU decoder makes of VP9 and MJPEG, bit by bit: FFmpeg's conversion to RGB with the flags that
DALI gives it (BT.601, the range that the stream says, chroma interpolated). Planar RGB takes a third of the time that
packed RGB does there. PyAV lets go of the interpreter lock while it decodes and converts.
"""

from __future__ import annotations

import threading

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter

from i2v.pipelines.index import fragment_sizes

# What the sample entry of an mp4 holds; the two that need it begin decoding with the box's contents.
CONFIGURATION = {"h264": b"avcC", "hevc": b"hvcC", "vp9": b"vpcC", "mjpeg": b"esds"}
AS_DALI = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
WHOLE = (slice(None), slice(None))
_mine = threading.local()  # a converter for each thread: making one takes longer than using it


class DecodeError(ValueError):
    """A decoder does not take a clip, or makes something else of it than a picture per fragment."""


def decode_clip(data: np.ndarray, frames: np.ndarray, part: tuple[slice, slice] = WHOLE) -> np.ndarray:
    """A slice of a clip, as ShardSet.read gives it, and positions in it -> (N, H, W, 3) uint8, RGB.

    data: (bytes,) uint8; frames: (N,) in any order, repeats allowed; part: which rows and columns. Raises DecodeError.
    """
    try:
        header, sizes = fragment_sizes(bytes(data))
        decoder = _decoder(bytes(data[:header]))
        pictures = _pictures(decoder, data, header, sizes, set(frames.tolist()))
        return _packed([pictures[frame] for frame in frames.tolist()], part)
    except (av.FFmpegError, ValueError) as error:
        raise DecodeError(str(error)) from error


def _decoder(header: bytes):
    codec, at = next(((codec, at) for codec, box in CONFIGURATION.items() if (at := header.find(box)) > 0), ("none", 0))
    decoder = av.CodecContext.create(codec, "r")
    decoder.thread_count = 1  # clips are decoded side by side
    decoder.options = {"err_detect": "explode"}
    if codec in ("h264", "hevc"):
        decoder.extradata = header[at + 4 : at - 4 + int.from_bytes(header[at - 4 : at], "big")]
    return decoder


def _pictures(decoder, data: np.ndarray, at: int, sizes: list[int], wanted: set[int]) -> dict[int, av.VideoFrame]:
    """The wanted pictures by their positions, planar RGB; at: where the first fragment begins."""
    pictures, decoded = {}, 0

    def keep(frames) -> int:
        for number, frame in enumerate(frames, decoded):
            if frame.is_corrupt:
                raise DecodeError(f"picture {number} comes out damaged")
            if number in wanted:
                pictures[number] = _planar(frame)
        return len(frames)

    for size in sizes:
        index = int.from_bytes(data[at : at + 4].tobytes(), "big")  # bytes of moof; then 8 of mdat's header
        decoded += keep(decoder.decode(av.Packet(data[at + index + 8 : at + size].tobytes())))
        at += size
    decoded += keep(decoder.decode(None))
    if decoded != len(sizes):
        raise DecodeError(f"{len(sizes)} fragments give {decoded} pictures")
    return pictures


def rgb(frame: av.VideoFrame) -> np.ndarray:
    """A decoded frame -> (H, W, 3) uint8, as decode_clip makes it of a frame that is stored."""
    return _packed([_planar(frame)], WHOLE)[0]


def _planar(frame: av.VideoFrame) -> av.VideoFrame:
    if not hasattr(_mine, "converter"):
        _mine.converter = VideoReformatter()
    return _mine.converter.reformat(frame, format="gbrp", interpolation=AS_DALI, threads=1)


def _packed(pictures: list[av.VideoFrame], part: tuple[slice, slice]) -> np.ndarray:
    """Planar pictures -> (N, H, W, 3) uint8. Few calls for all planes, as each lets go of the interpreter lock."""
    green, blue, red = zip(*(picture.planes for picture in pictures))
    planes = torch.stack([torch.from_numpy(_rows(plane)[part]) for plane in (*red, *green, *blue)]).numpy()
    planes = planes.reshape(3, len(pictures), *planes.shape[1:])
    video = np.empty((*planes.shape[1:], 3), np.uint8)
    for channel, plane in enumerate(planes):
        video[..., channel] = plane
    return video


def _rows(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """(H, W) uint8"""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
