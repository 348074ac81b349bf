"""Many videos, each encoded in a process that may die: a crash or a hang costs one video, not the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

from i2v.pipelines.store import RETRY, StoreError, is_url
from i2v.shard_tools.decode import CUT_IT
from i2v.shard_tools.encode import EncodedClip, EncodeSettings, encode_video
from i2v.shard_tools.source_video import RejectedVideo, describe
from i2v.shard_tools.sources import Video

WINDOW = 4  # videos in flight or waiting for their turn, per worker
START_SECONDS = 120  # a process may take this long to import what it needs
TELL_SECONDS = 1.0  # between two messages of how far a video is
WAITING_BYTES = 1 << 30  # of finished clips that wait for a slow one before them
STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}  # that ask the run to end, and say nothing about a video


def encode_videos(
    videos: Iterable[Video | str],
    settings: EncodeSettings,
    workers: int = 0,
    timeout: float = 600,
    on_frame: Callable[[Video | str, float], None] | None = None,
) -> Iterator[EncodedClip | RejectedVideo]:
    """The outcome of every video (or path of one), in order. Raises StoreError if their place cannot be read.

    workers: processes; a video that kills its process or takes longer than `timeout` seconds is rejected, the others
    go on. 0: in this process, without that protection. on_frame: called with a video and the second of its frame, of every
    frame in this process, and of one in a second or so in others. What is in flight is bounded, however long the list.
    A video in a store may take the time in which a store is given up in addition: that it stalls is not the video's fault.
    """
    if workers == 0:
        yield from (_outcome(video, settings, on_frame and partial(on_frame, video)) for video in videos)
        return
    videos, started, finished, yielded = enumerate(videos), 0, {}, 0
    pool = [_Worker(settings, on_frame) for _ in range(workers)]
    try:
        while True:
            waiting = sum(len(clip.data) for clip in finished.values() if isinstance(clip, EncodedClip))
            for index, worker in enumerate(pool):
                if worker.busy or started - yielded >= WINDOW * workers or waiting >= WAITING_BYTES:
                    continue
                if (task := next(videos, None)) is None:
                    break
                if not worker.process.is_alive():
                    pool[index] = worker = _Worker(settings, on_frame)
                worker.start(*task, timeout)
                started += 1
            busy = [worker for worker in pool if worker.busy]
            if not busy and not finished:
                return
            patience = max(0, min(worker.deadline for worker in busy) - time.monotonic()) if busy else 0
            wait([worker.connection for worker in busy], patience)
            for worker in busy:
                outcome = worker.outcome(timeout)
                if outcome is not None:
                    finished[worker.task] = outcome
            while yielded in finished:
                yield finished.pop(yielded)
                yielded += 1
    finally:
        for worker in pool:
            worker.kill()


class WorkerError(RuntimeError):
    """A process ended that says nothing about the video it had: somebody stopped it, or it cannot start."""


class _Worker:
    """A process that encodes one video after the other, and the pipe to it."""

    def __init__(self, settings: EncodeSettings, on_frame: Callable[[Video | str, float], None] | None):
        self.on_frame, self.video = on_frame, None
        self.task, self.busy, self.ready, self.patience, self.deadline = -1, False, False, 0.0, 0.0
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_work, args=(theirs, settings, on_frame is not None), daemon=True)
        # The child inherits the mask: Ctrl-C or a scheduler's signal reaches this process only, which then ends the
        # children. Starting multiprocessing's own helper would lift the mask, so that comes first.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that the pipe ends when the child does
        weakref.finalize(self, self.process.kill)  # at exit multiprocessing would send SIGTERM, and wait for ever

    def start(self, task: int, video: Video | str, timeout: float) -> None:
        self.task, self.busy, self.video = task, True, video
        self.patience = timeout + (RETRY.patience if is_url(getattr(video, "path", str(video))) else 0)
        self.deadline = time.monotonic() + self.patience + (0 if self.ready else START_SECONDS)
        try:
            self.connection.send(video)
        except OSError:
            pass  # it is dead already: outcome() says so

    def outcome(self, timeout: float) -> EncodedClip | RejectedVideo | None:
        """What became of the task; None: not finished."""
        try:
            while self.connection.poll():
                message = self.connection.recv()
                if isinstance(message, float):
                    self.on_frame(self.video, message)
                elif message is not None:
                    self.busy = False
                    if isinstance(message, StoreError):
                        raise message
                    return message
                else:
                    self.ready, self.deadline = True, time.monotonic() + self.patience
        except (EOFError, OSError):
            self.process.join()
            if -self.process.exitcode in STOPS:
                raise WorkerError(f"a worker process was stopped (signal {-self.process.exitcode})") from None
            if not self.ready:
                raise WorkerError("a worker process died before its first video") from None
            return self._lost(_cause_of_death(self.process.exitcode))
        if time.monotonic() > self.deadline:
            return self._lost(f"it took longer than {timeout:g} seconds: give it more with --timeout, or {CUT_IT}")
        return None

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _lost(self, reason: str) -> RejectedVideo:
        self.kill()
        self.busy = False
        return RejectedVideo(reason)


def _work(connection, settings: EncodeSettings, tells: bool) -> None:
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        connection.send(None)  # ready
        while True:
            try:
                connection.send(_outcome(connection.recv(), settings, _Seconds(connection) if tells else None))
            except StoreError as error:
                connection.send(StoreError(str(error)))  # without what caused it, which may not survive the way
    except (EOFError, OSError):
        pass  # the parent is gone


class _Seconds:
    """Tells the parent how far a video is, once in TELL_SECONDS and with the first frame."""

    def __init__(self, connection):
        self.connection, self.due = connection, 0.0

    def __call__(self, second: float) -> None:
        if time.monotonic() >= self.due:
            self.due = time.monotonic() + TELL_SECONDS
            self.connection.send(float(second))


def _end_with_parent() -> None:
    """A worker that waits for a file would not notice that its parent is gone, by SIGKILL for example.

    The kernel's own way (PR_SET_PDEATHSIG) is not right here: it also kills when only the thread ends that started the
    worker, and whoever asks for the next video may do so from another one.
    """
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _outcome(video: Video | str, settings: EncodeSettings, on_frame=None) -> EncodedClip | RejectedVideo:
    try:
        return encode_video(video, settings, on_frame)
    except StoreError:
        raise
    except RejectedVideo as rejected:
        return RejectedVideo(rejected.reason)  # without the traceback, which would hold frames
    except MemoryError:
        return RejectedVideo("it needs more memory than there is")
    except Exception as error:  # whatever a strange file makes a library do, the other videos go on
        return RejectedVideo(f"it cannot be encoded ({type(error).__name__}: {describe(error)})")


def _cause_of_death(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the decoder was killed (signal 9), perhaps for lack of memory"
    return f"the decoder crashed (signal {-code})" if code < 0 else f"the decoder exited with code {code}"
