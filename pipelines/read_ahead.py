"""From a plan to torch batches: read the bytes ahead in threads, run the graph, keep bad clips from stopping a run.

A batch is a pure function of its step. So when a decoder refuses a clip, the clip goes to the quarantine, the
pipeline is rebuilt at the same step, and the same batch comes again with weight 0 in that place: every rank stays
aligned, and nothing is substituted silently.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
import torch

from i2v.pipelines.augment import AugmentOptions
from i2v.pipelines.batch import Batch, normalised
from i2v.pipelines.buffers import Buffers
from i2v.pipelines.graph import GraphOptions, build_pipeline
from i2v.pipelines.index import several_hot
from i2v.pipelines.moving import moving_crops
from i2v.pipelines.plan import Plan
from i2v.pipelines.quarantine import Quarantine
from i2v.pipelines.reader import Clip, Reader, Readers
from i2v.pipelines.shards import ShardError
from i2v.pipelines.source import ClipSource
from i2v.pipelines.stream import fingerprint

READ_AHEAD = 8  # at most so many batches are being read while DALI works, and no more bytes than `prefetch_bytes`
STAGE_EVERY = 16  # steps between two looks at what a remote data set will have to stage


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
        self._sets = list(self.shards.label_sets or [])
        self._mirrored, classes = self._labels, len(self.shards.classes)
        if self.plan.split == "train":  # nothing else is mirrored, and what is predicted on may have no classes at all
            swapped = _swapped(classes, self.plan.options.flip_labels)
            if self.shards.label_sets is None:
                self._mirrored = swapped[self._labels]  # (-1, not labelled, stays what it is)
            else:  # the mirrored sets come after the others
                self._sets += [swapped[each].tolist() for each in self._sets]
                self._mirrored = self._labels + len(self.shards.label_sets)
        self._buffers = Buffers()
        self._batch_bytes = 0  # of the largest batch so far
        self._seen = self.start  # by all ranks, with the batch that was given last

    @functools.cached_property
    def _reader(self) -> Reader:
        return Reader(self.shards, self.plan, self.graph, self.device, self.decode, self.quarantine)

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
        step, readers = 0, Readers(self._reader, self.threads)
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
            readers.shutdown()

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

    def _run(self, step: int, readers: Readers, in_flight: deque):
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
            prepared.inputs = tuple(map(list, zip(*(clip.graph_inputs() for clip in clips))))
            return prepared.inputs

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
        graph = replace(graph, dtype="uint8") if self._torch_normalises else graph
        pipeline = build_pipeline(source, graph, batch_size, self.device, self.decode, device_id, self.threads)
        pipeline.build()
        return pipeline

    @property
    def _torch_normalises(self) -> bool:
        """Whether pixels leave the graph as uint8 and torch normalises the batch: on a CPU in a fifth of DALI's time, where
        nothing that is drawn makes other than whole numbers of them."""
        floats = self.graph.augment.pca_noise or self.graph.augment.erasing
        return self.device == "cpu" and self.graph.dtype == "float32" and not floats

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
            ahead = self.plan.shards_ahead(position, horizon)
        else:
            ids = [self.plan.locate(p)[1] for p in self._positions(position, min(position + horizon, self._end))]
            ahead = list(dict.fromkeys(self.shards.clips["shard"][ids].tolist()))
        self.shards.expect(ahead)

    def _horizon(self) -> int:
        """Positions to look ahead: until the next look, and a few shards more."""
        per_shard = -(-len(self.shards) // (int(self.shards.clips["shard"][-1]) + 1))
        return 2 * STAGE_EVERY * self.batch_size * self.world_size + 4 * per_shard

    def _submit(self, step: int, readers: Readers) -> _Prepared:
        positions = self.positions(step)
        seen = self.start + (step + 1) * self.batch_size * self.world_size
        if self.plan.split != "train":
            seen = min(seen, self._end)
        return _Prepared([readers.submit(position) for position in positions], positions, seen)

    def _batch(self, output, prepared: _Prepared) -> Batch:
        clips = prepared.wait()
        specs = [clip.spec for clip in clips]
        pixels = torch.from_dlpack(output.as_tensor())  # (B, crops, clips * T, H, W, 3)
        views = self.plan.crops * self.plan.clips
        pixels = pixels.view(len(specs), views, -1, *pixels.shape[3:]).permute(0, 1, 5, 2, 3, 4)  # (B, V, 3, T, H, W)
        pixels = pixels[:, 0] if views == 1 else pixels
        if self._torch_normalises:
            pixels = normalised(pixels, *self.graph.grey, self._buffers.lend)
        if self.plan.stills:
            how = (self.plan.options.size, self.graph.mean, self.graph.std, self._to_device)
            colors = [spec.augmentation.color for spec in specs if spec.augmentation]
            pixels = moving_crops(pixels[:, :, 0].movedim(1, -1), [spec.motion for spec in specs], *how, colors)
        labels = torch.tensor([(self._mirrored if spec.flip else self._labels)[spec.id] for spec in specs])
        if self.shards.label_sets is not None:
            labels = torch.from_numpy(several_hot([self._sets[label] for label in labels], len(self.shards.classes)))
        return Batch(
            pixels=pixels,
            labels=self._to_device(labels),
            weights=self._to_device(torch.tensor([spec.weight for spec in specs])),
            ids=torch.tensor([spec.id for spec in specs]),
            samples_seen=prepared.samples_seen,
            frames=torch.from_numpy(np.stack([spec.frames for spec in specs])).long(),
            positions=torch.tensor(prepared.positions),
            grey=self.graph.grey,
        )

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to("cuda", non_blocking=True) if self.device == "gpu" else tensor

    def _find_undecodable(self, in_flight: deque, reason: str) -> None:
        """Find the clips that the decoder refuses, each decoded on its own. Raises ShardError if it is none of them."""
        suspects = [
            (position, clip) for made in in_flight for position, clip in zip(made.positions, made.wait()) if clip.spec.weight
        ]
        refused = []
        if suspects and self._decodes(self._reader.stand_in(suspects[0][1].spec)):
            refused = [(position, clip.spec.id) for position, clip in suspects if not self._decodes(clip)]
        if not refused:
            raise ShardError(f"DALI cannot make clips of {self.shards.root}, although its clips are sound: {reason}")
        for position, clip_id in refused:
            self._reader.refused.add(position)
            self.quarantine.add(clip_id, "the decoder refuses it")

    def _decodes(self, clip: Clip) -> bool:
        if self.decode == "reader":
            return True
        plain = replace(self.graph, augment=AugmentOptions())
        inputs = tuple([part] for part in clip.graph_inputs()[:4])
        pipeline = self._pipeline(lambda: inputs, 1, plain)
        try:
            pipeline.run()
            return True
        except RuntimeError:
            return False
        finally:
            _finish(pipeline)


@dataclass
class _Prepared:
    """A batch whose clips are being read."""

    futures: list[Future]
    positions: Sequence[int]
    samples_seen: int
    inputs: tuple = ()  # of the graph, which does not copy them

    def wait(self) -> list[Clip]:
        return [future.result() for future in self.futures]

    def cancel(self) -> None:
        for future in self.futures:
            future.cancel()


def _swapped(classes: int, pairs) -> np.ndarray:
    """(classes + 1,) int64: what each class is when mirrored; the last entry is for -1, not labelled."""
    outside = [label for pair in pairs for label in pair if label >= classes]
    if outside:
        raise ValueError(f"flip_labels has {outside[0]}, but there are {classes} classes: labels run from 0 to {classes - 1}.")
    swapped = np.append(np.arange(classes), -1)
    for a, b in pairs:
        swapped[[a, b]] = b, a
    return swapped


def _finish(pipeline) -> None:
    """Stop a pipeline's threads here and now. On a CPU they call Python, where the garbage collector might otherwise find
    a pipeline that an error has left behind: and a thread cannot wait for its own end."""
    pipeline._shutdown()
