"""Videos per second and core of make_shards, beside what the codecs alone take, and the memory of its parent process.

    python benchmarks/sharding.py                                 # a few minutes; all other work disturbs it
    python benchmarks/sharding.py --videos FOLDER --json result.json      # on real videos
    python benchmarks/sharding.py --quick                         # only to see that it runs

On one core, in turns, with the same encoder options on the same videos:

    make_shards     all of it: decode, turn, scale, encode, decode the result and check it, checksums, write, index
    pyav            a bare loop: decode, scale, encode into a file
    ffmpeg          the same by the ffmpeg program, where there is one

Then make_shards with one worker process and with one per core, and what its parent holds as many small videos pass by.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import av

from benchmarks.measure import in_fresh_process, median_ratio, resident_mb, shown_command, spread, use_one_core
from benchmarks.moving_shapes import CLASSES, render_clip, write_video
from benchmarks.videos import make_videos
from i2v.shard_tools.dataset import OutputError, make_shards
from i2v.shard_tools.encode import LIBRARY, EncodeSettings
from i2v.shard_tools.sources import Video, load_sources

CODECS = ("vp9", "mjpeg", "h264")


# ---- contenders: (videos, settings, folder) -> None --------------------------------------------------------------------


def by_make_shards(videos: Path, settings: EncodeSettings, folder: Path, workers: int = 0) -> None:
    make_shards(*load_sources(videos), folder / "shards", settings, workers=workers)


def by_pyav(videos: Path, settings: EncodeSettings, folder: Path) -> None:
    """One thread, as make_shards."""
    pixels = "yuvj420p" if settings.codec == "mjpeg" else "yuv420p"
    for path in sorted(videos.rglob("*.mp4")):
        with av.open(str(path)) as source, av.open(str(folder / path.name), "w") as result:
            decoder = source.streams.video[0]
            decoder.codec_context.thread_count = 1
            width, height = _stored_size(decoder.width, decoder.height, settings.short_side)
            encoder = result.add_stream(LIBRARY[settings.codec], rate=decoder.average_rate, options=settings.encoder_options())
            encoder.width, encoder.height, encoder.pix_fmt = width, height, pixels
            encoder.codec_context.thread_count = 1
            for frame in source.decode(decoder):
                frame = frame.reformat(width, height, pixels, interpolation="BICUBIC")
                frame.pict_type = 0
                result.mux(encoder.encode(frame))
            result.mux(encoder.encode(None))


def by_ffmpeg(videos: Path, settings: EncodeSettings, folder: Path) -> None:
    """One thread, as make_shards."""
    for path in sorted(videos.rglob("*.mp4")):
        with av.open(str(path)) as source:
            stream = source.streams.video[0]
            width, height = _stored_size(stream.width, stream.height, settings.short_side)
        options = [word for name, value in settings.encoder_options().items() for word in (f"-{name}:v", value)]
        scale = f"scale={width}:{height}:flags=bicubic,format={'yuvj420p' if settings.codec == 'mjpeg' else 'yuv420p'}"
        command = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-threads", "1", "-i", path, "-an", "-vf", scale]
        command += ["-filter_threads", "1", "-c:v", LIBRARY[settings.codec], *options, "-threads", "1", folder / path.name]
        subprocess.run(command, check=True)


def _stored_size(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height: the short side as wanted, the long one a multiple of 16."""
    long = max(width, height) * short // min(width, height) // 16 * 16
    return (long, short) if width >= height else (short, long)


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure_speed(videos: Path, codecs: tuple[str, ...], rounds: int) -> dict:
    """Videos and frames per second of one core, for every codec."""
    use_one_core()
    contenders = {"make_shards": by_make_shards, "pyav": by_pyav} | ({"ffmpeg": by_ffmpeg} if shutil.which("ffmpeg") else {})
    count, frames = _extent(videos)
    per_codec = {}
    for codec in codecs:
        rates = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, contender in contenders.items():
                rates[name].append(count / _seconds(contender, videos, EncodeSettings(codec)))
        print(f"{codec} is done", file=sys.stderr, flush=True)
        per_codec[codec] = {
            "videos_per_s": {name: spread(values) for name, values in rates.items()},
            "frames_per_s": {name: spread([value * frames / count for value in values]) for name, values in rates.items()},
            "make_shards_of": {
                name: median_ratio(rates["make_shards"], values) for name, values in rates.items() if name != "make_shards"
            },
        }
    return per_codec


