"""A step whose loss or gradient is not finite is not taken, and the device is not stopped to find out.

The device decides: a flag keeps the optimizer, the average and the batch norms' statistics as they were. The host reads
the flag one step later, when it is long there, writes down whose clips these were, and ends the run when it happens too
often in a row; by then the device has refused the steps in between, so the state is still that before the first.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from i2v.progress import Progress

COLUMNS = ("step", "position", "id", "key", "what")


class TooManyBadSteps(FloatingPointError):
    """So many steps in a row could not be taken that the run ends."""


@dataclass
class Seen:
    """What a forward pass was of, for the case that something is wrong with it."""

    positions: torch.Tensor  # (B,) places in the stream, on the CPU
    ids: torch.Tensor  # (B,) on the CPU
    fine: torch.Tensor  # (B,) bool: the loss is finite; on the device


@dataclass
class _Notice:
    """A step that the host has not looked at yet."""

    step: int
    samples: int
    flags: torch.Tensor  # (3,) on the CPU, when `there` has happened: bad, because of the loss, bad steps in a row
    there: torch.cuda.Event | None
    seen: list[Seen]


class Guard:
    """Decides on the device which steps are taken.

    path: a CSV of the clips of bad steps, shared by the ranks. limit: so many bad steps in a row end the run. progress: is
    told, up to date after `look(everything=True)`. key: of a clip, by its id. say: is given a sentence for each bad step.
    """

    def __init__(
        self,
        path: Path,
        limit: int,
        progress: Progress,
        device: torch.device,
        key: Callable[[int], str],
        say: Callable[[str], None],
    ):
        self.path, self.limit, self.progress, self.key, self.say = path, limit, progress, key, say
        self._in_a_row = torch.tensor(progress.bad_in_a_row, device=device)
        self._pending: list[_Notice] = []
        self._written = set(_read(path).splitlines()) if path.exists() else set()

    def judge(self, loss: torch.Tensor, norm: torch.Tensor, scale: torch.Tensor | None, seen: list[Seen]) -> torch.Tensor:
        """Whether the step may be taken: () bool on the device. loss, norm: () of all ranks together.

        scale: of the loss, in fp16. A gradient that is too large for fp16 with a finite loss is the scaler's matter: the
        step is not taken, and counts neither way.
        """
        bad_loss, bad_norm = ~loss.isfinite(), ~norm.isfinite()
        too_large = bad_norm & ~bad_loss & (scale > 1) if scale is not None else torch.zeros_like(bad_loss)
        over = self._in_a_row >= self.limit
        bad = (bad_loss | bad_norm) & ~too_large
        self._in_a_row = torch.where(over | too_large, self._in_a_row, torch.where(bad, self._in_a_row + 1, 0))
        flags, there = torch.stack((bad & ~over, bad_loss, self._in_a_row)), None
        if flags.is_cuda:
            flags = torch.empty(3, dtype=flags.dtype, pin_memory=True).copy_(flags, non_blocking=True)
            there = torch.cuda.Event()
            there.record()
        self._pending.append(_Notice(self.progress.step + 1, self.progress.samples, flags, there, seen))
        return ~(bad | over | too_large)

    def look(self, clips: int, everything: bool = False) -> None:
        """Read what the device found: of all steps but the last one, or of everything; clips: in a step.

        Raises TooManyBadSteps on all ranks alike, with the progress back at the last step that was taken.
        """
        while len(self._pending) > (0 if everything else 1):
            notice = self._pending.pop(0)
            if notice.there is not None:
                notice.there.synchronize()
            bad, bad_loss, in_a_row = notice.flags.tolist()
            self.progress.bad_in_a_row = in_a_row
            if not bad:
                if not in_a_row:
                    self.progress.good = [notice.step, notice.samples + clips]
                continue
            what = "loss" if bad_loss else "gradient"
            self._write_down(notice, what)
            self.say(f"WARNING: step {notice.step} is not taken: its {what} is not finite; its clips are in {self.path}")
            if in_a_row >= self.limit:
                self._pending.clear()
                self.progress.go_back()
                raise TooManyBadSteps(
                    f"{self.limit} steps in a row up to step {notice.step} had a loss or gradient that is not finite, and "
                    f"were not taken; their clips are in {self.path}"
                )

    def _write_down(self, notice: _Notice, what: str) -> None:
        """The clips whose loss it is; for a gradient all that this rank had in the step."""
        rows = []
        for seen in notice.seen:
            for position, clip, fine in zip(seen.positions.tolist(), seen.ids.tolist(), seen.fine.tolist()):
                if what == "gradient" or not fine:
                    rows.append((notice.step, position, clip, self.key(clip), what))
        new = not self.path.exists()
        with open(self.path, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(_Once(file, self._written)).writerows([COLUMNS] * new + rows)


class _Once:
    """A file to which each line goes once: a continued run comes to the same bad step again."""

    def __init__(self, file, written: set[str]):
        self.file, self.written = file, written

    def write(self, line: str) -> None:
        if line.rstrip("\r\n") not in self.written:
            self.file.write(line)
            self.written.add(line.rstrip("\r\n"))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape")
