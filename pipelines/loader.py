"""From a plan to torch batches: read the bytes ahead in threads, run the graph, keep bad clips from stopping a run.

A batch is a pure function of its step. So when a decoder refuses a clip, the clip goes to the quarantine, the
pipeline is rebuilt at the same step, and the same batch comes again with weight 0 in that place: every rank stays
aligned, and nothing is substituted silently.
"""

from __future__ import annotations

import csv
import difflib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from pipelines.graph import GraphOptions, build_pipeline, choose_decoder
from pipelines.plan import ClipOptions, ClipSpec, Plan
from pipelines.shards import ClipError, ShardError, ShardSet

READ_THREADS = 4
READ_AHEAD = 3  # batches whose bytes are being read while DALI works
BAD_FRACTION, BAD_CLIPS = 0.001, 5  # a run stops when more than the larger of the two are in quarantine


@dataclass
class Batch:
    """B samples. clips is float, normalised with CLIP's mean and std; its memory is channels-last."""

    clips: torch.Tensor  # (B, 3, T, H, W); with several views (B, V, 3, T, H, W)
    labels: torch.Tensor  # (B,) int64; -1: not labelled
    weights: torch.Tensor  # (B,) float32; 0: a bad clip, or filling after the last video
    ids: torch.Tensor  # (B,) int64, on the CPU: the number of the video in the data set
    samples_seen: int  # `start` for the loader that continues after this batch


def build_loader(
    manifest,
    split: str = "train",
    options: ClipOptions | dict | None = None,
    batch_size: int = 8,
    device: str = "auto",
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    *,
    decode: str = "auto",
    seed: int = 0,
    threads: int | None = None,
    quarantine: str | os.PathLike | None = None,
    **more_options,
) -> Loader:
    """Batches of clips from a sharded data set.

    manifest: the folder that make_shards wrote, or its manifest.json. split: "train" (endless: a new order each epoch),
    "val" (each video once, in order, one centre view) or "test" (each video once, clips x crops views).
    options, more_options: fields of ClipOptions (frames, crops, views) and GraphOptions (interpolation, antialias, dtype).
    batch_size: samples per rank and batch. device: where clips are made: cpu, gpu or auto. decode: where videos are
    decoded: cpu, gpu or auto. start: samples that all ranks together have seen before. quarantine: a CSV to
    which bad clips are written, and which is honoured when it exists.
    Raises TypeError for unknown options, ValueError for wrong values, ShardError for a data set that cannot be used.
    """
    given = _as_dict(options)
    twice = given.keys() & more_options.keys()
    if twice:
        raise TypeError(f"Clip option {min(twice)!r} is given twice: in options and as a keyword.")
    given |= more_options
    clip_options = ClipOptions(**_pick(ClipOptions, given))
    _refuse_unknown(given)
    for name, value, least in (("batch_size", batch_size, 1), ("world_size", world_size, 1), ("start", start, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} is {value!r}: it must be a whole number, at least {least}.")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}: it must be between 0 and {world_size - 1}.")
    shards = ShardSet(manifest)
    facts = (shards.clips[name] for name in ("frames", "width", "height", "fps"))
    plan = Plan(*facts, clip_options, split, seed)
    device = _choose_device(device)
    graph = GraphOptions(**{**_pick(GraphOptions, given), "size": clip_options.size, "crops": plan.crops})
    decode = choose_decoder(shards.codec, device, decode)
    quarantine = Path(quarantine) if quarantine is not None else None
    return Loader(shards, plan, graph, batch_size, device, decode, rank, world_size, start, threads or _cores(), quarantine)


