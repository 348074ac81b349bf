"""When a run is told to stop: by the user (Ctrl-C), by the cluster (SIGTERM), or ahead of time by Slurm (SIGUSR1)."""

from __future__ import annotations

import os
import signal
import sys

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(Exception):
    """The run was told to stop, and all ranks have agreed to; what is finished can be saved."""


class StopSignal:
    """Remembers that one of the signals came, and acknowledges Ctrl-C. A second Ctrl-C stops at once.

    interrupted: it was Ctrl-C, by a person, whose next command should not follow as if this one had ended.

    Until `begin` is called nothing is done that could be lost: then a signal ends the program there and then, with 0.
    """

    def __init__(self):
        self.wanted, self._begun, self.interrupted = False, False, False
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def begin(self) -> None:
        """From now on somebody looks at `wanted`."""
        self._begun = True

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _):
        if number == signal.SIGINT and (self.wanted or not self._begun):
            raise KeyboardInterrupt
        if not self._begun:
            print("stopped at the start: the same command begins where it would have", file=sys.stderr, flush=True)
            raise SystemExit(0)
        self.wanted = True
        if number == signal.SIGINT:
            self.interrupted = True
            os.write(
                2, b"\nstopping after this step, with the state saved; Ctrl-C once more ends at once\n"
            )  # print might be busy
