"""Everything there is to find out on a GPU, in one call: facts, tests, kernels, decoding, models, RandAugment; a short table
last.

    python benchmarks/gpu.py --json benchmarks/results/gpu.json             # what is not begun after 8.5 minutes is left out
    python benchmarks/gpu.py --only decode --codecs h264 --json ...         # one question
    python benchmarks/gpu.py --quick                                        # on any machine: only to see that it runs

Each answer is written as soon as it is there, so a call that is cut short has not been for nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file: import from the repository

import torch

import benchmarks.kernels
from benchmarks.machine import write_result
from benchmarks.measure import spread
from benchmarks.videos import make_videos, shard_videos
from i2v.pipelines import build_loader
from i2v.shard_tools.encode import EncodeSettings

CONFIGS = (
    "st_adapter/k400_vit-b16_8f",
    "aim/k400_vit-b16_8f",
    "zeroi2v/k400_vit-b16_8f",
    "dist/k400_vit-b16_8+16f",
    "tada/k400_vit-b16_16f",
)
AFTER_THE_END = 60  # seconds that what was begun before it may still take
SAMPLING = {"num_frames": 8, "sampling": "stride", "stride": 16}  # 8x16


def facts(args) -> dict:
    """Driver, decoder library, and what torch sees."""
    found = {"torch_cuda": torch.version.cuda, "libraries": {}}
    for library in ("libnvcuvid.so.1", "libcuda.so.1"):
        try:
            ctypes.CDLL(library)
            found["libraries"][library] = True
        except OSError:
            found["libraries"][library] = False
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip()
    except OSError as error:
        found["nvidia_smi"] = str(error)
    return found


def tests(args) -> dict:
    """The tests that only a CUDA device can run."""
    files = ["tests/test_gpu.py", "tests/test_graph.py"]  # collecting all the others takes a minute
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-ra", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=args.timeout)
    return {"exit_code": done.returncode, "said": done.stdout[-3000:]}


def kernels(args) -> dict:
    """Memory, products and attention at the methods' shapes, without this library."""
    device, found = "cuda" if torch.cuda.is_available() else "cpu", {}
    for name, question in benchmarks.kernels.questions(device, *([2] if args.quick else [])).items():
        found[name] = args.answer(question)
        args.note(found)
    return found


def decode(args) -> dict:
    """Clips per second of the loader alone: codec, distance of keyframes, where it decodes."""
    found = {}
    for codec, gop in itertools.product(args.codecs, args.gops):
        if codec == "mjpeg" and gop != 1:  # it has only keyframes
            continue
        data = shard_videos(args.videos, EncodeSettings(codec, gop))
        for where in args.decoders:
            if codec == "mjpeg" and where == "gpu":  # NVDEC does not take it
                continue
            name = f"{codec} gop {gop} decoded on {where}"
            found[name] = args.answer(lambda: loader_rate(data, args, decode=where))
            args.note(found)
    return found


def randaugment(args) -> dict:
    """What RandAugment costs on the device where clips are made."""
    data = shard_videos(args.videos, EncodeSettings("mjpeg"))
    names = {"none": None, "on crops": "crop", "on frames": "frames"}
    options = {
        name: {} if on is None else {"randaugment": "rand-m7-n4-mstd0.5-inc1", "randaugment_on": on}
        for name, on in names.items()
    }
    return {name: args.answer(lambda: loader_rate(data, args, decode="cpu", **option)) for name, option in options.items()}


def models(args) -> dict:
    """Model alone and end to end, compiled, autotuned and not, for one recipe of each method."""
    data, found = shard_videos(args.videos, EncodeSettings("vp9", 8)), {}
    configs = [["--preset", "tiny"]] if args.quick else [["--config", f"configs/{config}.yaml"] for config in CONFIGS]
    ways = {"compiled": "true", "autotuned": "autotune", "eager": "false"}
    for way, config in itertools.product(ways, configs):
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            command = [
                sys.executable,
                "benchmarks/throughput.py",
                *config,
                "--data",
                str(data),
                "--rounds",
                "3",
                "--seconds",
                "2",
                "--json",
                str(result),
                f"train.compile={ways[way]}",
                *([] if args.quick else ["train.micro_batch=64"]),  # a recipe's whole batch is for several GPUs
                *args.overrides,
            ]

            def measured(command=command, result=result) -> dict:
                left = max(0.0, args.end - time.monotonic()) + AFTER_THE_END / 2
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=min(args.timeout, left))
                return json.loads(result.read_text()) if result.exists() else {"error": (done.stderr or done.stdout)[-500:]}

            found[f"{config[1]} {way}"] = args.answer(measured)
        args.note(found)
    return found


