"""Other processes: how they are started, and waiting for them as long as it takes. A limit is for tests that would hang, not
for slow machines."""

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 600  # seconds
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def on_ranks(ranks: int, *program) -> list[str]:
    """The command that runs a program, `-m` and a module or a file, with its arguments: by torchrun if ranks > 1."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, *map(str, program)]


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
