"""Training clips per second of one CPU core, beside what people do without this library.

    python benchmarks/loader.py                                   # about 12 minutes; all other work disturbs it
    python benchmarks/loader.py --videos FOLDER --json result.json        # on real videos
    python benchmarks/loader.py --memory                          # memory of long training and of many-view evaluation
    python benchmarks/loader.py --quick                           # only to see that it runs

Every contender makes the same clips, the same frames and boxes of the same videos, in its own process on the same core:

    vp9 gop N, h264 gop N, mjpeg    this library's loader, from shards
    pyav                  a torch DataLoader over the original files, as the five methods' repositories do it: decode every
                          frame, pick, normalise, crop and resize in torch (without a worker process: there is one core)
    webdataset + dali     the videos of our VP9 shards (GOP 8), read by webdataset, all their frames decoded by DALI, then
                          picked, cropped, resized and normalised as in our graph
    the same, frames=     as before, but DALI's decoder is told which frames: it stops at the last of them
    torchcodec, spdl      if they are installed: only the wanted frames of the original files, then our own crop and resize;
    torchcodec, gop N     and of the H.264 that our shards hold, as plain files

They take turns in several rounds; what one of them does ahead is frozen while another is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import multiprocessing
import os
import signal
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import av
import torch
from tqdm import tqdm

from benchmarks.contenders import (
    AUGMENTATION,
    SIZE,
    from_decoder,
    from_files,
    from_shards,
    from_webdataset,
    installed,
    spdl_pictures,
    torchcodec_pictures,
)
from benchmarks.machine import write_result
from benchmarks.measure import (
    in_fresh_process,
    median_ratio,
    peak_resident_mb,
    resident_mb,
    shown_command,
    spread,
    strongest_others,
    use_one_core,
)
from benchmarks.videos import make_videos, shard_videos
from i2v.pipelines import ShardError, build_loader
from i2v.shard_tools.dataset import OutputError
from i2v.shard_tools.encode import EncodeSettings

BATCH = 8
SAMPLINGS = {
    "8x16": {"num_frames": 8, "sampling": "stride", "stride": 16},
    "TSN-8": {"num_frames": 8, "sampling": "segments"},
    "16x4": {"num_frames": 16, "sampling": "stride", "stride": 4},
    "32x2": {"num_frames": 32, "sampling": "stride", "stride": 2},
}
H264_GOPS = [1, 8]
VIEWS_AT_ONCE = 3  # in the measurement of evaluation's memory
BASELINE_GOP = 8  # of the shards that webdataset + DALI read


# ---- measuring -------------------------------------------------------------------------------------------------------


class Contender:
    """Batches from a process of its own, on one core. Between measurements it is stopped, with all its threads."""

    def __init__(self, name: str, batches, data: Path, plan_of: Path, files: str):
        self.name, self.data, self.files = name, data, files  # "ours", "originals" or "made" from them
        fork_server = multiprocessing.get_context("forkserver")
        fork_server.set_forkserver_preload(["torch", "nvidia.dali", "webdataset", "i2v.pipelines.loader"])
        self.connection, theirs = fork_server.Pipe()
        self.process = fork_server.Process(target=_contend, args=(theirs, partial(batches, data, plan_of)), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, request):
        """Let it go on, wait for its answer, and stop it again."""
        os.kill(self.process.pid, signal.SIGCONT)
        self.connection.send(request)
        try:
            answer = self.connection.recv()
        except EOFError:
            raise RuntimeError(f"{self.name} has died; what it said is above.") from None
        os.kill(self.process.pid, signal.SIGSTOP)
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def _contend(connection, batches) -> None:
    """Answers (sampling, batch) with None when it is ready.

    And seconds with clips per second over at least that time, and the part of it that this process had the core.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a stopped process would outlive its parent
    use_one_core()
    torch.set_num_threads(1)
    running = None
    while True:
        request = connection.recv()
        if isinstance(request, tuple):
            if running is not None:
                running.close()
            running = batches(*request)
            for _ in range(3):  # until what it does ahead is ahead
                next(running)
            connection.send(None)
            continue
        begin, worked, rounds, clips = time.perf_counter(), time.process_time(), 0, 0
        while (elapsed := time.perf_counter() - begin) < request or rounds < 2:
            clips += len(next(running))
            rounds += 1
        connection.send((clips / elapsed, (time.process_time() - worked) / elapsed))


