"""Where shards go: a folder, or a URL (s3://, gs://, ...) by way of a local folder in which files are made.

Either way a file appears under its name only when it is whole, and `Output` is all that the rest knows of the difference.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from i2v.atomic import put_in_place, unique
from i2v.pipelines.store import Store, is_url

MAKING = "making.json"  # what is being made in an output; gone when it is finished


class OutputError(RuntimeError):
    """The output cannot be used for this; the message is one sentence that says why and what to do."""


class Output:
    """out: folder or URL. staging: for a URL, the folder for what is being made (default: in the temporary folder).

    folder: where files are written, as NAME.tmp or NAME.partial, before they are published: the output itself, if local.
    """

    def __init__(self, out: str | os.PathLike, staging: str | os.PathLike | None = None):
        self.name, self.store, self.folder = os.fspath(out), None, Path(out)
        if not is_url(self.name):
            return
        self.store = Store(self.name)
        staging = Path(staging or Path(tempfile.gettempdir()) / f"i2v-shards-{os.getuid()}")
        self.folder = staging / hashlib.sha256(self.name.encode()).hexdigest()[:16]

    def create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.store is not None:
            self.store.create()

    def sizes(self) -> dict[str, int]:
        """Bytes of every published file, by name (a folder: of every file in it)."""
        try:
            if self.store is None:
                return {entry.name: entry.stat().st_size for entry in os.scandir(self.folder) if entry.is_file()}
            return {entry.name: entry.size for entry in self.store.entries()}
        except FileNotFoundError:
            return {}

    def has(self, name: str) -> bool:
        return (self.folder / name).exists() if self.store is None else self.store.exists(name)

    def read(self, name: str) -> bytes:
        """A published file's bytes. Raises FileNotFoundError."""
        return (self.folder / name).read_bytes() if self.store is None else self.store.read(name)

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
        """A published file that may be large, as a local one. Raises FileNotFoundError."""
        if self.store is None:
            yield self.folder / name
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.{unique()}.copy"
        try:
            with open(path, "wb") as file:
                file.writelines(self.store.chunks(name))
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
        if self.store is None:
            put_in_place(path, self.folder / name)
            return
        self.store.put(path, name)
        if not keep:
            path.unlink()

    def remove(self, names: Iterable[str]) -> None:
        """Remove what there is of these files, in this order."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
            if self.store is not None:
                with contextlib.suppress(FileNotFoundError):
                    self.store.remove(name)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """Wait until nobody else holds the lock on this published file. False: it is gone.

        A store has no locks: there, only who shares the staging folder is waited for, and what others do twice at once
        must come to the same bytes.
        """
        try:
            locked = os.open(self.folder / name if self.store is None else self.folder, os.O_RDONLY)
        except FileNotFoundError:
            yield False
            return
        try:
            fcntl.flock(locked, fcntl.LOCK_EX)
            yield self.has(name)
        finally:
            os.close(locked)
