"""Open a source video wherever it lies: a local file, an object in a store (any fsspec URL), a member of a tar.

A fault of one file is a RejectedVideo, and the run goes on. A fault of the store (no connection, no permission, no
such service) says nothing about the video: after some tries it is a StoreError, which ends a run that can be continued.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import av

from i2v.shard_tools.completeness import Read, what_is_missing
from i2v.shard_tools.paths import is_url
from i2v.shard_tools.sources import Video

TRIES, FIRST_PAUSE = 4, 1.0  # of a store that does not answer; seconds, doubled after every try
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

T = TypeVar("T")


class RejectedVideo(Exception):
    """A video that cannot become a clip. `reason` is one short human sentence without a full stop."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class StoreError(RuntimeError):
    """Where the videos are cannot be read now. One short sentence without a full stop; the same command continues."""


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
    with contextlib.closing(_Part(video)) as part:
        _check_complete(part.read_at, part.size)
        part.seek(0)
        with _open(part, "none", _form(video.path)) as container:
            yield container, part.size


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
            raise StoreError(f"{path} cannot be read ({describe(cause)})") from error
        raise


def _is_readable(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass
    except OSError:
        return False
    return True


class _Part(io.RawIOBase):
    """The bytes of a video in a local or remote file that may hold more: read-only, seekable, patient."""

    def __init__(self, video: Video):
        self.path, self.first, self.position, self.failure, self._file = video.path, video.offset, 0, None, None
        end = self._patiently(lambda file: file.seek(0, os.SEEK_END))
        self.size = end - self.first if video.size is None else video.size
        if self.first + self.size > end or self.size < 0:
            raise RejectedVideo(f"the file ends at byte {end}, before the video in it does")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = max(0, offset + (0, self.position, self.size)[whence])
        return self.position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self.position)
        size = left if size < 0 else min(size, left)
        if size == 0:
            return b""

        def read(file) -> bytes:
            file.seek(self.first + self.position)
            data = file.read(size)
            if not data:
                raise OSError("it ended early")
            return data

        data = self._patiently(read)
        self.position += len(data)
        return data

    def read_at(self, first: int, count: int) -> bytes:
        self.seek(first)
        return self.read(count)

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(Exception):
                self._file.close()
        self._file = None
        super().close()

    def _patiently(self, action: Callable[[io.RawIOBase], T]) -> T:
        if self.failure is not None:  # FFmpeg may ask again
            raise self.failure
        for attempt in range(1, TRIES + 1):
            try:
                if self._file is None:
                    self._file = _open_file(self.path)
                return action(self._file)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise RejectedVideo("the file does not exist") from error
            except StoreError:
                raise
            except Exception as error:  # stores raise what they like
                self._file = None
                if attempt == TRIES:
                    reason = f"{type(error).__name__}: {describe(error)}"
                    self.failure = StoreError(f"{self.path} cannot be read, tried {TRIES} times ({reason})")
                    raise self.failure from error
                time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))


def _open_file(path: str):
    if not is_url(path):
        return open(path, "rb", buffering=0)
    import fsspec.core

    try:
        file_system, name = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({describe(error)})") from error
    file = file_system.open(name, "rb")
    if not file.seekable():  # a web server that gives only whole files
        with file:
            return io.BytesIO(file.read())
    return file
