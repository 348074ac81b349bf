"""A copy of a run's folder at a URL, made while the run goes on; in an empty folder it goes on from the copy."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from i2v.atomic import replacing, unique
from i2v.distributed import World, all_agree
from i2v.pipelines import ShardError
from i2v.pipelines.store import Store

KINDS = (".csv", ".jsonl", ".safetensors", ".yaml")  # of files that are copied
WRITER = "writer"  # says which run copies there, the last one that began to
STATE = "last.safetensors"  # copied after the others, either way: a state with what belongs to it, or an older one


def restore(out: Path, url: str | None, world: World) -> None:
    """Fetch what is at the URL, unless the folder has a state of its own; on all ranks alike it succeeds or raises.

    Raises ShardError if the store does not answer: a run that began anew would overwrite what may be there.
    """
    if url is None:
        return
    problem = None
    try:
        if world.is_main and not (out / STATE).exists():
            _fetch(out, Store(url))
    except (ShardError, OSError) as error:
        problem = ShardError(f"{error} The run may have a state in train.mirror: try again later, or without that key.")
    if not all_agree(problem is None):
        raise problem or ShardError(f"Process 0 could not read train.mirror, {url}.")


def _fetch(out: Path, store: Store) -> None:
    try:
        names = [entry.name for entry in store.entries() if not entry.is_folder and entry.name.endswith(KINDS)]
    except FileNotFoundError:
        return  # nothing was copied yet
    for name in sorted(names, key=lambda name: name == STATE):
        with replacing(out / name) as temporary, open(temporary, "wb") as file:
            file.writelines(store.chunks(name))


class Mirror:
    """Sends in a thread of its own; a store that fails costs a line, never the run."""

    def __init__(self, out: Path, url: str, say: Callable[[str], None]):
        self._out, self._url, self._say = out, url, say
        self._token, self._begun, self._lost = unique().encode(), False, False
        self._taken: dict[str, tuple] = {}  # name: which state of the file is sent, or about to be
        self._waiting: dict[str, Path] = {}  # name: that state, under a name of its own
        self._lock, self._wake, self._over = threading.Lock(), threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def copy(self) -> None:
        """Take all files as they are now, if they have changed since; what was not sent yet of older states is left out."""
        if self._lost:
            return
        try:
            with self._lock:
                for path in sorted(self._out.glob("[!.]*")):
                    if path.suffix not in KINDS:
                        continue
                    status = path.stat()
                    mark = (status.st_ino, status.st_mtime_ns, status.st_size)
                    if self._taken.get(path.name) != mark:
                        older, self._waiting[path.name] = self._waiting.get(path.name), _keep(path)
                        if older is not None:
                            older.unlink(missing_ok=True)
                        self._taken[path.name] = mark
        except OSError as error:
            self._say(f"WARNING: the files for train.mirror cannot be kept ({error.strerror or error}).")
        self._wake.set()

    def close(self, seconds: float | None = None) -> None:
        """Wait until the last state is sent or the store was given up, at most so long."""
        self._over = True
        self._wake.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._say(f"WARNING: {self._url} takes too long: it lacks the newest state, which is in {self._out}.")

    def _work(self) -> None:
        over = False
        while not over:
            self._wake.wait()
            self._wake.clear()
            over = self._over  # before looking at what waits: then nothing comes any more
            with self._lock:
                files, self._waiting = self._waiting, {}
            try:
                self._send(files)
            except (ShardError, OSError) as error:
                with self._lock:
                    self._taken = {name: mark for name, mark in self._taken.items() if name not in files}
                self._say(f"WARNING: {error} train.mirror lacks the newest state; the run goes on, the next save tries again.")
            finally:
                for kept in files.values():
                    kept.unlink(missing_ok=True)

    def _send(self, files: dict[str, Path]) -> None:
        if not files:
            return
        store = Store(self._url)
        store.create()
        self._lost = not self._is_ours(store)
        if self._lost:
            self._say(
                f"WARNING: another run copies to {self._url} by now, so that of {self._out} copies nothing any more: give each "
                "a train.mirror of its own."
            )
            return
        for name in sorted(files, key=lambda name: name == STATE):
            store.put(files[name], name)

    def _is_ours(self, store: Store) -> bool:
        """Whether no other run has begun to copy there since this one did."""
        if self._begun:
            with suppress(FileNotFoundError):
                return store.read(WRITER) == self._token
        with NamedTemporaryFile() as file:
            file.write(self._token)
            file.flush()
            store.put(Path(file.name), WRITER)
        self._begun = True
        return True


def _keep(path: Path) -> Path:
    """The file's content of now under another name: checkpoints are replaced, so a link keeps it; others are written on."""
    kept = path.with_name(f".{path.name}.{unique()}.tmp")
    if path.suffix == ".safetensors":
        with suppress(OSError):  # a file system without links
            os.link(path, kept)
            return kept
    shutil.copyfile(path, kept)
    return kept
