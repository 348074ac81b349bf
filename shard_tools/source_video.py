"""Open a source video wherever it lies: a local file, an object in a store (any fsspec URL), a member of a tar.

A fault of one file is a RejectedVideo, and the run goes on. A fault of the store (no connection, no answer, no permission,
no such service) says nothing about the video: after some tries it is a StoreError, which ends a run that can be continued.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from functools import partial

import av

from i2v.pipelines.store import Store, StoreError, is_url, open_part
from i2v.shard_tools.completeness import Read, what_is_missing
from i2v.shard_tools.sources import Video

BUFFER = 1 << 18  # bytes that FFmpeg asks for at once
LARGEST_PICTURE = 1 << 26  # pixels, 8192 x 8192: a decoder keeps up to 17 pictures
STORE_ERRORS = {  # of a mounted file system or of this machine, not of the file
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
    errno.ENODEV,
}


class RejectedVideo(Exception):
    """A video that cannot become a clip. `reason` is one short human sentence without a full stop."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@contextlib.contextmanager
def open_video(video: Video) -> Iterator[tuple[av.container.InputContainer, int]]:
    """The video opened by PyAV, and its size in bytes. Raises RejectedVideo or StoreError."""
    if not is_url(video.path) and not video.offset and video.size is None:
        path = os.path.abspath(video.path)  # never taken for a URL by FFmpeg
        size = _check_file(path)
        # Only local files: a playlist cannot make the decoder fetch anything from elsewhere.
        with _store_errors(path), _open(path, "file", _form(path)) as container:
            yield container, size
        return
    with _open_part(video) as file:

        def read(first: int, count: int) -> bytes:
            file.seek(first)
            return file.read(count)

        _check_complete(read, file.raw.size)
        file.seek(0)
        with _open(file, "none", _form(video.path)) as container:
            yield container, file.raw.size


def describe(error: Exception) -> str:
    """What a library's error says, without its type."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def _form(path: str) -> str | None:
    """The format that FFmpeg cannot tell by content: pictures one after the other begin as one picture does."""
    return "mjpeg" if path.lower().endswith((".mjpg", ".mjpeg")) else None


def _open(file, protocols: str, form: str | None):
    options = {"protocol_whitelist": protocols, "max_pixels": str(LARGEST_PICTURE)}
    try:
        container = av.open(file, format=form, options=options, metadata_errors="replace", buffer_size=BUFFER)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise RejectedVideo(f"it cannot be opened as a video ({describe(error)})") from error
    if container.format.name in ("concat", "hls", "dash"):
        raise RejectedVideo("it is a list of other files")
    if container.format.name.endswith("_pipe") or container.format.name == "image2":
        raise RejectedVideo("it is a picture")
    return container


def _check_file(path: str) -> int:
    if os.path.isdir(path):
        raise RejectedVideo("it is a folder")
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe, whose opening would wait for who writes to it, or a device
        raise RejectedVideo("it is a pipe or a device, not a file")
    try:
        with _store_errors(path), open(path, "rb") as file:
            size = os.path.getsize(path)
            _check_complete(lambda first, count: os.pread(file.fileno(), count, first), size)
    except FileNotFoundError:
        raise RejectedVideo("the file does not exist") from None
    except OSError as error:
        raise RejectedVideo(f"the file cannot be read ({error.strerror})") from error
    return size


def _check_complete(read: Read, size: int) -> None:
    reason = what_is_missing(read, size)
    if reason is not None:
        raise RejectedVideo(reason)


@contextlib.contextmanager
def _store_errors(path: str):
    """Errors of the file system become StoreErrors, also where they are the cause of a rejection."""
    try:
        yield
    except (OSError, RejectedVideo) as error:
        cause = error.__cause__ if isinstance(error, RejectedVideo) else error
        # FFmpeg also calls it EIO when a file is damaged.
        of_file = isinstance(cause, av.FFmpegError) and cause.errno == errno.EIO and _is_readable(path)
        if getattr(cause, "errno", None) in STORE_ERRORS and not of_file:
            raise StoreError(f"{path} cannot be read ({describe(cause)}).") from error
        raise


def _is_readable(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass
    except OSError:
        return False
    return True


def _open_part(video: Video) -> io.BufferedReader:
    """The bytes of a video in a store, or in a local file that holds more. Raises RejectedVideo or StoreError."""
    try:
        opened = Store(video.path).open if is_url(video.path) else partial(open_part, video.path)
        file = opened(first=video.offset, size=video.size)
    except FileNotFoundError as error:
        raise RejectedVideo("the file does not exist") from error
    part = file.raw
    if part.size < 0 or video.offset + part.size > part.end:
        raise RejectedVideo(f"the file ends at byte {part.end}, before the video in it does")
    return file
