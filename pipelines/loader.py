"""From a plan to torch batches: read the bytes ahead in threads, run the graph, keep bad clips from stopping a run.

A batch is a pure function of its step. So when a decoder refuses a clip, the clip goes to the quarantine, the
pipeline is rebuilt at the same step, and the same batch comes again with weight 0 in that place: every rank stays
aligned, and nothing is substituted silently.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from i2v.pipelines.augment import AugmentOptions
from i2v.pipelines.decode import DecodeError, decode_clip
from i2v.pipelines.graph import MEAN, STD, GraphOptions, build_pipeline, choose_decoder, reader_resizes
from i2v.pipelines.joined import JoinedShards
from i2v.pipelines.options import ClipOptions, OrderOptions
from i2v.pipelines.plan import ClipSpec, Plan
from i2v.pipelines.quarantine import Quarantine
from i2v.pipelines.resize import crop_and_resize
from i2v.pipelines.shards import ClipError, ShardError
from i2v.pipelines.source import ClipSource
from i2v.pipelines.stream import fingerprint, open_sources, training_order

READ_THREADS = 4
READ_AHEAD = 8  # at most so many batches are being read while DALI works, and no more bytes than `prefetch_bytes`
STAGE_EVERY = 16  # steps between two looks at what a remote data set will have to stage


@dataclass
class Batch:
    """B samples. `clips` is float, normalised with CLIP's mean and std; its memory is channels-last."""

    pixels: torch.Tensor  # as `clips`, or uint8 and not normalised yet
    labels: torch.Tensor  # (B,) int64; -1: not labelled
    weights: torch.Tensor  # (B,) float32; 0: a bad clip, or filling after the last video
    ids: torch.Tensor  # (B,) int64, on the CPU: the number of the video in the data set
    samples_seen: int  # `start` for the loader that continues after this batch
    frames: torch.Tensor | None = None  # (B, clips * T) int64, on the CPU: which stored frames these are
    positions: torch.Tensor | None = None  # (B,) int64, on the CPU: places in the stream

    @property
    def clips(self) -> torch.Tensor:
        """(B, 3, T, H, W); with several views (B, V, 3, T, H, W)."""
        return _normalised(self.pixels) if self.pixels.dtype == torch.uint8 else self.pixels

    def views(self, at_once: int) -> Iterator[torch.Tensor]:
        """All views, (B, v, 3, T, H, W) each, with B * v at most `at_once` (or v = 1): normalised as they come."""
        pixels = self.pixels if self.pixels.ndim == 6 else self.pixels.unsqueeze(1)
        for part in pixels.split(max(1, at_once // len(pixels)), dim=1):
            yield _normalised(part) if part.dtype == torch.uint8 else part


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
    cache: str | os.PathLike | None = None,
    cache_size: int | str | None = None,
    sample_weights: str | os.PathLike | np.ndarray | None = None,
    prefetch_bytes: int = 1 << 30,
    **more_options,
) -> Loader:
    """Batches of clips from a sharded data set, or from another source of clips.

    manifest: the folder or URL that make_shards wrote to, or its manifest.json; for training also a list of them, or of
    {"path": ..., "weight": ...}, the weights being shares of the stream; or an open ClipSource.
    split: "train" (endless: a new order each epoch),
    "val" (each video once, in order, one centre view), "test" (each video once, clips x crops views) or "windows" (each
    video once, as many windows as it is long).
    options, more_options: fields of ClipOptions (frames, crops, views), AugmentOptions (RandAugment, colours, erasing),
    OrderOptions (shuffling, balance, repeats) and GraphOptions (interpolation, antialias, dtype).
    batch_size: samples per rank and batch. device: where clips are made: cpu, gpu or auto. decode: where videos are
    decoded: cpu, gpu or auto. start: samples that all ranks together have seen before. quarantine: a CSV in
    which bad clips are written down, and in which the ranks and continuations of a run count them together. cache,
    cache_size: where shards of a URL are staged, and how much of it they may fill (see ShardSet). sample_weights: how often
    each video is wanted, relatively: (n,), or a .npy of it, or a CSV of key,weight. prefetch_bytes: of compressed clips
    that wait for the decoder, per process.
    Raises TypeError for unknown options, ValueError for wrong values, ShardError for a data set that cannot be used.
    """
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        raise ShardError("NVIDIA DALI is not installed: pip install 'i2v[cuda13]', or [cuda12] (`i2v doctor` tells which).")
    given = _as_dict(options)
    twice = given.keys() & more_options.keys()
    if twice:
        raise TypeError(f"Clip option {min(twice)!r} is given twice: in options and as a keyword.")
    given |= more_options
    clip_options, order_options, augment = (_pick(kind, given) for kind in (ClipOptions, OrderOptions, AugmentOptions))
    _refuse_unknown(given)
    numbers = {
        "batch_size": (batch_size, 1),
        "world_size": (world_size, 1),
        "rank": (rank, 0),
        "start": (start, 0),
        "seed": (seed, 0),
        "threads": (1 if threads is None else threads, 1),
        "prefetch_bytes": (prefetch_bytes, 1),
    }
    for name, (value, least) in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} is {value!r}: it must be a whole number, at least {least}.")
    if rank >= world_size:
        raise ValueError(f"rank is {rank}: it must be between 0 and {world_size - 1}.")
    sets, shares = open_sources(manifest, split, cache, cache_size)
    shards = sets[0] if len(sets) == 1 else JoinedShards(sets)
    order = None
    if split == "train":
        order = training_order(shards, sets, shares, order_options, seed, sample_weights)
    facts = (shards.clips[name] for name in ("frames", "width", "height", "fps"))
    epoch = order_options.epoch_clips or len(shards) * order_options.repeats
    plan = Plan(*facts, clip_options, split, seed, order=order, augment=augment, times=shards.times, epoch_clips=epoch)
    device = _choose_device(device)
    views = plan.clips * plan.crops
    graph = _fields(GraphOptions, given) | {"size": clip_options.size, "crops": plan.crops, "augment": plan.augment}
    # Many views take much memory as floats: they are normalised when they are looked at (Batch.views).
    graph = GraphOptions(**graph | ({"dtype": "uint8"} if views > 1 else {}))
    least_side = int(min(shards.clips["width"].min(), shards.clips["height"].min()))
    decoders = {choose_decoder(codec, device, decode, least_side) for codec in shards.codecs}
    if len(decoders) > 1 and "gpu" not in decoders:
        decoders = {"reader"}  # it takes every codec
    if len(decoders) > 1:
        raise ValueError(f"{shards.root} are of codecs that are decoded in different places: set decode to cpu.")
    return Loader(
        shards=shards,
        plan=plan,
        graph=graph,
        batch_size=batch_size,
        device=device,
        decode=decoders.pop(),
        rank=rank,
        world_size=world_size,
        start=start,
        threads=threads or _cores(),
        quarantine=Quarantine(quarantine, shards),
        prefetch_bytes=prefetch_bytes,
    )


