"""Where the bytes of a data set come from: a local folder, or a store elsewhere whose files are staged into one.

LocalFiles and StagedFiles do the same few things: `fetch` a small file whole, `open` a file to read any part of it,
`expect` files that will be opened soon, `discard` a file that turned out to be damaged.

A URL is whatever fsspec has a file system for: s3://, gs://, az://, http://, memory://, file:// (say from NFS to a
local disk). Reading parts of remote shards would cost one request per clip, so shards are copied whole:

    CACHE/i2v-staged/.lock                        held while room is made, and while files get their names
    CACHE/i2v-staged/k400-5d41402abc4b/           one folder per URL; nothing outside i2v-staged is ever touched
        clips-9a3c01ff.npy                        name and checksum: what has changed is another file
        shard-000000-1f2e3d4c.tar                 complete and checked
        shard-000001-77aa0b1c.tar.part            being downloaded, or left over from a process that was killed
        shard-000001-77aa0b1c.tar.lock            held by the one that downloads

Any number of processes share a cache. Who reads a file holds a shared lock (flock) on it, who downloads one an
exclusive lock on its .part; what nobody holds may be removed, the least recently used first. A .part has its final
size from the start, so it takes part in all sums. The kernel drops the locks of a process that dies. A cache belongs
on a local disk.

fsspec's file systems have time limits and retries of their own, with defaults of minutes. They are set for every program
by ~/.config/fsspec/*.json or the environment, such as FSSPEC_S3='{"config_kwargs": {"read_timeout": 20}}'. Not all
have them, so here every request runs in a thread that is given up after RETRY.timeout seconds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import queue
import random
import re
import shutil
import threading
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

OPEN_FILES = 256  # local files kept open at once; below the usual limit of 1024 descriptors
DOWNLOADS = 4  # files at a time, per process, ahead of need
CHUNK = 16 << 20  # bytes of one request
RESERVE = 10 << 30  # bytes that an unlimited cache leaves free on its disk, or a twentieth of a small disk
ROOM_TIMEOUT = 600  # seconds to wait for others to let go of the cache


class ShardError(RuntimeError):
    """The data set as a whole cannot be used: missing, truncated, swapped, of another version or out of reach."""


class StoreError(ShardError):
    """A remote store, or the cache for it, does not work; the message says what was tried."""


@dataclass(frozen=True)
class Retry:
    tries: int = 5
    wait: float = 1.0  # seconds before the second try, doubled before each further one, half to one and a half of that
    timeout: float = 60.0  # seconds for one request


RETRY = Retry()


class File(NamedTuple):
    """A file of a data set, as the manifest describes it."""

    name: str
    size: int | None = None  # None: not known
    crc32: int | None = None


def open_files(
    manifest: str | os.PathLike, cache: str | os.PathLike | None, cache_size: int | str | None
) -> tuple[LocalFiles | StagedFiles, str]:
    """Where the files of a data set are, and the name of its manifest among them."""
    location = os.fspath(manifest)
    if "://" in location:
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
        self._open: OrderedDict[str, object] = OrderedDict()
        self._lock = threading.Lock()

    def where(self, name: str) -> str:
        return str(self.root / name)

    def fetch(self, name: str) -> bytes:
        """All of a small file."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            raise ShardError(f"{self.root / name} does not exist: make it with shard_tools/make_shards.py.") from None
        except OSError as error:
            raise ShardError(f"{self.root / name} cannot be read ({error.strerror}).") from error

    def check(self, files: Iterable[File]) -> None:
        """Raises ShardError unless the files are there and have their sizes."""
        for file in files:
            try:
                self._check_size(file, os.stat(self.root / file.name))
            except OSError as error:
                raise self._unreadable(file, error) from error

    @contextlib.contextmanager
    def open(self, file: File) -> Iterator[int]:
        """A descriptor to read from with os.pread. Raises ShardError if the file is not there or not of its size."""
        with self._lock:
            handle = self._open.pop(file.name, None)
            if handle is None:
                try:
                    handle = open(self.root / file.name, "rb", buffering=0)
                except OSError as error:
                    raise self._unreadable(file, error) from error
                self._check_size(file, os.fstat(handle.fileno()))
            self._open[file.name] = handle
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)  # closed when the last thread that reads from it lets go of it
        yield handle.fileno()

    def expect(self, files: Iterable[File]) -> None:
        """Local files need no preparation."""

    def discard(self, file: File, descriptor: int) -> bool:
        """Whether another copy of a damaged file can be had: no."""
        return False

    def _unreadable(self, file: File, error: OSError) -> ShardError:
        gone = isinstance(error, FileNotFoundError)
        remedy = "restore the file, or run make_shards again into a new folder" if gone else "see to it that it can"
        return ShardError(f"{self.root / file.name} cannot be read ({error.strerror}): {remedy}.")

    def _check_size(self, file: File, status: os.stat_result) -> None:
        if file.size is not None and status.st_size != file.size:
            raise ShardError(
                f"{self.root / file.name} has {status.st_size} bytes where the manifest says {file.size}: "
                "restore the file, or run make_shards again into a new folder."
            )


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
        self.cache = Path(cache).expanduser() / "i2v-staged"
        self.limit = None if cache_size is None else parse_size(cache_size)
        name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2]) or "root"
        self.folder = self.cache / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.cache / ".lock"):
                pass
        except OSError as error:
            message = f"{self.cache} cannot be used as a cache ({error}): set cache to a folder on a local disk."
            raise StoreError(message) from error
        try:
            import fsspec.core

            self._store, self._path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:  # the package for this kind of URL, or the kind, is not known
            raise StoreError(f"{url} cannot be opened: {error}.") from error
        except Exception as error:  # each file system has its own: no credentials, no network
            raise StoreError(f"{url} cannot be opened ({_short(error)}).") from error
        self._store.invalidate_cache()
        self._lock = threading.Lock()
        self._window: set[Path] = set()  # what is expected
        self._queue: deque[File] = deque()  # the part of it that is not staged yet
        self._workers = 0
        self._discarded: set[str] = set()
        self._failures: dict[str, tuple[float, StoreError]] = {}  # name -> when and why staging it failed last

    def where(self, name: str) -> str:
        return f"{self.root}/{name}"

    def fetch(self, name: str) -> bytes:
        """All of a small file, from the store: whether the data set has changed is found out here."""
        return b"".join(self._chunks(name, self._size(name)))

    def check(self, files: Iterable[File]) -> None:
        """Raises StoreError if the store lists these files, but not all of them, or not with their sizes."""
        try:
            entries = self._request("", lambda: self._store.ls(self._path, detail=True))
            sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries}
        except (StoreError, KeyError, TypeError):
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
            raise StoreError(f"{path} cannot be removed ({error.strerror}): see to the cache's disk.") from error

    # ---- staging -----------------------------------------------------------------------------------------------------

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
                _touch(handle.fileno())
                closing.pop_all()  # it stays open
                return handle
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self._local(file)} cannot be read ({error.strerror}): see to the cache's disk.") from error

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
            file = file._replace(size=self._size(file.name))
        asked, path = time.monotonic(), self._local(file)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # again, if somebody has cleaned up
            with _locked(path.with_name(path.name + ".lock")):  # one download of a file at a time
                when, failure = self._failures.get(file.name, (asked, None))
                if when > asked:
                    raise failure  # another thread tried it while this one waited
                try:
                    return self._open_staged(file) or self._download(file, path, urgent)
                except StoreError as error:
                    self._failures[file.name] = time.monotonic(), error
                    raise
        except OSError as error:
            raise StoreError(f"{path} cannot be written ({error.strerror}): see to the cache's disk.") from error

    def _download(self, file: File, path: Path, urgent: bool):
        part, full = path.with_name(path.name + ".part"), False
        while True:
            handle = self._make_room(part, file, urgent, full)
            if handle is None:
                return None
            try:
                self._retry(self.where(file.name), lambda: self._copy(file, handle))
                os.fsync(handle.fileno())
                with _locked(self.cache / ".lock"):  # nobody who adds up the sizes sees it twice, or not at all
                    os.rename(part, path)
                fcntl.flock(handle, fcntl.LOCK_SH)
                return handle
            except BaseException as error:
                part.unlink(missing_ok=True)
                handle.close()
                full = _is_full(error)
                if not full:
                    raise

    def _copy(self, file: File, handle) -> None:
        crc = at = 0
        for data in self._chunks(file.name, file.size):
            crc = zlib.crc32(data, crc)
            view = memoryview(data)
            while view:
                done = os.pwrite(handle.fileno(), view, at)
                view, at = view[done:], at + done
        if crc != file.crc32:
            raise _Damaged("its checksum is not the manifest's")

    # ---- room --------------------------------------------------------------------------------------------------------

    def _make_room(self, part: Path, file: File, urgent: bool, full: bool):
        """Create the .part of a file at its final size, removing what nobody holds; None: no room, and not urgent.

        full: the disk was full at the last try, whatever the sums say.
        """
        deadline, wait = time.monotonic() + ROOM_TIMEOUT, 0.01
        while True:
            with _locked(self.cache / ".lock"):
                handle, busy = self._try_room(part, file, () if urgent else self._window, full)
            if handle is not None or not urgent:
                return handle
            if not busy or time.monotonic() > deadline:
                free, limit = shutil.disk_usage(self.cache).free, "not set" if self.limit is None else f"{self.limit:,} bytes"
                raise StoreError(
                    f"the cache {self.cache} has no room for the {file.size:,} bytes of {self.where(file.name)} "
                    f"(its disk has {free:,} bytes free, cache_size is {limit}): make room, or set cache or cache_size to more."
                )
            time.sleep(wait)
            wait, full = min(2 * wait, 1.0), False

    def _try_room(self, part: Path, file: File, keep: Iterable[Path], full: bool):
        """(the open .part, False), or (None, whether shards are being read or downloaded, so that waiting helps)."""
        staged = _least_recently_used_first(self.cache)
        used, busy = sum(size for _, size in staged), False
        if not full and (handle := self._create(part, file, used)):
            return handle, False
        for path, size in staged:
            if path in keep:
                continue
            if not _remove_if_idle(path):
                busy |= path.suffix != ".npy"  # an index stays open
                continue
            used -= size
            if handle := self._create(part, file, used):
                return handle, False
        return None, busy

    def _create(self, part: Path, file: File, used: int):
        """The .part of a file, open and locked; None if there is no room. used: bytes in the cache."""
        if used + file.size > self.limit if self.limit is not None else _free(self.cache) < file.size:
            return None
        handle = open(part, "wb+", buffering=0)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if file.size:
                os.posix_fallocate(handle.fileno(), 0, file.size)
            return handle
        except BaseException as error:
            part.unlink()
            handle.close()
            if _is_full(error):
                return None
            raise

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _size(self, name: str) -> int:
        size = self._request(name, lambda: self._store.info(f"{self._path}/{name}")["size"])
        if size is None:
            raise StoreError(f"{self.where(name)}: the store does not tell its size.")
        return size

    def _chunks(self, name: str, size: int) -> Iterator[bytes]:
        for start in range(0, size, CHUNK):
            yield self._request(name, lambda: self._part(name, start, min(start + CHUNK, size)))

    def _part(self, name: str, start: int, end: int) -> bytes:
        data = self._store.cat_file(f"{self._path}/{name}", start=start, end=end)
        if len(data) != end - start:
            raise _Damaged(f"{len(data)} bytes came where {end - start} were asked for")
        return data

    def _request(self, name: str, function: Callable):
        return self._retry(self.where(name), lambda: _within(RETRY.timeout, function))

    def _retry(self, url: str, function: Callable):
        """The function's result; StoreError if it fails for good."""
        for attempt in range(1, RETRY.tries + 1):
            try:
                return function()
            except StoreError:
                raise
            except (FileNotFoundError, PermissionError, NotImplementedError) as error:  # will not be better next time
                what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({_short(error)})"
                raise StoreError(f"{url} {what}.") from error
            except Exception as error:  # each file system has its own
                if _is_full(error):  # the cache's disk
                    raise
                if attempt == RETRY.tries:
                    raise StoreError(f"{url} cannot be read, tried {attempt} times ({_short(error)}).") from error
            time.sleep(RETRY.wait * 2 ** (attempt - 1) * random.SystemRandom().uniform(0.5, 1.5))


