"""One writer per folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from i2v.atomic import remove_leftovers
from i2v.distributed import World, all_agree

LOCK = ".lock"
BEAT = 5.0  # seconds between two signs of life of who holds a folder
BEATS_MISSED = 3  # whoever gives no sign for so many beats is gone
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # file systems without locks
BOOT = Path("/proc/sys/kernel/random/boot_id")  # which machine this is, whatever it calls itself


@contextmanager
def held(out: Path, world: World):
    """A folder, made if it is not there and held by rank 0 for all ranks.

    Raises ValueError on all of them if another run holds it.
    """
    with ExitStack() as stack:
        problem = None
        try:
            if world.is_main:
                out.mkdir(parents=True, exist_ok=True)
                stack.enter_context(only_writer(out))
                remove_leftovers(out)
        except (ValueError, OSError) as error:
            problem = error
        if not all_agree(problem is None):
            raise problem or ValueError(f"Process 0 could not take the folder {out}.")
        yield


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder, so that no other run writes there. Raises ValueError, which names the holder, if one does.

    Two guards, because file systems differ. The lock (flock) goes when its holder ends, however it ends. Where locks do
    not exist, or each machine keeps its own (NFS mounted with local locks), the holder's beat tells: it touches the file
    every few seconds, and who comes from another machine, or finds no locks, watches for longer than that.
    """
    path = folder / LOCK
    descriptor, locked = _open_and_lock(path)
    try:
        holder = _holder(path)
        watch = holder is not None and (not locked or holder["machine"] != _machine())
        if watch and _beats(path):
            raise _in_use(path)
        me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "machine": _machine(),
            "token": uuid.uuid4().hex,
        }
        _record(descriptor, me)
        if watch or not locked:  # two may have come at the same time: the one that wrote last stays
            time.sleep(BEAT)
            if _holder(path) != me:
                raise _in_use(path)
        over = threading.Event()
        beat = threading.Thread(target=_beat, args=(descriptor, over), daemon=True)
        beat.start()
        try:
            yield
        finally:
            over.set()
            beat.join()
            _record(descriptor, None)
    finally:
        os.close(descriptor)


def _open_and_lock(path: Path) -> tuple[int, bool]:
    """(descriptor, whether the file system knows locks). Raises ValueError if somebody else has the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor, True
    except BlockingIOError:
        os.close(descriptor)
        raise _in_use(path) from None
    except OSError as error:
        if error.errno in NO_FLOCK:
            return descriptor, False
        os.close(descriptor)
        raise


def _in_use(path: Path) -> ValueError:
    holder = _holder(path)
    who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if holder else "just starting"
    return ValueError(f"{path.parent} is in use by another run ({who}): wait until it has ended, or choose another folder.")


def _holder(path: Path) -> dict | None:
    """Who wrote itself into the lock file; None: nobody, or it left in order."""
    try:
        holder = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) and {"host", "pid", "since", "machine"} <= holder.keys() else None


def _record(descriptor: int, holder: dict | None) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode() if holder else b"", 0)
    os.fsync(descriptor)


def _beats(path: Path) -> bool:
    """Whether somebody touches the file while we watch; clocks of machines are not compared."""
    print(
        f"{path.parent} was left by a run on another machine: watching for {BEATS_MISSED * BEAT:g} s whether it still lives",
        file=sys.stderr,
        flush=True,
    )
    before = _touched(path)
    for _ in range(BEATS_MISSED):
        time.sleep(BEAT)
        if _touched(path) != before:
            return True
    return False


def _touched(path: Path) -> int:
    with open(path) as file:  # opening makes NFS look
        return os.fstat(file.fileno()).st_mtime_ns


def _beat(descriptor: int, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with suppress(OSError):  # a file server that is away now may be back at the next beat
            os.utime(descriptor)


def _machine() -> str:
    return BOOT.read_text().strip() if BOOT.exists() else socket.gethostname()
