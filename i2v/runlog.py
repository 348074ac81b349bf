"""What a run says about itself: log.jsonl, TensorBoard events, one progress line, curves.png. Rank 0 only."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from i2v.atomic import write_whole
from i2v.curves import draw_curves, read_log
from i2v.metrics import Scores


def where(device: torch.device) -> dict[str, object]:
    """What the run is on: how many devices, and the machine of rank 0. It may be another after a continuation."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    devices = dist.get_world_size() if dist.is_initialized() else 1
    return {"devices": devices, "machine": f"{name}, {len(os.sched_getaffinity(0))} cores"}


class RunLog:
    """Measures and reports. Records after `step`, left by a run that was killed, are removed: they come again, and so does
    the validation after that step if it is still due."""

    def __init__(
        self, folder: Path, is_main: bool, step: int, samples: int, last_step: int, device: torch.device, validation_due: bool
    ):
        self.path, self.png = folder / "log.jsonl", folder / "curves.png"
        self.is_main, self.device = is_main, device
        self._where = where(device)
        self._waited, self._paused, self._since = 0.0, 0.0, time.perf_counter()
        self._samples = samples  # at the last report
        self._begin, self._first, self._last = time.perf_counter(), step, last_step
        if not is_main:
            return
        kept = [record for record in read_log(self.path) if record["step"] <= step]
        if validation_due:
            kept = [record for record in kept if record["step"] < step or "loss" in record]
        write_whole(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._events = SummaryWriter(folder, purge_step=step + 1)
        self._bar = tqdm(total=last_step, initial=step, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def say(self, text: str) -> None:
        if self.is_main:
            tqdm.write(text, file=sys.stderr) if sys.stderr.isatty() else print(text, file=sys.stderr, flush=True)

    def waiting_for(self, batches: Iterator) -> Iterator:
        """The batches; the time until each is there is waiting for data."""
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - begin
            if batch is None:
                return
            yield batch

    @contextmanager
    def pausing(self):
        """Time in here does not count as training."""
        begin = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begin

    def train(self, step: int, samples: int, epoch: float, lr: float, means: dict[str, float]) -> None:
        """Report the steps since the last report; means: over them, of the loss and of the gradient's norm."""
        now = time.perf_counter()
        elapsed = max(now - self._since - self._paused, 1e-9)
        record = {"step": step, "samples": samples, "epoch": round(epoch, 4), "lr": lr} | means
        record |= {"clips_per_s": round((samples - self._samples) / elapsed, 2), "data_wait": round(self._waited / elapsed, 4)}
        record |= self._where
        if self.device.type == "cuda":
            record["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        self._waited, self._paused, self._since, self._samples = 0.0, 0.0, now, samples
        self._write(record, (*means, "lr", "clips_per_s", "data_wait"), "train")
        left = (now - self._begin) / max(step - self._first, 1) * (self._last - step)  # validations included
        self._show(
            step,
            f"step {step}/{self._last}, {timedelta(seconds=round(left))} left  epoch {epoch:.2f}  loss {means['loss']:.4f}  "
            f"lr {lr:.2e}  {record['clips_per_s']:.1f} clips/s  data wait {100 * record['data_wait']:.0f} %",
        )

    def test(self, step: int, epoch: float, found: dict[str, Scores]) -> None:
        """Report an evaluation; found: scores of the weights, and of their average, by what its figures begin with."""
        record, named = {"step": step, "epoch": round(epoch, 4)}, []
        for prefix, scores in found.items():
            figures = {prefix + name: value for name, value in scores.summary().items()}
            record |= figures
            named += [name for name in figures if not name.endswith(("counted", "expected"))]
            missing = "" if scores.counted == scores.expected else "  (the others are in quarantine)"
            self.say(
                f"step {step}  epoch {epoch:.2f}  {'average of the weights: ' if prefix else ''}"
                f"{scores.words()}  counted {scores.counted} of {scores.expected} videos{missing}"
            )
        self._validated(record, named)

    def figures(self, step: int, epoch: float, found: dict[str, float], line: str) -> None:
        """Report a validation of another kind: its figures by name, and in words."""
        self.say(f"step {step}  epoch {epoch:.2f}  {line}")
        self._validated({"step": step, "epoch": round(epoch, 4)} | found, found)

    def _validated(self, record: dict, named: Iterable[str]) -> None:
        self._write(record, named, "val")
        if self.is_main:
            draw_curves(self.path, self.png)

    def close(self) -> None:
        if self.is_main:
            draw_curves(self.path, self.png)
            self._events.close()
            self._bar.close()

    def _write(self, record: dict, keys: Iterable[str], group: str) -> None:
        if not self.is_main:
            return
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        for key in keys:
            self._events.add_scalar(f"{group}/{key}", record[key], record["step"])

    def _show(self, step: int, line: str) -> None:
        if not self.is_main:
            return
        if self._bar.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.set_postfix_str(line.split("  ", 1)[1], refresh=False)
            self._bar.update(step - self._bar.n)