def measure_workers(videos: Path, rounds: int) -> dict:
    """Videos per second with so many worker processes: the seconds that the start of the workers takes are in it."""
    count, _ = _extent(videos)
    most = len(os.sched_getaffinity(0))
    rates = {workers: [] for workers in sorted({1, most})}
    for _ in range(rounds):
        for workers in rates:
            rates[workers].append(count / _seconds(by_make_shards, videos, EncodeSettings(), workers))
    return {str(workers): spread(values) for workers, values in rates.items()}


def _seconds(contender, videos: Path, settings: EncodeSettings, *more) -> float:
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        contender(videos, settings, Path(folder), *more)
        return time.perf_counter() - begin


def _extent(videos: Path) -> tuple[int, int]:
    """Videos, and the frames of all of them."""
    frames = []
    for path in videos.rglob("*.mp4"):
        with av.open(str(path)) as container:
            frames.append(container.streams.video[0].frames)
    return len(frames), sum(frames)


def measure_memory(count: int) -> dict:
    """Resident memory of the parent after every tenth of `count` tiny videos."""
    seen = {}

    def note(done: int, total: int, *_) -> None:
        tenth = 10 * done // total
        if tenth and str(tenth * 10) not in seen:
            seen[str(tenth * 10)] = resident_mb()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.mp4"
        write_video(path, render_clip(0, CLASSES[0], frames=4, size=(32, 32)))
        videos = [Video(str(path), 0, "tiny", f"tiny/{number:07d}.mp4") for number in range(count)]
        before = resident_mb()
        settings = EncodeSettings("mjpeg", short_side=32)
        make_shards(videos, ["tiny"], Path(folder) / "shards", settings, workers=1, on_progress=note)
    return {"videos": count, "before_mb": before, "after_percent_mb": seen}


# ---- what is shown ---------------------------------------------------------------------------------------------------


def table(result: dict) -> str:
    """The result as text."""
    lines = []
    for codec, of in result["codecs"].items():
        lines.append(f"{codec:14} {'videos/s':>10} {'min':>8} {'max':>8} {'frames/s':>10}   of one core")
        for name, r in of["videos_per_s"].items():
            share = f"   make_shards: {100 * of['make_shards_of'][name]:.0f} % of it" if name in of["make_shards_of"] else ""
            frames = of["frames_per_s"][name]["median"]
            lines.append(f"  {name:12} {r['median']:10.2f} {r['min']:8.2f} {r['max']:8.2f} {frames:10.0f}{share}")
    for workers, r in result["workers"].items():
        lines.append(f"{workers} workers: {r['median']:.2f} videos/s ({r['min']:.2f} to {r['max']:.2f}), with their start")
    m = result["memory"]
    held = ", ".join(f"{mb:.0f}" for mb in m["after_percent_mb"].values())
    lines.append(f"parent: {m['before_mb']:.0f} MB before {m['videos']:,} videos; after every tenth of them {held} MB")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--videos", type=Path, metavar="FOLDER", help="real videos to make the benchmark's from (default: moving shapes)")
    add("--count", type=int, default=8, help="videos of the benchmark (default: %(default)s)")
    add("--rounds", type=int, default=3, help="turns of every contender (default: %(default)s)")
    add("--cache", type=Path, default=Path("runs/benchmarks"), help="folder for the videos (default: %(default)s)")
    add("--quick", action="store_true", help="little of everything; the figures mean nothing")
    add("--json", type=Path, help="write the result, the machine and the command here")
    args = parser.parse_args()
    codecs, rounds, tiny = (("mjpeg",), 1, 50) if args.quick else (CODECS, args.rounds, 20_000)
    try:
        videos, facts = make_videos(args.cache, 2 if args.quick else args.count, 2 if args.quick else 10, args.videos)
        result = {
            "videos": facts,
            "rounds": rounds,
            "codecs": in_fresh_process(measure_speed, videos, codecs, rounds),
            "workers": measure_workers(videos, rounds),
            "memory": in_fresh_process(measure_memory, tiny),
        }
    except (OutputError, ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"sharding: {error}")
    print(table(result))
    if args.json:
        from benchmarks.machine import write_result  # brings torch: the processes above do without

        write_result(args.json, shown_command("sharding.py"), result)


if __name__ == "__main__":
    main()
