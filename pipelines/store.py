"""The one way to a store: whatever fsspec has a file system for (s3://, gs://, az://, http://, memory://, file://, ...).

A request that fails is repeated with growing pauses; one that stalls has failed, too. A store that stays away is a
StoreError. Two things are answers and not failures of a store, so nobody asks again: that there is no such file
(FileNotFoundError), and that this machine's disk is full (OSError).

fsspec's file systems have time limits and retries of their own, with defaults of minutes. They are set for every program
by ~/.config/fsspec/*.json or the environment, such as FSSPEC_S3='{"config_kwargs": {"read_timeout": 20}}'. Not all
have them, so here every request runs in a thread that is given up after RETRY.timeout seconds.
"""

from __future__ import annotations

import errno
import io
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from i2v.atomic import unique

CHUNK = 16 << 20  # bytes of one request, at most
BLOCK = 4 << 20  # bytes that are read ahead in an open file
LONG = 10  # times as long as one request may take what is many (in a listing one for a thousand names) or of any size
PUT_IS_ATOMIC = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "memory"}  # others: upload, then rename

T = TypeVar("T")


class ShardError(RuntimeError):
    """The data set as a whole cannot be used: missing, truncated, swapped, of another version or out of reach."""


class StoreError(ShardError):
    """A store, or the cache for it, does not work; the message says what was tried. Later the same may work."""


class UnknownStore(StoreError, ValueError):
    """There is no such kind of URL, or the package for it is not installed."""


@dataclass(frozen=True)
class Retry:
    tries: int = 5
    wait: float = 1.0  # seconds before the second try, doubled before each further one, half to one and a half of that
    timeout: float = 60.0  # seconds for one request

    @property
    def patience(self) -> float:
        """Seconds after which a store that does not answer at all has been given up."""
        return self.tries * self.timeout + 1.5 * self.wait * (2 ** (self.tries - 1) - 1)


RETRY = Retry()


class Entry(NamedTuple):
    name: str
    size: int | None  # bytes; None: the store does not tell
    is_folder: bool


def is_url(place: str) -> bool:
    """Whether it is a URL of fsspec's, or a chain of them (simplecache::s3://...); std::vector/a.mp4 is a path."""
    return re.match(r"[A-Za-z][\w+.-]*(://|::.*://)", place) is not None


