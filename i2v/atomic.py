"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path of one's own to write to; it becomes `path`, on the disk, when the block ends without an error.

    Whoever reads `path` at any time, after a power cut too, finds all of the old file or all of the new one. A link stays, what
    it leads to is replaced. Raises OSError where there is something that is no file: a folder, a pipe, a device.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        code = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(code, os.strerror(code) if path.is_dir() else "It is a device or a pipe, not a file", str(path))
    temporary = path.with_name(f".{path.name}.{unique()}.tmp")
    try:
        yield temporary
        put_in_place(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # the name that people know
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file, text as UTF-8, by way of `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a file that is finished its name in the same folder, on the disk: first its bytes, then the name."""
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def unique() -> str:
    """Part of the name of a temporary file in a folder that machines share, each with its own process ids."""
    return f"{socket.gethostname()}-{uuid.uuid4().hex}"


def remove_leftovers(folder: Path) -> None:
    """Delete what writers left in a folder that were killed while they wrote. Call it when nobody else writes there."""
    for pattern in (".*.tmp", ".tmp*"):  # ours, and those of safetensors
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
