"""How many videos a second predict names: a folder of small ones, against one at a time: python benchmarks/predicting.py

The model is an ST-Adapter with random weights: what it says means nothing, and how fast it says it does. Worker processes
are timed with their start, as a user waits for it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository

import torch

from benchmarks.machine import write_result
from benchmarks.measure import median_ratio, shown_command, spread
from benchmarks.videos import make_videos
from i2v.checkpoint import Backbone, Meta
from i2v.distributed import init_world
from i2v.model import create_model
from i2v.predictor import Predictor, predict, watch
from i2v.session import Session

TINY = {"image_size": 224, "patch_size": 32, "width": 192, "layers": 4, "heads": 3, "embed_dim": 64}
STORED = {"codec": "vp9", "short_side": 256}
ALONE = "one at a time"


def open_model(backbone: str, device: str) -> Session:
    torch.manual_seed(0)
    model = create_model("st_adapter", TINY if backbone == "tiny" else backbone, 8, 10).eval()
    classes = [f"class {i}" for i in range(10)]
    session = Session(model, Meta(model.config, Backbone("", "", None), classes, stored=STORED))
    session.place(init_world(device).device, "auto")
    return session


def ways(session: Session, videos: list[str], workers: int) -> dict:
    """Name -> a function that looks at all videos."""
    predictor = Predictor(session)

    def folder(count: int) -> None:
        for _, answer in predict(session, videos, count):
            if isinstance(answer, str):
                raise ValueError(answer)

    def windows(ahead: int) -> None:
        with closing(watch(session, videos, window=2.0, ahead=ahead)) as watched:
            for _, answers in watched:
                for _ in answers:
                    pass

    return {
        ALONE: lambda: [predictor.predict(video) for video in videos],
        "the folder": lambda: folder(0),
        f"the folder, {workers} workers": lambda: folder(workers),
        "windows of 2 s": lambda: windows(0),
        f"windows of 2 s, {workers} read ahead": lambda: windows(workers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--videos", type=Path, metavar="FOLDER", help="real videos to make the benchmark's from (default: moving shapes)")
    add("--count", type=int, default=1000, help="videos of the benchmark (default: %(default)s)")
    add("--seconds", type=int, default=4, help="length of each (default: %(default)s)")
    add("--backbone", default="tiny", help="tiny, or a name such as ViT-B-16 (default: %(default)s)")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores (%(default)s)")
    add("--rounds", type=int, default=3, help="each way once in each (default: %(default)s)")
    add("--device", default="auto", choices=("auto", "cpu", "gpu"))
    add("--cache", type=Path, default=Path("runs/benchmarks"), help="folder for videos (default: %(default)s)")
    add("--note", default="", help="what else was running, for the table")
    add("--json", type=Path, help="write the result, the machine and the command here")
    args = parser.parse_args()
    try:
        folder, facts = make_videos(args.cache, args.count, args.seconds, args.videos)
    except (ValueError, OSError) as error:
        sys.exit(f"predicting: {error}")
    videos = sorted(map(str, folder.rglob("*.mp4")))
    session = open_model(args.backbone, args.device)
    found: dict[str, list[float]] = {}
    list(predict(session, videos[:1]))  # libraries are loaded
    for _ in range(args.rounds):
        for name, look in ways(session, videos, args.workers).items():
            begin = time.perf_counter()
            look()
            found.setdefault(name, []).append(len(videos) / (time.perf_counter() - begin))
    result = {
        "videos": facts,
        "backbone": args.backbone,
        "precision": session.precision,
        "rounds": args.rounds,
        "note": args.note,
        "videos_per_s": {name: spread(rates) for name, rates in found.items()},
        "times": {name: median_ratio(rates, found[ALONE]) for name, rates in found.items()},
    }
    for name, rate in result["videos_per_s"].items():
        print(f"{name:32} {rate['median']:8.2f} videos/s, {result['times'][name]:.2f} times one at a time")
    if args.json:
        write_result(args.json, shown_command("predicting.py"), result)


if __name__ == "__main__":
    main()
