"""Where the files of a data set are: in a folder, or at a URL, from which they are staged into one.

LocalFiles and StagedFiles do the same few things: `fetch` a small file whole, `open` a file to read any part of it,
`expect` files that will be opened soon, `discard` a file that turned out to be damaged.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from i2v.pipelines.staging import File, StagedFiles
from i2v.pipelines.store import ShardError, is_url

OPEN_FILES = 256  # local files kept open at once; below the usual limit of 1024 descriptors


def open_files(
    manifest: str | os.PathLike, cache: str | os.PathLike | None, cache_size: int | str | None
) -> tuple[LocalFiles | StagedFiles, str]:
    """Where the files of a data set are, and the name of its manifest among them."""
    location = os.fspath(manifest)
    if is_url(location):
        root, name = location.rstrip("/"), "manifest.json"
        if location.endswith(".json"):
            root, _, name = location.rpartition("/")
        return StagedFiles(root, cache, cache_size), name
    path = Path(location)
    return (LocalFiles(path), "manifest.json") if path.is_dir() else (LocalFiles(path.parent), path.name)


class LocalFiles:
    """The files of a folder. Safe to use from several threads."""

    remote = False

    def __init__(self, root: Path):
        self.root = root
        self._opened = functools.lru_cache(OPEN_FILES)(functools.partial(_open, root))

    def where(self, name: str) -> str:
        return str(self.root / name)

    def fetch(self, name: str) -> bytes:
        """All of a small file."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            path = self.root / name
            seen = "" if path.is_absolute() else f", seen from {Path.cwd()}"
            remedy = "correct the path, or make it with shard_tools/make_shards.py"
            raise ShardError(f"{path} does not exist{seen}: {remedy}.") from None
        except OSError as error:
            raise ShardError(f"{self.root / name} cannot be read ({error.strerror}).") from error

    def check(self, files: Iterable[File]) -> None:
        """Raises ShardError unless the files are there and have their sizes."""
        for file in files:
            path = self.root / file.name
            try:
                _check_size(path, file, os.stat(path))
            except OSError as error:
                raise _unreadable(path, error) from error

    @contextlib.contextmanager
    def open(self, file: File) -> Iterator[int]:
        """A descriptor to read from with os.pread. Raises ShardError if the file is not there or not of its size."""
        handle = self._opened(file)  # keeps it open meanwhile
        yield handle.fileno()

    def expect(self, files: Iterable[File]) -> None:
        """Local files need no preparation."""

    def discard(self, file: File, descriptor: int) -> bool:
        """Whether another copy of a damaged file can be had: no."""
        return False


def _open(root: Path, file: File) -> io.FileIO:
    path = root / file.name
    try:
        handle = open(path, "rb", buffering=0)
    except OSError as error:
        raise _unreadable(path, error) from error
    _check_size(path, file, os.fstat(handle.fileno()))
    return handle


def _unreadable(path: Path, error: OSError) -> ShardError:
    gone = isinstance(error, FileNotFoundError)
    remedy = "restore the file, or run make_shards again into a new folder" if gone else "make it readable"
    return ShardError(f"{path} cannot be read ({error.strerror}): {remedy}.")


def _check_size(path: Path, file: File, status: os.stat_result) -> None:
    if file.size is not None and status.st_size != file.size:
        raise ShardError(
            f"{path} has {status.st_size} bytes where the manifest says {file.size}: "
            "restore the file, or run make_shards again into a new folder."
        )
