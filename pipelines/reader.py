"""From a position in the stream to what the graph takes: the clip's bytes, or its pictures; harmless ones where it is bad."""

from __future__ import annotations

import contextlib
import functools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from i2v.pipelines.decode import DecodeError, decode_clip
from i2v.pipelines.graph import GraphOptions, reader_resizes
from i2v.pipelines.plan import ClipSpec, Plan
from i2v.pipelines.quarantine import Quarantine
from i2v.pipelines.resize import crop_and_resize, looked_at
from i2v.pipelines.shards import ClipError, ShardError
from i2v.pipelines.source import ClipSource

READ_THREADS = 4  # at least, as they wait for files
TRIED = 1000  # clips at most, among which one must be sound


@dataclass
class Clip:
    spec: ClipSpec
    data: np.ndarray  # (bytes,) uint8; or decoded, (clips * T, H, W, 3) uint8; or resized, (crops, clips * T, size, size, 3)
    frames: np.ndarray  # (clips * T,) int32, positions in `data`

    def graph_inputs(self):
        plain = self.spec.augmentation is None or self.spec.motion is not None  # a still is changed when it has been cut
        augmentation = () if plain else self.spec.augmentation.arrays()
        cut = {1: (self.frames, self.spec.boxes), 4: (self.spec.boxes,), 5: ()}[self.data.ndim]  # what is still to be done
        mirror = self.spec.flip and self.spec.motion is None
        return self.data, *cut, np.array([mirror], dtype=np.int32), *augmentation


@dataclass(eq=False)
class Reader:
    """Reads clips, from any thread. decode: see choose_decoder; "reader" means here."""

    shards: ClipSource
    plan: Plan
    graph: GraphOptions
    device: str
    decode: str
    quarantine: Quarantine
    refused: set[int] = field(default_factory=set)  # positions whose clips the graph's decoder does not take

    def read(self, position: int) -> Clip:
        """The clip at a position, encoded; weight 0 and harmless pixels where it cannot be used."""
        spec = None
        try:
            spec = self.plan[position]
            if spec.weight and position not in self.refused:
                return Clip(spec, *self.shards.read(spec.id, spec.decoded))
        except ClipError as error:
            spec = spec or self.plan.blank(position)
            self.quarantine.add(spec.id, error.reason)
        return self.stand_in(spec)

    def stand_in(self, spec: ClipSpec) -> Clip:
        """Weight 0, and pixels that surely decode."""
        data, box = self._harmless
        spec = replace(spec, boxes=np.tile(box, (self.plan.crops, 1)), weight=0.0)
        return Clip(spec, data, np.zeros_like(spec.decoded))

    def decoded(self, clip: Clip) -> Clip:
        """A clip with its frames, or its views, in place of its bytes; as `read` does it where the decoder refuses them."""
        try:
            return self._with_pictures(clip)
        except DecodeError:
            self.quarantine.add(clip.spec.id, "the decoder refuses it")
            return self._with_pictures(self.stand_in(clip.spec))

    def _with_pictures(self, clip: Clip) -> Clip:
        g, boxes = self.graph, clip.spec.boxes
        if not reader_resizes(g, self.device):
            return replace(clip, data=decode_clip(clip.data, clip.frames))
        rows, columns = looked_at(boxes, g.interpolation)
        video = decode_clip(clip.data, clip.frames, (rows, columns))
        boxes = boxes - np.float32([rows.start or 0, columns.start or 0] * 2)
        return replace(clip, data=crop_and_resize(video, boxes, g.size, g.interpolation, g.antialias))

    @functools.cached_property
    def _harmless(self) -> tuple[np.ndarray, np.ndarray]:
        """The first frame of a clip that can be read and decoded, and the box of all of it."""
        clips = np.unique(np.linspace(0, len(self.shards) - 1, TRIED).astype(int)).tolist()  # of all shards and data sets
        for clip in clips:
            with contextlib.suppress(ClipError, DecodeError):
                data, frame = self.shards.read(clip, np.array([0]))
                decode_clip(data, frame)
                return data, np.array([0, 0, self.plan.heights[clip], self.plan.widths[clip]], dtype=np.float32)
        raise ShardError(
            f"None of {len(clips)} clips of {self.shards.root} can be read and decoded: restore the shards, or make them again."
        )


class Readers:
    """Threads that read clips, and, where the reader decodes, `threads` others that do this: more of them than cores would
    only wait for one another, as decoding takes the interpreter lock again and again."""

    def __init__(self, reader: Reader, threads: int):
        self.reader = reader
        self._reading = ThreadPoolExecutor(max(READ_THREADS, threads))
        self._decoding = ThreadPoolExecutor(threads)

    def submit(self, position: int) -> Future[Clip]:
        """The clip at a position, as the graph takes it."""
        read = self._reading.submit(self.reader.read, position)
        return self._decoding.submit(self._decoded, read) if self.reader.decode == "reader" else read

    def _decoded(self, read: Future[Clip]) -> Clip:
        return self.reader.decoded(read.result())

    def shutdown(self) -> None:
        for threads in (self._reading, self._decoding):
            threads.shutdown(wait=False, cancel_futures=True)
