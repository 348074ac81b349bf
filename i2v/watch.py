"""What a model says of a video while it goes on: a window slides over it, and every hop has its answer.

A thread decodes, and hands windows over; the model looks at them. A film waits for the model; a live stream cannot: of it
the newest window is looked at, and those before it that nobody took are dropped and counted. What is held does not
depend on how long the video is. Frames are those that a loader's "windows" of the stored video has (pipelines/plan.py), but
for what encoding them would lose.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch

from i2v.metrics import probabilities_of
from i2v.pipelines.batch import normalised
from i2v.pipelines.boxes import test_boxes
from i2v.pipelines.decode import rgb
from i2v.pipelines.graph import GraphOptions
from i2v.pipelines.options import ClipOptions
from i2v.pipelines.plan import window_and_hop
from i2v.pipelines.resize import crop_and_resize, looked_at
from i2v.pipelines.sliding import Sliding, Window
from i2v.pipelines.store import StoreError
from i2v.session import Session
from i2v.shard_tools.encode import EncodeSettings, true_rate
from i2v.shard_tools.live import Frames, is_stream, open_frames
from i2v.shard_tools.source_video import RejectedVideo, describe

GRACE = 1.0  # seconds in which a stream's thread finishes the picture that it is at


@dataclass
class Answer:
    """start, end: seconds as players count them; of a stream from its first frame on."""

    start: float
    end: float
    probabilities: torch.Tensor  # (K,)
    latency: float = 0.0  # seconds from when the last of its frames was decoded
    dropped: int = 0  # windows just before it that were dropped


class Answers:
    """The answers for a video, as they come: iterate once, and close. It reads from the moment on that it is made.

    place: a file, a URL of one, or a stream (shard_tools/live.py). window, hop: seconds, or frames as "64f", which come at the
    rate that the source declares or, as in a loader, at the clips' own `fps`; hop None: window. drops: do not let the source
    wait. at_once: windows that the model looks at together; a source that drops has 1.
    Iterating raises RejectedVideo where the video is damaged or a stream breaks off, after the answers up to there.
    """

    def __init__(
        self, session: Session, place: str, window: float | str, hop: float | str | None, drops: bool = False, at_once: int = 1
    ):
        self.place, self.damaged = place, 0
        self._session, self._at_once, self._drops = session, at_once, drops
        given = session.views((), window, hop)["options"] | {"size": session.size}  # clips.test_size, as a loader takes it
        self._clip, self._graph = (
            kind(**{f.name: given[f.name] for f in fields(kind) if f.name in given}) for kind in (ClipOptions, GraphOptions)
        )
        self._settings = EncodeSettings(**session.meta.stored | {"max_seconds": None})
        self._changed, self._waiting, self._dropped = threading.Condition(), deque(), 0
        self._closed, self._ended, self._error = False, False, None
        self._thread = threading.Thread(target=self._read, name="windows", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Answer]:
        while found := self._take():
            shown = np.stack([np.stack(window.pictures) for window, *_ in found])  # (B, T, H, W, 3)
            pixels = torch.from_numpy(shown).to(self._session.device).permute(0, 4, 1, 2, 3)
            with torch.no_grad(), self._session.autocast():
                logits = self._session.model(normalised(pixels, *self._graph.grey)).float()
                probabilities = probabilities_of(logits, self._session.meta.several).cpu()
            now = time.monotonic()
            for row, (window, begin, arrived, dropped) in zip(probabilities, found):
                yield Answer(begin + window.start, begin + window.end, row, now - arrived, dropped)
        if self._error:
            raise self._error

    def close(self) -> None:
        """Stop reading. A stream that says nothing just now is left to its thread, which ends with the program: waiting for
        it is safe, and in the middle of a picture the program's end could abort it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(GRACE if is_stream(self.place) else None)

    # ---- handed over from the thread that reads to the one that looks --------------------------------------------------

    def _put(self, *item) -> None:
        with self._changed:
            if self._drops and self._waiting:
                self._waiting.clear()
                self._dropped += 1
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._at_once)
            self._waiting.append((*item, time.monotonic(), self._dropped))
            self._changed.notify_all()

    def _take(self) -> list[tuple[Window, float, float, int]]:
        """As many windows as are looked at together; fewer at the end, and then none."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._waiting) >= self._at_once)
            found = list(self._waiting)
            self._waiting.clear()
            self._dropped = 0
            self._changed.notify_all()
        return found

    # ---- in the thread that reads --------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            with open_frames(self.place, self._settings) as frames:
                self._slide(frames)
        except (RejectedVideo, StoreError) as error:
            self._error = error
        except Exception as error:  # whatever a strange file makes a library do
            self._error = RejectedVideo(f"it cannot be read ({type(error).__name__}: {describe(error)})")
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _slide(self, frames: Frames) -> None:
        window, hop = window_and_hop(self._clip, float(np.float32(frames.rate)))  # as an index has it
        sliding = Sliding(self._clip.num_frames, window, hop, lambda picture: self._seen(frames, picture))
        begin = 0.0
        for number, (second, picture) in enumerate(frames.pictures):
            self.damaged = frames.damaged
            begin = begin if number else round(second, 6)  # as shards say it
            for window in sliding.push(second, picture):
                self._put(window, begin)
            if self._closed:
                return
        for window in sliding.finish(lambda count, last: true_rate(count, last, frames.rate)):
            self._put(window, begin)

    def _seen(self, frames: Frames, picture) -> np.ndarray:
        """(size, size, 3) uint8: what the model sees of a picture."""
        pixels, size = rgb(frames.as_stored(picture)), self._graph.size
        boxes = test_boxes(pixels.shape[1], pixels.shape[0], self._clip, 1).astype(np.float32)
        rows, columns = looked_at(boxes)
        boxes -= np.float32([rows.start or 0, columns.start or 0] * 2)
        view = crop_and_resize(pixels[None, rows, columns], boxes, size, self._graph.interpolation, self._graph.antialias)
        return view[0, 0]