@dataclass(eq=False)
class Loader:
    """Iterate over it for batches; see build_loader. Each iteration begins at `start` again."""

    shards: ClipSource
    plan: Plan
    graph: GraphOptions
    batch_size: int
    device: str
    decode: str
    rank: int
    world_size: int
    start: int
    threads: int
    quarantine: Quarantine
    prefetch_bytes: int
    only: np.ndarray | None = None  # of an evaluation: to which positions, in order, this loader keeps; None: all

    def __post_init__(self):
        self._labels = np.array(self.shards.clips["label"], dtype=np.int64)
        self._mirrored = self._labels
        if self.plan.split == "train":  # nothing else is mirrored, and what is predicted on may have no classes at all
            self._mirrored = _swapped(self._labels, self.plan.options.flip_labels, len(self.shards.classes))
        self._refused: set[int] = set()  # positions whose clips the decoder does not take
        self._batch_bytes = 0  # of the largest batch so far
        self._seen = self.start  # by all ranks, with the batch that was given last

    @property
    def bad(self) -> dict[int, str]:
        """Clips that could not be used, and why."""
        return self.quarantine.bad

    def __len__(self) -> int:
        """Batches of one evaluation; training has no end."""
        if self.plan.split == "train":
            raise TypeError("A training loader has no length: it runs on across epochs.")
        return -(-max(self._end - self.start, 0) // (self.batch_size * self.world_size))

    @property
    def _end(self) -> int:
        return len(self.plan if self.only is None else self.only)

    def __iter__(self):
        step, readers = 0, ThreadPoolExecutor(max(READ_THREADS, self.threads))
        try:
            while True:
                in_flight: deque[_Prepared] = deque()
                try:
                    for batch in self._run(step, readers, in_flight):
                        self._seen = batch.samples_seen
                        yield batch
                        step += 1
                    return
                except ShardError:
                    raise
                except RuntimeError as error:  # what DALI raises for a clip that it cannot decode
                    reason = " ".join(str(error).split())[:300]
                self._find_undecodable(in_flight, reason)  # here, where nothing holds the old pipeline any more
        finally:
            readers.shutdown(wait=False, cancel_futures=True)

    def state_dict(self) -> dict:
        """Where in the data this is, after the batch that was given last: JSON can hold it, and all ranks have the same.

        With load_state_dict the protocol of torchdata's Stateful. An evaluation that is done begins anew.
        """
        done = self.plan.split != "train" and self._seen >= self._end
        return {"samples_seen": 0 if done else self._seen, "data": self.fingerprint()}

    def load_state_dict(self, state: dict) -> None:
        """Let the next iteration go on from there, with any batch size and number of ranks. ValueError for other data."""
        if not isinstance(state, dict) or state.keys() != {"samples_seen", "data"}:
            raise ValueError(f"{state!r:.200} is no state of a loader: give what state_dict() returned.")
        if state["data"] != self.fingerprint():
            raise ValueError(f"The state is of other videos than {self.shards.root} has, or of other weights: begin anew.")
        self.start = self._seen = state["samples_seen"]

    def fingerprint(self) -> dict:
        """Which videos these are and how often each comes, wherever they lie: what a run must not change midway."""
        return fingerprint(self.shards, self.plan.order if self.plan.split == "train" else None)

    def positions(self, step: int) -> Sequence[int]:
        """Absolute positions in the stream of this rank's batch at a step; what is behind the last one fills its batch."""
        first = self.start + (step * self.world_size + self.rank) * self.batch_size
        return self._positions(first, first + self.batch_size)

    def _positions(self, first: int, end: int) -> Sequence[int]:
        if self.only is None:
            return range(first, end)
        wanted = self.only[first:end].tolist()
        behind = int(self.only[-1]) + 1 + max(first - len(self.only), 0)
        return wanted + list(range(behind, behind + end - first - len(wanted)))

    def _run(self, step: int, readers: ThreadPoolExecutor, in_flight: deque):
        """Batches from `step` on; in_flight: what the graph has been given and has not delivered."""
        last = None if self.plan.split == "train" else len(self)
        reading: deque[_Prepared] = deque()
        submitted = step

        def source():
            nonlocal submitted
            while len(reading) < self._read_ahead() and (last is None or submitted < last):
                if (submitted - step) % STAGE_EVERY == 0:
                    self._stage(submitted)
                reading.append(self._submit(submitted, readers))
                submitted += 1
            if not reading:
                raise StopIteration
            prepared = reading.popleft()
            clips = prepared.wait()
            self._batch_bytes = max(self._batch_bytes, sum(clip.data.nbytes for clip in clips))
            in_flight.append(prepared)
            return tuple(map(list, zip(*(clip.graph_inputs() for clip in clips))))

        pipeline = self._pipeline(source, self.batch_size, self.graph)
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
            _finish(pipeline)

    def _pipeline(self, source, batch_size: int, graph: GraphOptions):
        device_id = torch.cuda.current_device() if self.device == "gpu" else 0
        pipeline = build_pipeline(source, graph, batch_size, self.device, self.decode, device_id, self.threads)
        pipeline.build()
        return pipeline

    def _read_ahead(self) -> int:
        """How many batches may be under way, judged by the largest so far; at least one."""
        return max(1, min(READ_AHEAD, self.prefetch_bytes // self._batch_bytes)) if self._batch_bytes else 1

    def _stage(self, step: int) -> None:
        """Tell a remote data set which shards it will need."""
        if not self.shards.remote:
            return
        position = self.start + step * self.batch_size * self.world_size
        horizon = self._horizon()
        if self.plan.split == "train":
            ahead = self.plan.order.shards_ahead(position, horizon)
        else:
            ids = [self.plan.locate(p)[1] for p in self._positions(position, min(position + horizon, self._end))]
            ahead = list(dict.fromkeys(self.shards.clips["shard"][ids].tolist()))
        self.shards.expect(ahead)

    def _horizon(self) -> int:
        """Positions to look ahead: until the next look, and a few shards more."""
        per_shard = -(-len(self.shards) // (int(self.shards.clips["shard"][-1]) + 1))
        return 2 * STAGE_EVERY * self.batch_size * self.world_size + 4 * per_shard

    def _submit(self, step: int, readers: ThreadPoolExecutor) -> _Prepared:
        positions = self.positions(step)
        seen = self.start + (step + 1) * self.batch_size * self.world_size
        if self.plan.split != "train":
            seen = min(seen, self._end)
        return _Prepared([readers.submit(self._read, position) for position in positions], positions, seen)

    def _read(self, position: int) -> _Clip:
        """The clip at a position; weight 0 and harmless pixels where it cannot be used."""
        spec = None
        try:
            spec = self.plan[position]
            if spec.weight and position not in self._refused:
                return self._decoded(_Clip(spec, *self.shards.read(spec.id, spec.frames)))
        except DecodeError:
            self.quarantine.add(spec.id, "the decoder refuses it")
        except ClipError as error:
            spec = spec or self.plan.blank(position)
            self.quarantine.add(spec.id, error.reason)
        return self._stand_in(spec)

    def _stand_in(self, spec: ClipSpec) -> _Clip:
        """Weight 0, and pixels that surely decode."""
        data, box = self._harmless
        spec = replace(spec, boxes=np.tile(box, (self.plan.crops, 1)), weight=0.0)
        try:
            return self._decoded(_Clip(spec, data, np.zeros_like(spec.frames)))
        except DecodeError as error:
            raise ShardError(
                f"The first sound clip of {self.shards.root} cannot be decoded ({error}): restore the shards."
            ) from error

    def _decoded(self, clip: _Clip) -> _Clip:
        """With its frames, or its views, in place of its bytes, where the graph wants them."""
        if self.decode != "reader":
            return clip
        video, g = decode_clip(clip.data, clip.frames), self.graph
        if reader_resizes(g, self.device):
            video = crop_and_resize(video, clip.spec.boxes, g.size, g.interpolation, g.antialias)
        return replace(clip, data=video)

    @functools.cached_property
    def _harmless(self) -> tuple[np.ndarray, np.ndarray]:
        """The first frame of a sound clip, and the box of all of it."""
        clip = self.shards.sound_clip
        if clip is None:
            raise ShardError(
                f"None of the first clips of {self.shards.root} can be read: restore the shards, or make them again."
            )
        try:
            data, _ = self.shards.read(clip, np.array([0]))
        except ClipError as error:
            raise ShardError(f"{error.reason}, and it was sound when this began: restore the shards.") from error
        return data, np.array([0, 0, self.plan.heights[clip], self.plan.widths[clip]], dtype=np.float32)

    def _batch(self, output, prepared: _Prepared) -> Batch:
        clips = prepared.wait()
        specs = [clip.spec for clip in clips]
        pixels = torch.from_dlpack(output.as_tensor())  # (B, crops, clips * T, H, W, 3)
        views = self.plan.crops * self.plan.clips
        pixels = pixels.view(len(specs), views, -1, *pixels.shape[3:]).permute(0, 1, 5, 2, 3, 4)  # (B, V, 3, T, H, W)
        labels = [(self._mirrored if spec.flip else self._labels)[spec.id] for spec in specs]
        return Batch(
            pixels=pixels[:, 0] if views == 1 else pixels,
            labels=self._to_device(torch.tensor(labels)),
            weights=self._to_device(torch.tensor([spec.weight for spec in specs])),
            ids=torch.tensor([spec.id for spec in specs]),
            samples_seen=prepared.samples_seen,
            frames=torch.from_numpy(np.stack([spec.frames for spec in specs])).long(),
            positions=torch.tensor(prepared.positions),
        )

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to("cuda", non_blocking=True) if self.device == "gpu" else tensor

    def _find_undecodable(self, in_flight: deque, reason: str) -> None:
        """Find the clips that the decoder refuses, each decoded on its own. Raises ShardError if it is none of them."""
        suspects = [
            (position, clip) for made in in_flight for position, clip in zip(made.positions, made.wait()) if clip.spec.weight
        ]
        refused = []
        if suspects and self._decodes(self._stand_in(suspects[0][1].spec)):
            refused = [(position, clip.spec.id) for position, clip in suspects if not self._decodes(clip)]
        if not refused:
            raise ShardError(f"DALI cannot make clips of {self.shards.root}, although its clips are sound: {reason}")
        for position, clip_id in refused:
            self._refused.add(position)
            self.quarantine.add(clip_id, "the decoder refuses it")

    def _decodes(self, clip: _Clip) -> bool:
        if self.decode == "reader":
            return True
        plain = replace(self.graph, augment=AugmentOptions())
        pipeline = self._pipeline(lambda: tuple([part] for part in clip.graph_inputs()[:4]), 1, plain)
        try:
            pipeline.run()
            return True
        except RuntimeError:
            return False
        finally:
            _finish(pipeline)


@dataclass
class _Clip:
    spec: ClipSpec
    data: np.ndarray  # (bytes,) uint8; or decoded, (clips * T, H, W, 3) uint8; or resized, (crops, clips * T, size, size, 3)
    frames: np.ndarray  # (clips * T,) int32, positions in `data`

    def graph_inputs(self):
        augmentation = self.spec.augmentation.arrays() if self.spec.augmentation is not None else ()
        cut = {1: (self.frames, self.spec.boxes), 4: (self.spec.boxes,), 5: ()}[self.data.ndim]  # what is still to be done
        return self.data, *cut, np.array([self.spec.flip], dtype=np.int32), *augmentation


@dataclass
class _Prepared:
    """A batch whose clips are being read."""

    futures: list[Future]
    positions: Sequence[int]
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


def _fields(kind, given: dict) -> dict:
    return {f.name: given[f.name] for f in fields(kind) if f.name in given}


def _pick(kind, given: dict):
    return kind(**_fields(kind, given))


def _refuse_unknown(given: dict) -> None:
    known = {f.name for kind in (ClipOptions, OrderOptions, AugmentOptions, GraphOptions) for f in fields(kind)}
    known.discard("augment")  # of the graph: made of the others
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


def _finish(pipeline) -> None:
    """Stop a pipeline's threads here and now. On a CPU they call Python, where the garbage collector might otherwise find
    a pipeline that an error has left behind: and a thread cannot wait for its own end."""
    pipeline._shutdown()


def _normalised(pixels: torch.Tensor) -> torch.Tensor:
    """(..., 3, T, H, W) uint8 -> float32, as the graph does it; memory stays channels-last."""
    rows = pixels.movedim(-4, -1).flatten(-2)  # (..., T, H, W * 3): long rows, for vector instructions
    mean, scale = (
        torch.tensor(values, device=pixels.device).repeat(pixels.shape[-1]) for values in (MEAN, [1 / s for s in STD])
    )
    if pixels.device.type == "cuda":
        out = (rows.float() - mean) * scale
    else:
        out = torch.empty(rows.shape)
        for row, into in zip(rows.flatten(0, -3), out.view(-1, *rows.shape[-2:])):  # a frame at a time: it stays in the cache
            into.copy_(row).sub_(mean).mul_(scale)
    return out.unflatten(-1, (-1, 3)).movedim(-1, -4)


def _cores() -> int:
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