class Store:
    """What is at a URL, under the name "", and below it. Safe to use from several threads.

    Every method raises StoreError if the store does not work, and FileNotFoundError if there is nothing of that name.
    """

    def __init__(self, url: str):
        self.url = url
        try:
            import fsspec.core

            self._fs, self._path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UnknownStore(f"{url} cannot be opened: {str(error).rstrip('.')}.") from error
        except Exception as error:  # each file system has its own: no credentials, no network
            raise StoreError(f"{url} cannot be opened ({reason(error)}).") from error
        self._fs.invalidate_cache()
        protocols = [self._fs.protocol] if isinstance(self._fs.protocol, str) else self._fs.protocol
        self._put_is_atomic = not PUT_IS_ATOMIC.isdisjoint(protocols)

    def where(self, name: str = "") -> str:
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def exists(self, name: str = "") -> bool:
        try:
            self._info(name)  # not the file system's own exists(), which takes any error for a no
            return True
        except FileNotFoundError:
            return False

    def is_folder(self, name: str = "") -> bool:
        return self._ask("read", name, self._fs.isdir)

    def size(self, name: str = "") -> int:
        """Bytes of a file."""
        size = self._info(name).get("size")
        if size is None:
            raise StoreError(f"{self.where(name)}: the store does not tell its size.")
        return size

    def entries(self, times: float = 1) -> list[Entry]:
        """What is in the folder, not deeper. times: how many time limits it may take."""

        def ls(path: str) -> list[Entry]:
            self._fs.invalidate_cache()
            found = [e for e in self._fs.ls(path, detail=True) if e["name"].strip("/") != path.strip("/")]
            return [Entry(e["name"].rstrip("/").rpartition("/")[2], e.get("size"), e.get("type") == "directory") for e in found]

        return self._ask("listed", "", ls, times)

    def below(self) -> list[str]:
        """Every file in the folder at any depth, relative to it."""
        prefix = self._path.strip("/") + "/" if self._path.strip("/") else ""
        return [name.lstrip("/").removeprefix(prefix) for name in self._ask("listed", "", self._fs.find, LONG)]

    def read(self, name: str = "", times: float = 1) -> bytes:
        """All of a small file, in one request, as it may be replaced at any time."""
        return self._ask("read", name, self._fs.cat_file, times)

    def chunks(self, name: str = "", size: int | None = None) -> Iterator[bytes]:
        """All of a file, piece by piece. size: in bytes, if it is known."""
        size = self.size(name) if size is None else size
        for start in range(0, size, CHUNK):
            yield self._piece(name, start, min(start + CHUNK, size))

    def open(self, name: str = "", first: int = 0, size: int | None = None, block: int | None = None) -> io.BufferedReader:
        """A file, or a part of it (see Part). block: bytes that are asked for at once."""
        info = self._info(name)
        if info.get("type") == "directory":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.where(name))
        if info.get("size") is None or info.get("partial") is False:  # a web server that gives only whole files
            whole = self.read(name, LONG)
            part = Part(lambda start, end: whole[start:end], len(whole), first, size)
        else:
            part = Part(lambda start, end: self._piece(name, start, end), info["size"], first, size)
        return io.BufferedReader(part, block or BLOCK)

    def create(self) -> None:
        """Make the folder, where stores have folders."""
        if not self._put_is_atomic:
            self._ask("created", "", lambda path: self._fs.makedirs(path, exist_ok=True))

    def put(self, path: Path, name: str) -> None:
        """Upload a local file; whoever reads it finds all of it, or nothing. Every CHUNK of it may take one time limit."""
        size = path.stat().st_size

        def upload(to: str) -> None:
            temporary = to if self._put_is_atomic else f"{to}.{unique()}.upload"
            self._fs.put_file(str(path), temporary)
            self._fs.invalidate_cache()
            arrived = self._fs.info(temporary)["size"]
            if arrived != size:
                raise OSError(f"{arrived} bytes arrived of {size}")
            if temporary != to:
                self._fs.mv(temporary, to)

        self._ask("written", name, upload, 1 + size // CHUNK)

    def remove(self, name: str) -> None:
        self._ask("removed", name, self._fs.rm_file)

    def _info(self, name: str) -> dict:
        def info(path: str) -> dict:
            self._fs.invalidate_cache()
            return self._fs.info(path)

        return self._ask("read", name, info)

    def _piece(self, name: str, start: int, end: int) -> bytes:
        cat = lambda path: _all_of(self._fs.cat_file(path, start=start, end=end), end - start)  # noqa: E731
        return self._ask("read", name, cat)

    def _below(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}" if name else self._path

    def _ask(self, what: str, name: str, call: Callable[[str], T], times: float = 1) -> T:
        """What call(path) answers. times: how many time limits it may take."""
        path = self._below(name)
        return patiently(self.where(name), what, lambda: _within(times * RETRY.timeout, lambda: call(path)))


class Part(io.RawIOBase):
    """Bytes of a file, from `first` on, `size` of them or all up to its `end`. piece(start, end) gives any of the file."""

    def __init__(self, piece: Callable[[int, int], bytes], end: int, first: int, size: int | None):
        self.end, self.size = end, end - first if size is None else size
        self._piece, self._first, self._position, self._failure = piece, first, 0, None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self.size)[whence])
        return self._position

    def readinto(self, buffer) -> int:
        if self._failure is not None:  # FFmpeg may ask again
            raise self._failure
        count = max(0, min(len(buffer), CHUNK, self.size - self._position))
        start = self._first + self._position
        try:
            buffer[:count] = self._piece(start, start + count) if count else b""
        except StoreError as error:
            self._failure = error
            raise
        self._position += count
        return count

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(CHUNK), b""))


def open_part(path: str, first: int, size: int | None) -> io.BufferedReader:
    """A part of a local file, as Store.open has those of a store."""

    def ask(call: Callable[[int], T]) -> T:
        def opened() -> T:
            with open(path, "rb", buffering=0) as file:
                return call(file.fileno())

        return patiently(path, "read", lambda: _within(RETRY.timeout, opened))

    def piece(start: int, end: int) -> bytes:
        return ask(lambda descriptor: _all_of(os.pread(descriptor, end - start, start), end - start))

    return io.BufferedReader(Part(piece, ask(lambda file: os.fstat(file).st_size), first, size), BLOCK)


def patiently(where: str, what: str, call: Callable[[], T]) -> T:
    """What call() answers, asked again when it fails. where, what: for the sentence "`where` cannot be `what`"."""
    for attempt in range(1, RETRY.tries + 1):
        try:
            return call()
        except StoreError:
            raise
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where) from error
        except (PermissionError, NotImplementedError) as error:  # will not be better next time
            raise StoreError(f"{where} cannot be {what} ({reason(error)}).") from error
        except Exception as error:  # each file system has its own
            if is_full(error):
                raise
            if attempt == RETRY.tries:
                raise StoreError(f"{where} cannot be {what}, tried {attempt} times ({reason(error)}).") from error
        time.sleep(RETRY.wait * 2 ** (attempt - 1) * random.SystemRandom().uniform(0.5, 1.5))


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What call() answers, or TimeoutError. A thread that does not come back is left to itself."""
    answers = []

    def run():
        try:
            answers.append((call(), None))
        except BaseException as error:
            answers.append((None, error))

    thread = threading.Thread(target=run, name="request", daemon=True)
    thread.start()
    thread.join(seconds)
    if not answers:
        raise TimeoutError(f"no answer in {seconds:g} s")
    ((answer, error),) = answers
    if error is not None:
        raise error
    return answer


def _all_of(data: bytes, count: int) -> bytes:
    if len(data) != count:
        raise OSError(f"{len(data)} bytes came where {count} were asked for")
    return data


def is_full(error: BaseException) -> bool:
    """Whether it says that a disk of this machine is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def reason(error: Exception) -> str:
    """An error in a few words."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
