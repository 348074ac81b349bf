"""Waiting for other processes and threads, as long as it takes: a limit is for tests that would hang, not for slow machines."""

import time
from pathlib import Path

LIMIT = 600  # seconds


def wait_for(condition) -> None:
    """Until condition() is true. Fails after LIMIT."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended (one that nobody has asked for its exit code yet has, too)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