class Loader:
    """Iterate over it for batches; see build_loader. Each iteration begins at `start` again."""

    def __init__(self, shards, plan, graph, batch_size, device, decode, rank, world_size, start, threads, quarantine):
        self.shards: ShardSet = shards
        self.plan: Plan = plan
        self.graph: GraphOptions = graph
        self.batch_size, self.device, self.decode = batch_size, device, decode
        self.rank, self.world_size, self.start = rank, world_size, start
        self.threads = threads
        self.quarantine = quarantine
        self.bad: dict[int, str] = _read_quarantine(quarantine, shards)  # clip id -> reason
        self._labels = np.array(shards.clips["label"], dtype=np.int64)
        self._mirrored = _swapped(self._labels, plan.options.flip_labels, len(shards.classes))

    def __len__(self) -> int:
        """Batches of one evaluation; training has no end."""
        if self.plan.split == "train":
            raise TypeError("A training loader has no length: it runs on across epochs.")
        return -(-max(len(self.plan) - self.start, 0) // (self.batch_size * self.world_size))

    def __iter__(self):
        step = 0
        with ThreadPoolExecutor(READ_THREADS) as readers:
            while True:
                in_flight: deque[_Prepared] = deque()
                try:
                    for batch in self._run(step, readers, in_flight):
                        yield batch
                        step += 1
                    return
                except ShardError:
                    raise
                except RuntimeError as error:  # what DALI raises for a clip that it cannot decode
                    self._quarantine_undecodable(in_flight, error)

    def positions(self, step: int) -> range:
        """Absolute positions in the stream of this rank's batch at a step."""
        first = self.start + (step * self.world_size + self.rank) * self.batch_size
        return range(first, first + self.batch_size)

    def _run(self, step: int, readers: ThreadPoolExecutor, in_flight: deque):
        """Batches from `step` on; in_flight: what the graph has been given and has not delivered."""
        last = None if self.plan.split == "train" else len(self)
        reading: deque[_Prepared] = deque()
        submitted = step

        def source():
            nonlocal submitted
            while len(reading) < READ_AHEAD and (last is None or submitted < last):
                reading.append(self._submit(submitted, readers))
                submitted += 1
            if not reading:
                raise StopIteration
            prepared = reading.popleft()
            clips = prepared.wait()
            in_flight.append(prepared)
            return tuple(map(list, zip(*(clip.graph_inputs() for clip in clips))))

        pipeline = self._pipeline(source, self.batch_size)
        stream = torch.cuda.current_stream() if self.device == "gpu" else None
        try:
            while True:
                try:
                    (output,) = pipeline.run(stream)
                except StopIteration:
                    return
                yield self._batch(output, in_flight.popleft())
        finally:
            for prepared in reading:
                prepared.cancel()

    def _pipeline(self, source, batch_size: int):
        device_id = torch.cuda.current_device() if self.device == "gpu" else 0
        pipeline = build_pipeline(source, self.graph, batch_size, self.device, self.decode, device_id, self.threads)
        pipeline.build()
        return pipeline

    def _submit(self, step: int, readers: ThreadPoolExecutor) -> _Prepared:
        positions = self.positions(step)
        seen = self.start + (step + 1) * self.batch_size * self.world_size
        if self.plan.split != "train":
            seen = min(seen, len(self.plan))
        return _Prepared([readers.submit(self._read, position) for position in positions], seen)

    def _read(self, position: int) -> _Clip:
        """The clip at a position; weight 0 and harmless pixels where it is known or found to be bad."""
        spec = self.plan[position]
        if spec.weight and spec.id not in self.bad:
            try:
                data, frames = self.shards.read(spec.id, spec.frames)
                return _Clip(spec, data, frames)
            except ClipError as error:
                self._add_bad(spec.id, error.reason)
        return self._stand_in(spec)

    def _stand_in(self, spec: ClipSpec) -> _Clip:
        """Weight 0, and pixels that surely decode."""
        clip = self.shards.sound_clip
        data, _ = self.shards.read(clip, np.array([0]))
        whole = np.array([0, 0, self.plan.heights[clip], self.plan.widths[clip]], dtype=np.float32)
        spec = replace(spec, frames=np.zeros_like(spec.frames), boxes=np.tile(whole, (self.plan.crops, 1)), weight=0.0)
        return _Clip(spec, data, spec.frames)

    def _batch(self, output, prepared: _Prepared) -> Batch:
        clips = prepared.wait()
        specs = [clip.spec for clip in clips]
        pixels = torch.from_dlpack(output.as_tensor())  # (B, crops, clips * T, H, W, 3)
        views = self.plan.crops * self.plan.clips
        pixels = pixels.view(len(specs), views, -1, *pixels.shape[3:]).permute(0, 1, 5, 2, 3, 4)  # (B, V, 3, T, H, W)
        labels = [(self._mirrored if spec.flip else self._labels)[spec.id] for spec in specs]
        return Batch(
            clips=pixels[:, 0] if views == 1 else pixels,
            labels=self._to_device(torch.tensor(labels)),
            weights=self._to_device(torch.tensor([spec.weight for spec in specs])),
            ids=torch.tensor([spec.id for spec in specs]),
            samples_seen=prepared.samples_seen,
        )

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to("cuda", non_blocking=True) if self.device == "gpu" else tensor

    def _quarantine_undecodable(self, in_flight: deque, error: RuntimeError) -> None:
        """Find the clips that the decoder refuses, each decoded on its own; raise `error` if it is none of them."""
        found = False
        suspects = [clip for prepared in in_flight for clip in prepared.wait() if clip.spec.weight]
        if suspects and self._decodes(self._stand_in(suspects[0].spec)):
            for clip in suspects:
                if clip.spec.id not in self.bad and not self._decodes(clip):
                    self._add_bad(clip.spec.id, "the decoder refuses it")
                    found = True
        if not found:
            raise error

    def _decodes(self, clip: _Clip) -> bool:
        try:
            self._pipeline(lambda: tuple([part] for part in clip.graph_inputs()), 1).run()
            return True
        except RuntimeError:
            return False

    def _add_bad(self, clip_id: int, reason: str) -> None:
        self.bad[clip_id] = reason
        if self.quarantine is not None:
            _append_quarantine(self.quarantine, clip_id, self.shards, reason)
            self.bad |= _read_quarantine(self.quarantine, self.shards)  # what other ranks found counts as well
        allowed = max(BAD_CLIPS, int(BAD_FRACTION * len(self.shards)))
        if len(self.bad) > allowed:
            names = "; ".join(f"{self.shards.key(i)}: {why}" for i, why in list(self.bad.items())[:10])
            raise ShardError(
                f"{len(self.bad)} of {len(self.shards)} clips in {self.shards.root} are bad, more than the {allowed} that are "
                f"tolerated: restore the shards or make them again ({names})."
            )


@dataclass
class _Clip:
    spec: ClipSpec
    data: np.ndarray  # (bytes,) uint8
    frames: np.ndarray  # (clips * T,) int32, positions in `data`

    def graph_inputs(self):
        return self.data, self.frames, self.spec.boxes, np.array([self.spec.flip], dtype=np.int32)


@dataclass
class _Prepared:
    """A batch whose clips are being read."""

    futures: list[Future]
    samples_seen: int

    def wait(self) -> list[_Clip]:
        return [future.result() for future in self.futures]

    def cancel(self) -> None:
        for future in self.futures:
            future.cancel()


# ---- options ---------------------------------------------------------------------------------------------------------


def _as_dict(options) -> dict:
    if options is None:
        return {}
    return dict(options) if isinstance(options, dict) else {f.name: getattr(options, f.name) for f in fields(options)}


def _pick(kind, given: dict) -> dict:
    return {f.name: given[f.name] for f in fields(kind) if f.name in given}


def _refuse_unknown(given: dict) -> None:
    known = {f.name for kind in (ClipOptions, GraphOptions) for f in fields(kind)}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}."
            raise TypeError(f"Unknown clip option {name!r}: {hint}")


