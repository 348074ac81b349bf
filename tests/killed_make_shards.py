"""make_shards, that sends itself a signal in mid-write: python killed_make_shards.py SIGNAL WRITE ARGUMENTS...

WRITE counts the calls that write to a tar or a journal, from 0; that one has written half of its bytes by then.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from i2v.shard_tools import writer

write = writer._write
calls = 0


def write_or_death(descriptor, data):
    global calls
    if calls == at:
        write(descriptor, data[: len(data) // 2])
        os.kill(os.getpid(), number)
    calls += 1
    write(descriptor, data)


if __name__ == "__main__":  # the workers import this file, too
    number, at = getattr(signal, sys.argv[1]), int(sys.argv[2])
    writer._write = write_or_death
    sys.argv[1:] = sys.argv[3:]
    runpy.run_path(str(ROOT / "shard_tools" / "make_shards.py"), run_name="__main__")
