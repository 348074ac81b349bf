"""Who makes the shards: this machine, or the machines of a Ray cluster. What comes out is the same."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from shard_tools.encode import EncodeSettings
from shard_tools.files import RejectedVideo, describe
from shard_tools.output import MAKING, Output, OutputError
from shard_tools.paths import is_url
from shard_tools.pool import encode_videos
from shard_tools.shard_writer import ShardWriter, part_name
from shard_tools.sources import Video

RETRIES = 5  # of a shard whose process or machine dies

Shards = Iterable[tuple[int, list[Video]]]  # number of the shard, and what goes into it


@dataclass(frozen=True)
class Job:
    """All that making a shard takes besides its videos; small, and can be sent to another machine."""

    out: str  # folder or URL
    staging: str | None
    made_with: dict
    settings: EncodeSettings
    workers: int  # processes, see encode_videos
    timeout: float  # seconds


def run_local(job: Job, shards: Shards, report: Callable[[int, int], None]) -> None:
    """Make shards one after the other; the processes never wait for a shard to end.

    report: called with how many more videos are done, and how many of those are rejected.
    """
    output, writers = Output(job.out, job.staging), deque()  # writers: of the shards that have begun

    def videos() -> Iterator[Video]:
        for number, listed in shards:
            writer = ShardWriter(output, number, listed)
            writers.append(writer)
            if output.has(part_name(number)) or output.read_json(MAKING) != job.made_with:  # others were faster
                writers.pop().discard()
                report(len(listed), 0)
                continue
            writer.resume(job.made_with)
            report(writer.done, writer.rejected)
            yield from listed[writer.done :]

    def publish_complete() -> None:
        while writers and writers[0].complete:
            writers[0].publish()
            writers.popleft()

    try:
        with contextlib.closing(encode_videos(videos(), job.settings, job.workers, job.timeout)) as outcomes:
            for outcome in outcomes:
                publish_complete()
                writers[0].add(outcome)
                report(1, isinstance(outcome, RejectedVideo))
        publish_complete()
    finally:
        for writer in writers:
            writer.close()


def run_ray(job: Job, shards: Shards, report: Callable[[int, int], None], address: str | None = None) -> None:
    """Make every shard in a Ray task of its own, on the cluster at `address`, or else a Ray on this machine.

    address: see ray.init; None: of the environment variable RAY_ADDRESS, or of the cluster that this machine is in.
    A shard whose process or machine dies is made again, elsewhere; where the output is shared it goes on.
    """
    try:
        import ray
    except ImportError:
        raise OutputError("--executor ray needs Ray: pip install 'i2v[ray]'.") from None
    connected_before = ray.is_initialized()
    if not connected_before:
        _connect(ray, address)
    try:
        cpus = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        job = replace(job, out=_absolute(job.out), workers=min(job.workers, cpus))
        slots = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)) // max(job.workers, 1))
        task = ray.remote(num_cpus=max(job.workers, 1), max_retries=RETRIES)(_make_shard)
        shards, running = iter(shards), []
        report(0, 0)
        while True:
            while len(running) < slots and (shard := next(shards, None)) is not None:
                number, videos = shard
                running.append(task.remote(job, number, [v._replace(path=_absolute(v.path)) for v in videos]))
            if not running:
                return
            (ended, *_), running = ray.wait(running)
            report(*ray.get(ended))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"Ray gave up ({describe(error)})") from error
    finally:
        if not connected_before:
            ray.shutdown()


def _connect(ray, address: str | None) -> None:
    address = address or os.environ.get("RAY_ADDRESS")
    where = f"at {address}" if address else "on this machine"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)
    root = Path(__file__).resolve().parent.parent
    packages = {"py_modules": [str(root / "shard_tools"), str(root / "pipelines")]}  # every machine runs this code
    try:
        if address and re.fullmatch(r"[^/]+:\d+", address):  # Ray itself would ask for ten minutes and more
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), 10).close()
        ray.init(address, runtime_env=packages, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        raise OutputError(f"the Ray cluster {where} cannot be used ({describe(error)}): see `ray status`.") from error
    signal.signal(signal.SIGTERM, handler)  # Ray takes it


def _absolute(place: str) -> str:
    return place if is_url(place) else os.path.abspath(place)


def _make_shard(job: Job, number: int, videos: list[Video]) -> tuple[int, int]:
    """(videos, rejected ones)"""
    rejected = 0

    def count(_, more: int) -> None:
        nonlocal rejected
        rejected += more

    # Ray adds the folder it was started in. If that is the one with our inspect.py, Python's own would be hidden.
    sys.path[:] = [path for path in sys.path if os.path.basename(path) != "shard_tools"]
    Output(job.out, job.staging).create()
    run_local(job, [(number, videos)], count)
    return len(videos), rejected