class _Damaged(Exception):
    """The store answered with something else than the file."""


def parse_size(size: int | str) -> int:
    """Bytes: 200_000_000_000, "200GB", "1.5 TB" or "512GiB"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*(?:([kmgt]?)(i?)b?)", str(size).strip().lower())
    number = round(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " ")) if match else 0
    if number < 1:
        raise ValueError(f"cache_size is {size!r}: it must be a number of bytes, or a text such as 200GB.")
    return number


def _within(seconds: float, function: Callable):
    """The function's result, or TimeoutError. A thread that does not come back is left to itself."""
    answer: queue.SimpleQueue = queue.SimpleQueue()

    def run():
        try:
            answer.put((function(), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=run, name="request", daemon=True).start()
    try:
        result, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:g} s") from None
    if error is not None:
        raise error
    return result


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is there for nothing else, among threads and processes."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _least_recently_used_first(cache: Path) -> list[tuple[Path, int]]:
    """(path, bytes) of every staged file and .part in the cache."""
    found = []
    for path in cache.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            if path.suffix in (".npy", ".tar", ".part"):
                status = path.stat()
                found.append((status.st_mtime_ns, path, status.st_size))
    return [(path, size) for _, path, size in sorted(found)]


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


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _free(folder: Path) -> int:
    """Bytes that an unlimited cache may still fill."""
    disk = shutil.disk_usage(folder)
    return disk.free - min(RESERVE, disk.total // 20)


def _touch(descriptor: int) -> None:
    with contextlib.suppress(PermissionError):  # another user's file
        os.utime(descriptor)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