def plain_files(shards: Path) -> Path:
    """The videos of shards as files beside them, named as the originals are: the same packets, not one fragment each."""
    import webdataset

    out, names = shards.with_name(f"{shards.name}-files"), build_loader(shards, "val", device="cpu").shards.metadata
    for number, sample in enumerate(webdataset.WebDataset(sorted(map(str, shards.glob("*.tar"))), shardshuffle=False)):
        path = out / names(number)["source"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(io.BytesIO(sample["mp4"])) as given, av.open(str(path), "w") as made:
            stream = made.add_stream_from_template(given.streams.video[0])
            for packet in given.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    made.mux(packet)
    return out


def contenders_of(videos: Path, gops: list[int]) -> list[Contender]:
    """This library with each kind of shards, then the others."""
    settings = [EncodeSettings("vp9", gop) for gop in gops] + [EncodeSettings("h264", gop) for gop in H264_GOPS]
    shards = {_name(s): shard_videos(videos, s) for s in [*settings, EncodeSettings("mjpeg")]}
    whole = shards[f"vp9 gop {BASELINE_GOP}"]
    made = [Contender(name, from_shards, data, data, "ours") for name, data in shards.items()]
    made.append(Contender("pyav", from_files, videos, whole, "originals"))
    made.append(Contender("webdataset + dali", from_webdataset, whole, whole, "made"))
    made.append(Contender("webdataset + dali, frames=", partial(from_webdataset, frames_known=True), whole, whole, "made"))
    if installed("spdl"):
        made.append(Contender("spdl", partial(from_decoder, spdl_pictures), videos, whole, "originals"))
    if installed("torchcodec"):
        seeking = partial(from_decoder, torchcodec_pictures)
        made.append(Contender("torchcodec", seeking, videos, whole, "originals"))
        for gop in H264_GOPS:
            made.append(Contender(f"torchcodec, gop {gop}", seeking, plain_files(shards[f"h264 gop {gop}"]), whole, "made"))
    return made


def measure_speed(videos: Path, samplings: dict, gops: list[int], batch: int, rounds: int, seconds: float) -> dict:
    """Clips per second of every contender, for every sampling, and how many times each other one ours are."""
    contenders = contenders_of(videos, gops)
    ours = [contender.name for contender in contenders if contender.files == "ours"]
    others = {contender.name: contender.files for contender in contenders if contender.files != "ours"}
    steps = tqdm(total=len(samplings) * (rounds + 1) * len(contenders), unit="turn", disable=not sys.stderr.isatty())
    rates, worked, shares = {}, {}, []
    try:
        for sampling, options in samplings.items():
            rates[sampling], worked[sampling] = ({contender.name: [] for contender in contenders} for _ in range(2))
            for contender in contenders:
                contender.ask((options, batch))
                steps.update()
            for _ in range(rounds):
                for contender in contenders:
                    rate, share = contender.ask(seconds)
                    rates[sampling][contender.name].append(rate)
                    worked[sampling][contender.name].append(rate / share)
                    shares.append(share)
                    steps.update()
            if steps.disable:
                print(f"{sampling} is done", file=sys.stderr, flush=True)
    finally:
        steps.close()
        for contender in contenders:
            contender.end()
    return {
        "clips_per_s": {s: {name: spread(values) for name, values in of.items()} for s, of in rates.items()},
        "clips_per_cpu_s": {s: {name: spread(values) for name, values in of.items()} for s, of in worked.items()},
        "had_the_core": statistics.median(shares),  # much less than 1: other work has disturbed the measurement
        "others": others,  # and what they read: the original files, or some made from them
        "times": {s: {o: {other: median_ratio(of[o], of[other]) for other in others} for o in ours} for s, of in rates.items()},
        "bytes": {contender.name: _bytes(contender.data) for contender in contenders},
    }


def _bytes(folder: Path) -> int:
    """Of the videos or shards in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in (".mp4", ".tar"))


def _name(settings: EncodeSettings) -> str:
    return settings.codec if settings.codec == "mjpeg" else f"{settings.codec} gop {settings.gop}"


def measure_memory(videos: Path, batches: tuple[int, int], clips: int) -> dict:
    """Resident memory of training after so many batches, and the most that evaluation with many views takes."""
    shards = shard_videos(videos, EncodeSettings("vp9", BASELINE_GOP))
    training = in_fresh_process(_training_memory, shards, batches)
    return {"training": training, "evaluation": in_fresh_process(_evaluation_memory, shards, clips)}


def _training_memory(shards: Path, batches: tuple[int, int]) -> dict:
    before = resident_mb()
    seen = {}
    loader = build_loader(shards, "train", SAMPLINGS["8x16"] | AUGMENTATION, 2, "cpu", threads=1)
    for number, _ in enumerate(loader, 1):
        if number in batches:
            seen[str(number)] = resident_mb()
        if number == max(batches):
            return {"batch": 2, "before_mb": before, "after_batches_mb": seen}


def _evaluation_memory(shards: Path, clips: int) -> dict:
    """One video at a time."""
    before = resident_mb()
    options = SAMPLINGS["32x2"] | {"size": SIZE, "clips": clips, "crops": 3}
    videos = views = 0
    for batch in build_loader(shards, "test", options, 1, "cpu", threads=1):
        videos += len(batch.ids)
        views += sum(part.shape[0] * part.shape[1] for part in batch.views(VIEWS_AT_ONCE))
    return {
        "views": f"{clips}x3",
        "frames": SAMPLINGS["32x2"]["num_frames"],
        "at_once": VIEWS_AT_ONCE,
        "videos": videos,
        "views_seen": views,
        "before_mb": before,
        "peak_mb": peak_resident_mb(),
    }


# ---- what is shown ---------------------------------------------------------------------------------------------------


def table(result: dict) -> str:
    """The result as text."""
    lines = []
    for sampling, rates in result.get("clips_per_s", {}).items():
        strongest = strongest_others(result, sampling)
        lines.append(f"{sampling:26} {'clips/s':>8} {'min':>8} {'max':>8} {'per CPU s':>10}   times {' | '.join(strongest)}")
        for name, r in rates.items():
            times = result["times"][sampling].get(name, {})
            shown = " | ".join(f"{times[other]:.1f}" for other in strongest) if times else ""
            cpu = result["clips_per_cpu_s"][sampling][name]["median"]
            lines.append(f"  {name:24} {r['median']:8.1f} {r['min']:8.1f} {r['max']:8.1f} {cpu:10.1f}   {shown}")
    if result.get("had_the_core", 1) < 0.9:
        lines.append(f"Other work took {100 * (1 - result['had_the_core']):.0f} % of the core: do not believe these figures.")
    if "training" in result:
        (early, first), (late, last) = result["training"]["after_batches_mb"].items()
        growth = 100 * (last / first - 1)
        lines.append(f"training: {first:.0f} MB after {early} batches, {last:.0f} MB after {late} ({growth:+.1f} %)")
        e = result["evaluation"]
        lines.append(
            f"evaluation, {e['views']} views of {e['frames']} frames, {e['at_once']} at once: {e['peak_mb']:.0f} MB at most, "
            f"{e['before_mb']:.0f} MB of it the libraries"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--videos", type=Path, metavar="FOLDER", help="real videos to make the benchmark's from (default: moving shapes)")
    add("--count", type=int, default=16, help="videos of the benchmark (default: %(default)s)")
    add("--seconds", type=float, default=2.0, help="about how long a turn takes (default: %(default)s)")
    add("--rounds", type=int, default=5, help="turns of every contender (default: %(default)s)")
    add("--cache", type=Path, default=Path("runs/benchmarks"), help="folder for videos and shards (default: %(default)s)")
    add("--memory", action="store_true", help="measure memory instead of speed")
    add("--quick", action="store_true", help="little of everything; the figures mean nothing")
    add("--json", type=Path, help="write the result, the machine and the command here")
    args = parser.parse_args()
    samplings, gops, batches, clips = SAMPLINGS, [1, 4, 8, 16], (200, 2000), 10
    count, length, batch = args.count, 10, BATCH
    if args.quick:
        samplings, gops, batches, clips = {"8x16": SAMPLINGS["8x16"]}, [BASELINE_GOP], (5, 10), 2
        count, length, batch, args.rounds, args.seconds = 2, 2, 2, 2, 0.1
    try:
        videos, facts = make_videos(args.cache, count, length, args.videos)
        if args.memory:
            result = measure_memory(videos, batches, clips)
        else:
            result = {"rounds": args.rounds, "seconds": args.seconds, "batch": batch, "size": SIZE}
            result |= measure_speed(videos, samplings, gops, batch, args.rounds, args.seconds)
    except (OutputError, ShardError, ValueError, OSError) as error:
        sys.exit(f"loader: {error}")
    print(table(result))
    if args.json:
        write_result(args.json, shown_command("loader.py"), {"videos": facts} | result)


if __name__ == "__main__":
    main()