def loader_rate(data: Path, args, **options) -> dict:
    """Clips per second: median, minimum and maximum of three rounds."""
    device = "gpu" if torch.cuda.is_available() else "cpu"
    batches = iter(build_loader(data, batch_size=args.batch_size, device=device, **SAMPLING, **options))
    for _ in range(3):
        next(batches)
    measured = []
    for _ in range(3):
        begin, clips = time.perf_counter(), 0
        while time.perf_counter() - begin < args.seconds:
            clips += len(next(batches).ids)
        if device == "gpu":
            torch.cuda.synchronize()
        measured.append(clips / (time.perf_counter() - begin))
    batches.close()
    return spread(measured)


def answer(question, end: float = float("inf")) -> dict:
    """What it measures, or the error that it ends in: the other questions go on. end: when none is begun any more."""
    if time.monotonic() > end:
        return {"error": "not asked: the time was over (--minutes)"}
    try:
        return question()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}


def ask(name: str, args, into: Path) -> None:
    """One question, in a process of its own, whose device an earlier one cannot have broken; every part of the answer is
    written when it is there."""
    args.answer = partial(answer, end=args.end)
    args.note = lambda found: into.write_text(json.dumps(found))
    args.note(args.answer(lambda: QUESTIONS[name](args)))


def asked(name: str, args) -> dict:
    """The answer, or as much of it as there was when its process ended or its time was over."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "answer.json"
        process = multiprocessing.get_context("spawn").Process(target=ask, args=(name, args, into))
        process.start()
        process.join(max(0.0, args.end - time.monotonic()) + AFTER_THE_END)
        if process.is_alive():
            process.kill()
            process.join()
        found = json.loads(into.read_text()) if into.exists() else {"error": f"it ended with code {process.exitcode}"}
        if process.exitcode and "error" not in found:
            found["and then"] = {"error": f"it ended with code {process.exitcode}"}
        return found


QUESTIONS = {f.__name__: f for f in (facts, tests, kernels, decode, models, randaugment)}  # what is needed most first


def show(found: dict) -> str:
    """A line for each figure."""
    lines = [f"facts: {json.dumps(found.get('facts', {}))}"]
    if "exit_code" in found.get("tests", {}):
        lines.append(f"tests: exit code {found['tests']['exit_code']}: {found['tests']['said'].strip().splitlines()[-1:]}")
    for section in ("kernels", "decode", "randaugment", "models"):
        for name, result in found.get(section, {}).items() if "error" not in found.get(section, {}) else ():
            if "error" in result:
                lines.append(f"{section:12} {name:44} {result['error'][:120]}")
            elif section == "kernels":
                lines.append(f"{section:12} {name:44} " + "  ".join(f"{key} {value:.3g}" for key, value in result.items()))
            else:
                rates = result.get("clips_per_s", {"loader": result})
                lines.append(
                    f"{section:12} {name:44} " + "  ".join(f"{key} {rate['median']:.1f}" for key, rate in rates.items())
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--codecs", nargs="+", default=["vp9", "h264", "hevc", "mjpeg"])
    parser.add_argument("--gops", nargs="+", type=int, default=[1, 4, 8, 16])
    parser.add_argument("--decoders", nargs="+", default=["gpu", "cpu"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each of three rounds")
    parser.add_argument("--count", type=int, default=64, help="videos, made on the spot")
    parser.add_argument("--minutes", type=float, default=8.5, help="after which nothing new is begun (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=240, help="seconds for a program that is run")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="for the models, such as train.micro_batch=64"
    )
    args = parser.parse_args()
    if args.quick:
        args.codecs, args.gops, args.decoders, args.batch_size, args.seconds, args.count = ["vp9"], [8], ["cpu"], 4, 0.2, 4
        args.only = [name for name in args.only if name != "tests"]
    args.end = time.monotonic() + 60 * args.minutes
    found: dict = {}
    command = "python benchmarks/gpu.py " + " ".join(sys.argv[1:])
    if {"decode", "randaugment", "models"} & set(args.only):
        args.videos, found["videos"] = make_videos(args.cache, args.count, 2 if args.quick else 10, None)
    for name in args.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = asked(name, args)
        if args.json:
            write_result(args.json, command, found)
    print(show(found))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