def _swapped(labels: np.ndarray, pairs, classes: int) -> np.ndarray:
    """The labels of mirrored videos."""
    outside = [label for pair in pairs for label in pair if label >= classes]
    if outside:
        raise ValueError(f"flip_labels has {outside[0]}, but there are {classes} classes: labels run from 0 to {classes - 1}.")
    swapped = labels.copy()
    for a, b in pairs:
        swapped[labels == a], swapped[labels == b] = b, a
    return swapped


def _choose_device(device: str) -> str:
    if device not in ("auto", "cpu", "gpu"):
        raise ValueError(f"device is {device!r}: it must be auto, cpu or gpu.")
    if device == "gpu" and not torch.cuda.is_available():
        raise ValueError("device is gpu, but torch finds no CUDA device: set device to cpu or auto.")
    return ("gpu" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _cores() -> int:
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


# ---- quarantine file -------------------------------------------------------------------------------------------------


def _read_quarantine(path: Path | None, shards: ShardSet) -> dict[int, str]:
    """Clip id -> reason. Rows of another data set, told by the checksum of the clip's header, do not count."""
    if path is None or not path.exists():
        return {}
    with open(path, newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 4 and row[0].isdigit() and int(row[0]) < len(shards)]
    return {int(row[0]): row[3] for row in rows if row[2] == str(shards.clips["header_crc"][int(row[0])])}


def _append_quarantine(path: Path, clip_id: int, shards: ShardSet, reason: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="") as file:  # one short append per clip: safe when several ranks share the file
        writer = csv.writer(file)
        if new:
            writer.writerow(["id", "key", "header_crc", "reason"])
        writer.writerow([clip_id, shards.key(clip_id), shards.clips["header_crc"][clip_id], reason])
