"""The files below a URL, copied whole into a cache on a local disk when they are needed, or before.

Reading parts of remote shards would cost one request per clip. How processes share a cache: cache.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from i2v.pipelines.cache import Cache, locked
from i2v.pipelines.store import Store, StoreError, is_full, patiently

DOWNLOADS = 4  # files at a time, per process, ahead of need


class File(NamedTuple):
    """A file of a data set, as the manifest describes it."""

    name: str
    size: int | None = None  # None: not known
    crc32: int | None = None


class StagedFiles:
    """The files below a URL, copied into a folder of `cache` when they are needed, or before. For several threads.

    cache_size: how much all data sets in `cache` may fill, in bytes or as text such as "200GB"; None: what is free on the
    disk, less a reserve. Raises StoreError.
    """

    remote = True

    def __init__(self, url: str, cache: str | os.PathLike | None, cache_size: int | str | None = None):
        if cache is None:
            raise StoreError(f"{url} is remote: set cache to a folder on a local disk, into which its shards are copied.")
        self.root = url
        self.cache = Cache(cache, cache_size)
        name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2]) or "root"
        self.folder = self.cache.create(f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}")
        self._store = Store(url)
        self._lock = threading.Lock()
        self._window: set[Path] = set()  # what is expected
        self._queue: deque[File] = deque()  # the part of it that is not staged yet
        self._workers = 0
        self._discarded: set[str] = set()
        self._failures: dict[str, tuple[float, StoreError]] = {}  # name -> when and why staging it failed last

    def where(self, name: str) -> str:
        return self._store.where(name)

    def fetch(self, name: str) -> bytes:
        """All of a small file, from the store: whether the data set has changed is found out here."""
        with self._required(name):
            return self._store.read(name)

    def check(self, files: Iterable[File]) -> None:
        """Raises StoreError if the store lists these files, but not all of them, or not with their sizes."""
        try:
            sizes = {entry.name: entry.size for entry in self._store.entries()}
        except (StoreError, FileNotFoundError):
            return  # not all stores can list: what is missing is found when it is staged
        listed = any(file.name in sizes for file in files)
        for file in files:
            size = sizes.get(file.name)
            if listed and (file.name not in sizes or size not in (None, file.size)):
                has = "does not exist" if size is None else f"has {size} bytes where the manifest says {file.size}"
                raise StoreError(f"{self.where(file.name)} {has}: copy it there again.")

    @contextlib.contextmanager
    def open(self, file: File) -> Iterator[int]:
        """A descriptor to read from with os.pread; the file cannot be evicted meanwhile. Staged first if need be."""
        with self._open_staged(file) or self._stage(file) as handle:
            yield handle.fileno()

    def expect(self, files: Iterable[File]) -> None:
        """Stage these ahead, in this order, in place of what was expected before, as far as there is room for all."""
        with self._lock:
            self._queue = deque(dict.fromkeys(files))
            self._window = {self._local(file) for file in self._queue}
            for _ in range(min(DOWNLOADS, len(self._queue)) - self._workers):
                threading.Thread(target=self._stage_ahead, name="stage", daemon=True).start()
                self._workers += 1

    def discard(self, file: File, descriptor: int) -> bool:
        """Whether another copy of a damaged file can be had: yes, once, or if somebody else has fetched it already."""
        path = self._local(file)
        try:
            with self._lock, contextlib.suppress(FileNotFoundError):
                if not os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return True
                if file.name in self._discarded:
                    return False
                self._discarded.add(file.name)
                path.unlink()
            return True
        except OSError as error:
            raise StoreError(f"{path} cannot be removed ({error.strerror}): check the cache's disk.") from error

    @contextlib.contextmanager
    def _required(self, name: str) -> Iterator[None]:
        """That a file is not in the store is an error."""
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(f"{self.where(name)} does not exist.") from error

    def _local(self, file: File) -> Path:
        if file.crc32 is None:
            raise StoreError(f"the manifest of {self.root} has no checksum of {file.name}: run make_shards again.")
        name = Path(file.name)
        return self.folder / f"{name.stem}-{file.crc32:08x}{name.suffix}"

    def _open_staged(self, file: File):
        try:
            with contextlib.ExitStack() as closing:
                handle = closing.enter_context(open(self._local(file), "rb", buffering=0))
                fcntl.flock(handle, fcntl.LOCK_SH)
                if file.size is not None and os.fstat(handle.fileno()).st_size != file.size:  # not by us
                    self._local(file).unlink(missing_ok=True)
                    return None
                with contextlib.suppress(PermissionError):  # another user's file
                    os.utime(handle.fileno())
                closing.pop_all()  # it stays open
                return handle
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self._local(file)} cannot be read ({error.strerror}): check the cache's disk.") from error

    def _stage_ahead(self) -> None:
        room = True
        while True:
            with self._lock:  # it is counted until it ends, and expect() may bring files until then
                if not room or not self._queue:
                    self._workers -= 1
                    return
                file = self._queue.popleft()
            with contextlib.suppress(Exception):  # of any kind: whoever needs the file tries again, and reports
                handle = self._open_staged(file) or self._stage(file, urgent=False)
                if handle is None:
                    room = False  # until something else is expected
                else:
                    handle.close()

    def _stage(self, file: File, urgent: bool = True):
        """Copy a file into the cache and open it; None if there is no room and it is not urgent."""
        if file.size is None:
            with self._required(file.name):
                file = file._replace(size=self._store.size(file.name))
        asked, path = time.monotonic(), self._local(file)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # again, if somebody has cleaned up
            with locked(path.with_name(path.name + ".lock")):  # one download of a file at a time
                when, failure = self._failures.get(file.name, (asked, None))
                if when > asked:
                    raise failure  # another thread tried it while this one waited
                try:
                    return self._open_staged(file) or self._download(file, path, urgent)
                except StoreError as error:
                    self._failures[file.name] = time.monotonic(), error
                    raise
        except OSError as error:
            raise StoreError(f"{path} cannot be written ({error.strerror}): check the cache's disk.") from error

    def _download(self, file: File, path: Path, urgent: bool):
        part, full = path.with_name(path.name + ".part"), False
        while True:
            keep = None if urgent else self._window
            handle = self.cache.make_room(part, file.size, keep, full, self.where(file.name))
            if handle is None:
                return None
            try:
                with self._required(file.name):
                    patiently(self.where(file.name), "read", lambda: self._copy(file, handle))
                os.fsync(handle.fileno())
                with self.cache.lock():  # nobody who adds up the sizes sees it twice, or not at all
                    os.rename(part, path)
                fcntl.flock(handle, fcntl.LOCK_SH)
                return handle
            except BaseException as error:
                part.unlink(missing_ok=True)
                handle.close()
                full = is_full(error)
                if not full:
                    raise

    def _copy(self, file: File, handle) -> None:
        crc = at = 0
        for data in self._store.chunks(file.name, file.size):
            crc = zlib.crc32(data, crc)
            view = memoryview(data)
            while view:
                done = os.pwrite(handle.fileno(), view, at)
                view, at = view[done:], at + done
        if crc != file.crc32:
            raise OSError("its checksum is not the manifest's")
