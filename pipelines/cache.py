"""Room in a folder that any number of processes share, for copies of files that lie elsewhere.

    CACHE/i2v-staged/.lock                        held while room is made, and while files get their names
    CACHE/i2v-staged/k400-5d41402abc4b/           one folder per URL; nothing outside i2v-staged is ever touched
        clips-9a3c01ff.npy                        name and checksum: what has changed is another file
        shard-000000-1f2e3d4c.tar                 complete and checked
        shard-000001-77aa0b1c.tar.part            being downloaded, or left over from a process that was killed
        shard-000001-77aa0b1c.tar.lock            held by the one that downloads

Who reads a file holds a shared lock (flock) on it, who downloads one an exclusive lock on its .part; what nobody holds may
be removed, the least recently used first. A .part has its final size from the start, so it takes part in all sums. The
kernel drops the locks of a process that dies. A cache belongs on a local disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from i2v.pipelines.store import StoreError, is_full

RESERVE = 10 << 30  # bytes that an unlimited cache leaves free on its disk, or a twentieth of a small disk
ROOM_TIMEOUT = 600  # seconds to wait for others to let go of the cache


class Cache:
    """limit: how much all files in it may fill, in bytes or as text such as "200GB"; None: what is free, less a reserve."""

    def __init__(self, folder: str | os.PathLike, limit: int | str | None):
        self.folder = Path(folder).expanduser() / "i2v-staged"
        self.limit = None if limit is None else parse_size(limit)

    def create(self, name: str) -> Path:
        """A folder in it. Raises StoreError."""
        folder = self.folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self.lock():
                return folder
        except OSError as error:
            message = f"{self.folder} cannot be used as a cache ({error}): set cache to a folder on a local disk."
            raise StoreError(message) from error

    def lock(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.folder / ".lock")

    def make_room(self, part: Path, size: int, keep: Iterable[Path] | None, full: bool, what: str):
        """Create `part` at its final size, open and locked, removing what nobody holds. Raises StoreError.

        keep: what must stay; there is no waiting for others then, and None is returned if there is no room. None: it is
        urgent. full: the disk was full at the last try, whatever the sums say. what: is to be stored, for the error.
        """
        deadline, wait = time.monotonic() + ROOM_TIMEOUT, 0.01
        while True:
            with self.lock():
                handle, busy = self._try_room(part, size, keep or (), full)
            if handle is not None or keep is not None:
                return handle
            if not busy or time.monotonic() > deadline:
                free, limit = shutil.disk_usage(self.folder).free, "not set" if self.limit is None else f"{self.limit:,} bytes"
                raise StoreError(
                    f"the cache {self.folder} has no room for the {size:,} bytes of {what} "
                    f"(its disk has {free:,} bytes free, cache_size is {limit}): make room, or set cache or cache_size to more."
                )
            time.sleep(wait)
            wait, full = min(2 * wait, 1.0), False

    def _try_room(self, part: Path, size: int, keep: Iterable[Path], full: bool):
        """(the open .part, False), or (None, whether shards are being read or downloaded, so that waiting helps)."""
        files = self._least_recently_used_first()
        used, busy = sum(bytes for _, bytes in files), False
        if not full and (handle := self._create(part, size, used)):
            return handle, False
        for path, freed in files:
            if path in keep:
                continue
            if not _remove_if_idle(path):
                busy |= path.suffix != ".npy"  # an index stays open
                continue
            used -= freed
            if handle := self._create(part, size, used):
                return handle, False
        return None, busy

    def _create(self, part: Path, size: int, used: int):
        """The .part, open and locked; None if there is no room. used: bytes in the cache."""
        if used + size > self.limit if self.limit is not None else _free(self.folder) < size:
            return None
        handle = open(part, "wb+", buffering=0)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if size:
                os.posix_fallocate(handle.fileno(), 0, size)
            return handle
        except BaseException as error:
            part.unlink()
            handle.close()
            if is_full(error):
                return None
            raise

    def _least_recently_used_first(self) -> list[tuple[Path, int]]:
        """(path, bytes) of every staged file and .part."""
        found = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                if path.suffix in (".npy", ".tar", ".part"):
                    status = path.stat()
                    found.append((status.st_mtime_ns, path, status.st_size))
        return [(path, size) for _, path, size in sorted(found)]


def parse_size(size: int | str) -> int:
    """Bytes: 200_000_000_000, "200GB", "1.5 TB" or "512GiB"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*(?:([kmgt]?)(i?)b?)", str(size).strip().lower())
    number = round(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " ")) if match else 0
    if number < 1:
        raise ValueError(f"cache_size is {size!r}: it must be a number of bytes, or a text such as 200GB.")
    return number


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is there for nothing else, among threads and processes."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_if_idle(path: Path) -> bool:
    """Remove a file, unless somebody holds it."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


def _free(folder: Path) -> int:
    """Bytes that an unlimited cache may still fill."""
    disk = shutil.disk_usage(folder)
    return disk.free - min(RESERVE, disk.total // 20)
