"""Who keeps the others waiting? A rank that hangs (a file server, a device) says nothing; the ranks that wait name it.

Each rank counts what it has begun, and a thread leaves that count in the launcher's store. Whoever has waited for too long
looks at the counts of all: the one that is behind is waited for. Nothing is ended: a store may come back.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import torch.distributed as dist

from i2v.distributed import World

LOOKS = 4  # in the time after which a rank counts as stalled


class Watch:
    """seconds: how long a rank may keep the others waiting before it is named. say: is given the sentence.

    One process has nobody to wait for: then it does nothing.
    """

    def __init__(self, world: World, seconds: float, say: Callable[[str], None]):
        self._at = (0, "starts", time.monotonic())
        self._over, self._thread = threading.Event(), None
        if world.store is None:
            return
        self.world, self.seconds, self.say = world, seconds, say
        self._store = dist.PrefixStore("watch", world.store.clone())  # a thread needs a connection of its own
        self._leave_note()
        self._thread = threading.Thread(target=self._look_around, daemon=True)
        self._thread.start()

    def begin(self, what: str) -> None:
        """This rank begins something that all ranks begin, in the same order."""
        self._at = (self._at[0] + 1, what, time.monotonic())

    def reading(self, batches: Iterable) -> Iterator:
        """The batches; the time until each is there is reading, the time after it working."""
        iterator = iter(batches)
        while True:
            self.begin("reads its next clips")
            batch = next(iterator, None)
            self.begin("works on its clips")
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _leave_note(self) -> None:
        count, what, _ = self._at
        note = {"count": count, "what": what, "host": socket.gethostname(), "pid": os.getpid()}
        self._store.set(str(self.world.rank), json.dumps(note))

    def _look_around(self) -> None:
        named = None  # what was said last, so that it is said once
        try:
            while not self._over.wait(self.seconds / LOOKS):
                self._leave_note()
                if time.monotonic() - self._at[2] < self.seconds:
                    continue
                late = self._late()
                if late and late != named:
                    self.say(late)
                named = late
        except RuntimeError:  # the launcher, and its store with it, is gone: this process will be told
            return

    def _late(self) -> str | None:
        """Who is behind, if it is for this rank to say: for the first of those that wait."""
        keys = [str(rank) for rank in range(self.world.size)]
        if not self._store.check(keys):
            return None
        notes = [json.loads(note) for note in self._store.multi_get(keys)]
        least = min(note["count"] for note in notes)
        waiting = [rank for rank, note in enumerate(notes) if note["count"] > least]
        if not waiting or waiting[0] != self.world.rank:
            return None
        late = [
            f"process {rank} (pid {note['pid']} on {note['host']}), which {note['what']}"
            for rank, note in enumerate(notes)
            if note["count"] == least
        ]
        return f"WARNING: the run has waited {self.seconds:g} s or longer for {' and '.join(late)}"
