"""Training clips per second of one CPU core, beside what people do without this library.

    python benchmarks/loader.py                                   # about 12 minutes; all other work disturbs it
    python benchmarks/loader.py --videos FOLDER --json result.json        # on real videos
    python benchmarks/loader.py --memory                          # memory of long training and of many-view evaluation
    python benchmarks/loader.py --quick                           # only to see that it runs

Every contender makes the same clips, the same frames and boxes of the same videos, in its own process on the same core:

    vp9 gop N, mjpeg      this library's loader, from shards
    pyav                  a torch DataLoader over the original files, as the five methods' repositories do it: decode every
                          frame, pick, normalise, crop and resize in torch (without a worker process: there is one core)
    webdataset + dali     the videos of our VP9 shards (GOP 8), read by webdataset, all their frames decoded by DALI, then
                          picked, cropped, resized and normalised as in our graph
    the same, frames=     as before, but DALI's decoder is told which frames: it stops at the last of them

They take turns in several rounds; what one of them does ahead is frozen while another is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmarks.machine import write_result
from benchmarks.measure import (
    in_fresh_process,
    median_ratio,
    peak_resident_mb,
    resident_mb,
    shown_command,
    spread,
    use_one_core,
)
from benchmarks.videos import make_videos, shard_videos
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.graph import MEAN, STD
from i2v.shard_tools.dataset import OutputError
from i2v.shard_tools.encode import EncodeSettings

BATCH = 8
SIZE = 224
SAMPLINGS = {
    "8x16": {"num_frames": 8, "sampling": "stride", "stride": 16},
    "TSN-8": {"num_frames": 8, "sampling": "segments"},
    "16x4": {"num_frames": 16, "sampling": "stride", "stride": 4},
    "32x2": {"num_frames": 32, "sampling": "stride", "stride": 2},
}
AUGMENTATION = {"size": SIZE, "crop": "random_resized", "flip": 0.5}
BASELINES = ("pyav", "webdataset + dali", "webdataset + dali, frames=")
VIEWS_AT_ONCE = 3  # in the measurement of evaluation's memory
BASELINE_GOP = 8  # of the shards that webdataset + DALI read


# ---- contenders: (data, shards whose plan they follow, sampling, batch) -> batches (B, 3, T, H, W) ----------------------


def from_shards(data: Path, plan_of: Path, sampling: dict, batch: int) -> Iterator[torch.Tensor]:
    """This library."""
    for made in _loader(data, sampling, batch):
        yield made.clips


def from_files(data: Path, plan_of: Path, sampling: dict, batch: int) -> Iterator[torch.Tensor]:
    """A DataLoader that decodes whole files with PyAV."""
    yield from DataLoader(WholeFiles(data, plan_of, sampling), batch, sampler=itertools.count(), num_workers=0)


class WholeFiles(Dataset):
    """Clips as the original repositories make them."""

    def __init__(self, folder: Path, plan_of: Path, sampling: dict):
        loader = _loader(plan_of, sampling)
        self.plan, self.paths = loader.plan, [folder / loader.shards.metadata(i)["source"] for i in range(len(loader.plan))]
        self.mean, self.std = torch.tensor(MEAN) / 255, torch.tensor(STD) / 255

    def __getitem__(self, position: int) -> torch.Tensor:
        clip = self.plan[position]
        with av.open(str(self.paths[clip.id])) as container:
            container.streams.video[0].codec_context.thread_count = 1
            frames = list(container.decode(video=0))
        pixels = torch.from_numpy(np.stack([frames[i].to_ndarray(format="rgb24") for i in clip.frames]))
        pixels = ((pixels.float() / 255 - self.mean) / self.std).permute(3, 0, 1, 2)  # (3, T, H, W)
        top, left, bottom, right = clip.boxes[0].astype(int)
        pixels = F.interpolate(pixels[:, :, top:bottom, left:right], size=(SIZE, SIZE), mode="bicubic", align_corners=False)
        return pixels.flip(-1) if clip.flip else pixels


def from_webdataset(
    data: Path, plan_of: Path, sampling: dict, batch: int, frames_known: bool = False
) -> Iterator[torch.Tensor]:
    """Webdataset reads the shards from front to back; DALI decodes whole videos, or up to the last wanted frame."""
    from nvidia.dali import fn, pipeline_def, types

    samples = _webdataset_samples(data, _loader(plan_of, sampling).plan)

    @pipeline_def(batch_size=batch, num_threads=1, device_id=None)
    def clips():
        encoded, frames, box, mirror = fn.external_source(
            source=lambda: tuple(map(list, zip(*itertools.islice(samples, batch)))),
            num_outputs=4,
            batch=True,
            dtype=[types.UINT8, types.INT32, types.FLOAT, types.INT32],
            ndim=1,
        )
        if frames_known:
            video = fn.decoders.video(encoded, frames=frames)
        else:
            video = fn.sequence_rearrange(fn.decoders.video(encoded), new_order=frames)
        video = fn.resize(video, size=[SIZE, SIZE], roi_start=box[0:2], roi_end=box[2:4], interp_type=types.INTERP_CUBIC)
        mirror = fn.squeeze(mirror, axes=[0])
        return fn.crop_mirror_normalize(video, mirror=mirror, mean=MEAN, std=STD, dtype=types.FLOAT, output_layout="FHWC")

    pipeline = clips()
    pipeline.build()
    while True:
        (made,) = pipeline.run()
        yield torch.from_dlpack(made.as_tensor()).permute(0, 4, 1, 2, 3)


def _webdataset_samples(shards: Path, plan):
    """Endless: whole videos in the order of the shards, with the frames, box and flip that the plan has for them."""
    import webdataset

    files = sorted(map(str, shards.glob("*.tar")))
    for epoch in itertools.count():
        clips = {clip.id: clip for clip in map(plan.__getitem__, range(epoch * len(plan), (epoch + 1) * len(plan)))}
        for video, sample in enumerate(webdataset.WebDataset(files, shardshuffle=False)):
            clip = clips[video]
            yield np.frombuffer(sample["mp4"], np.uint8), clip.frames, clip.boxes[0], np.array([clip.flip], np.int32)


def _loader(shards: Path, sampling: dict, batch: int = 1):
    return build_loader(shards, "train", sampling | AUGMENTATION, batch, "cpu", threads=1)


# ---- measuring -------------------------------------------------------------------------------------------------------


class Contender:
    """Batches from a process of its own, on one core. Between measurements it is stopped, with all its threads."""

    def __init__(self, name: str, batches, data: Path, plan_of: Path):
        self.name, self.data = name, data
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


def measure_speed(videos: Path, samplings: dict, gops: list[int], batch: int, rounds: int, seconds: float) -> dict:
    """Clips per second of every contender, for every sampling, and how many times the baselines that is."""
    settings = [EncodeSettings("vp9", gop) for gop in gops] + [EncodeSettings("mjpeg")]
    shards = {_name(s): shard_videos(videos, s) for s in settings}
    whole = shards[f"vp9 gop {BASELINE_GOP}"]
    contenders = [Contender(name, from_shards, data, data) for name, data in shards.items()]
    contenders += [
        Contender(BASELINES[0], from_files, videos, whole),
        Contender(BASELINES[1], from_webdataset, whole, whole),
        Contender(BASELINES[2], partial(from_webdataset, frames_known=True), whole, whole),
    ]
    steps = tqdm(total=len(samplings) * (rounds + 1) * len(contenders), unit="turn", disable=not sys.stderr.isatty())
    rates, shares = {}, []
    try:
        for sampling, options in samplings.items():
            rates[sampling] = {contender.name: [] for contender in contenders}
            for contender in contenders:
                contender.ask((options, batch))
                steps.update()
            for _ in range(rounds):
                for contender in contenders:
                    rate, share = contender.ask(seconds)
                    rates[sampling][contender.name].append(rate)
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
        "had_the_core": statistics.median(shares),  # much less than 1: other work has disturbed the measurement
        "baselines": BASELINES,
        "times": {
            s: {name: {base: median_ratio(of[name], of[base]) for base in BASELINES} for name in shards}
            for s, of in rates.items()
        },
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
        lines.append(f"{sampling:28} {'clips/s':>8} {'min':>8} {'max':>8}   times {' | '.join(BASELINES)}")
        for name, r in rates.items():
            times = " | ".join(f"{value:.1f}" for value in result["times"][sampling].get(name, {}).values())
            lines.append(f"  {name:26} {r['median']:8.1f} {r['min']:8.1f} {r['max']:8.1f}   {times}")
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
