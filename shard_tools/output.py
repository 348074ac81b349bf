"""Where shards go: a folder, or a URL (s3://, gs://, ...) by way of a local folder in which files are made.

Either way a file appears under its name only when it is whole, and `Output` is all that the rest knows of the difference.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from i2v.shard_tools.source_video import StoreError, describe

MAKING = "making.json"  # what is being made in an output; gone when it is finished
BACKOFF = (1, 5)  # seconds between the tries to reach a store
PUT_IS_ATOMIC = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "memory"}  # others: upload, then rename


class OutputError(RuntimeError):
    """The output cannot be used for this; the message is one sentence that says why and what to do."""


class Output:
    """out: folder or URL. staging: for a URL, the folder for what is being made (default: in the temporary folder).

    folder: where files are written, as NAME.tmp or NAME.partial, before they are published: the output itself, if local.
    """

    def __init__(self, out: str | os.PathLike, staging: str | os.PathLike | None = None):
        self.name, self.fs, self.folder = os.fspath(out), None, Path(out)
        if "://" not in self.name:
            return
        from fsspec.core import url_to_fs

        try:
            self.fs, self.root = url_to_fs(self.name)
        except (ImportError, ValueError, OSError) as error:
            raise OutputError(f"{self.name} cannot be written to: {describe(error)}.") from error
        self.root = self.root.rstrip("/")
        protocol = (self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol
        self.put_is_atomic = bool(PUT_IS_ATOMIC & set(protocol))
        staging = Path(staging or Path(tempfile.gettempdir()) / f"i2v-shards-{os.getuid()}")
        self.folder = staging / hashlib.sha256(self.name.encode()).hexdigest()[:16]

    def create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.fs is not None and not self.put_is_atomic:  # object stores have no folders
            self._ask(f"creating {self.name}", lambda: self.fs.makedirs(self.root, exist_ok=True))

    def sizes(self) -> dict[str, int]:
        """Bytes of every published file, by name (a folder: of every file in it)."""
        if self.fs is None:
            try:
                return {entry.name: entry.stat().st_size for entry in os.scandir(self.folder) if entry.is_file()}
            except FileNotFoundError:
                return {}

        def list_files():
            self.fs.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in self.fs.ls(self.root, detail=True)}
            return {}

        return self._ask(f"listing {self.name}", list_files)

    def has(self, name: str) -> bool:
        if self.fs is None:
            return (self.folder / name).exists()

        def look():  # not fs.exists: that takes any error for a no
            self.fs.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                return bool(self.fs.info(f"{self.root}/{name}"))
            return False

        return self._ask(f"looking for {self.name}/{name}", look)

    def read(self, name: str) -> bytes:
        """A published file's bytes. Raises FileNotFoundError."""
        if self.fs is None:
            return (self.folder / name).read_bytes()
        return self._ask(f"reading {self.name}/{name}", lambda: self.fs.cat_file(f"{self.root}/{name}"), FileNotFoundError)

    def read_json(self, name: str) -> dict | None:
        """A published JSON object; None: there is none."""
        try:
            content = json.loads(self.read(name))
        except FileNotFoundError:
            return None
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise OutputError(f"{self.name} holds a {name} that is not ours: choose a new folder.")
        return content

    @contextlib.contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """A published file that may be large, as a local one."""
        if self.fs is None:
            yield self.folder / name
            return
        path = self.folder / f"{name}.{unique()}.copy"
        fetch = lambda: self.fs.get_file(f"{self.root}/{name}", str(path))  # noqa: E731
        self._ask(f"reading {self.name}/{name}", fetch, FileNotFoundError)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def write_json(self, name: str, content: dict) -> None:
        path = self.folder / f"{name}.{unique()}.tmp"  # several tasks may write the same at the same time
        path.write_text(json.dumps(content, indent=1) + "\n")
        self.publish(path, name)

    def publish(self, path: Path, name: str | None = None, keep: bool = False) -> None:
        """The finished file x.tmp or x.partial in `folder` -> x, on the disk or in the store; whoever reads, sees all of it.

        keep: leave what was uploaded in the staging folder.
        """
        name = name or path.with_suffix("").name
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        if self.fs is None:
            os.replace(path, self.folder / name)
            _sync_folder(self.folder)
            return
        self._ask(f"uploading {name} to {self.name}", lambda: self._upload(path, f"{self.root}/{name}"))
        if not keep:
            path.unlink()

    def remove(self, names: Iterable[str]) -> None:
        """Remove what there is of these files, in this order."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
            if self.fs is not None:
                with contextlib.suppress(FileNotFoundError):
                    path = f"{self.root}/{name}"
                    self._ask(f"removing {self.name}/{name}", lambda path=path: self.fs.rm_file(path), FileNotFoundError)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """Wait until nobody else holds the lock on this published file. False: it is gone.

        A store has no locks: there, only who shares the staging folder is waited for, and what others do twice at once
        must come to the same bytes.
        """
        try:
            locked = os.open(self.folder / name if self.fs is None else self.folder, os.O_RDONLY)
        except FileNotFoundError:
            yield False
            return
        try:
            fcntl.flock(locked, fcntl.LOCK_EX)
            yield self.has(name)
        finally:
            os.close(locked)

    def _upload(self, path: Path, to: str) -> None:
        temporary = to if self.put_is_atomic else f"{to}.{unique()}.upload"
        self.fs.put_file(str(path), temporary)
        self.fs.invalidate_cache()
        size = self.fs.info(temporary)["size"]
        if size != path.stat().st_size:
            raise OSError(f"{size} bytes arrived of {path.stat().st_size}")
        if temporary != to:
            self.fs.mv(temporary, to)

    def _ask(self, what: str, call: Callable, final: type[Exception] | tuple = ()):
        """call(), with patience: stores fail now and then. `final`: the error that is an answer."""
        for seconds in (*BACKOFF, None):
            try:
                return call()
            except final:
                raise
            except Exception as error:  # each store's library has errors of its own
                if seconds is None:
                    raise StoreError(f"{what} failed {len(BACKOFF) + 1} times ({describe(error)})") from error
                time.sleep(seconds)


def unique() -> str:
    """Part of the name of a temporary file in a folder that machines share, each with its own process ids."""
    return f"{socket.gethostname()}-{uuid.uuid4().hex}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
