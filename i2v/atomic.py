"""Files that are whole or not there."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path of one's own to write to; it becomes `path`, on the disk, when the block ends without an error.

    Whoever reads `path` at any time, after a power cut too, finds all of the old file or all of the new one.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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
