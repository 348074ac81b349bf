"""The product in a few minutes on a laptop's CPU: from videos to a prediction, with the commands that users give.

    python benchmarks/demo.py --out runs/demo
    python benchmarks/demo.py --out runs/demo --factors       # two labels a video, its motion and its speed
    python benchmarks/demo.py --out runs/demo --backbone dinov2-like    # registers, no norm before the layers, other colours

Nothing is downloaded. Eight classes of made-up videos differ by motion only; the backbone has seen still pictures only
and stays frozen, as CLIP does. So what is learnt here is motion, and the last line of the table is the proof: with the
frames of every clip in random order, the same model is lost. A second run re-uses what the first one made.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file: import from the repository

from benchmarks.machine import write_result
from benchmarks.pretrain_stills import GEOMETRY, SHAPES


def call(title: str, *command: object, made: Path | None = None) -> float:
    """Show and run a command in the repository; nothing to do if what it makes is there. Returns seconds."""
    shown = " ".join(map(str, command))
    print(f"\n=== {title}\n    python {shown}", flush=True)
    if made is not None and made.exists():
        print(f"    {made} is there already", flush=True)
        return 0.0
    begin = time.perf_counter()
    # Threads that wait without spinning: on a machine that does other things as well, this is several times faster.
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(f"demo: the command above failed with exit code {done.returncode}.")
    return time.perf_counter() - begin


def figures(scores: dict, shuffled: dict) -> dict[str, tuple[float, float, float]]:
    """Of every factor and of their combinations, or of classes: top-1, the same with frames in random order, chance."""
    chances = {f"{name}_top1": 1 / len(found["per_class"]) for name, found in scores.get("factors", {}).items()}
    chances["top1"] = math.prod(chances.values()) if chances else 1 / len(scores["per_class"])
    shown = {name: name.replace("_", " ").replace("top1", "top-1") for name in chances}
    return {shown[name]: (scores[name], shuffled[name], chance) for name, chance in chances.items()}


def make_data(
    out: Path, factors: bool = False, backbone: str = "clip", convolutional: bool = False
) -> tuple[Path, Path, dict[str, float]]:
    """Videos, shards of them and a backbone, where they are not there yet: the folder of shards, the backbone, seconds."""
    below = out / "factors" if factors else out
    videos, shards = below / "videos", below / "shards"
    clip = out / ("convnext.safetensors" if convolutional else f"{backbone}.safetensors")
    train, val = (videos / f"{split}.csv" if factors else videos / split for split in ("train", "val"))
    seconds = {}

    seconds["videos"] = call(
        "write videos of moving shapes",
        "-m",
        "benchmarks.moving_shapes",
        videos,
        "--train",
        120,
        "--val",
        40,
        *(["--speeds"] if factors else []),
        made=videos / "classes.png",
    )
    make = ("shard_tools/make_shards.py", "--short-side", 48, *(["--factors", "motion,speed"] if factors else []))
    seconds["shards"] = call("shard them", *make, train, "--out", shards / "train")
    seconds["shards"] += call(
        "shard the others, with the same classes",
        *make,
        val,
        "--out",
        shards / "val",
        "--classes",
        shards / "train" / "manifest.json",
    )
    seconds["backbone"] = call(
        f"train the backbone on still pictures, in place of {backbone}",
        "benchmarks/pretrain_stills.py",
        "--out",
        clip,
        *(["--shape", backbone] if SHAPES[backbone] else []),
        *["--convnext"] * convolutional,
        made=clip,
    )
    return shards, clip, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for all of it (default: %(default)s)")
    parser.add_argument("--method", default="st_adapter", help="a file in configs/demo (default: %(default)s)")
    parser.add_argument("--factors", action="store_true", help="videos with two labels each, and a head of factors")
    parser.add_argument("--backbone", choices=SHAPES, default="clip", help="whose shape it has (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the table, the machine and the command here")
    args = parser.parse_args()
    config = Path("configs/demo") / f"{args.method}.yaml"
    if not (ROOT / config).exists():
        known = ", ".join(sorted(path.stem for path in (ROOT / "configs/demo").glob("*.yaml")))
        sys.exit(f"demo: {config} does not exist: --method is one of {known}.")
    if args.method == "tadaconvnext" and args.backbone != "clip":
        sys.exit("demo: tadaconvnext has a trunk of its own: leave out --backbone.")
    out = args.out.resolve()
    below = out / "factors" if args.factors else out
    videos = below / "videos"
    run = below / (args.method if args.backbone == "clip" else f"{args.method}_{args.backbone}")
    shards, clip, seconds = make_data(out, args.factors, args.backbone, args.method == "tadaconvnext")
    seconds["training"] = call(
        f"train {args.method} from there",
        "-m",
        "i2v.train",
        "--config",
        config,
        f"data.train={shards / 'train'}",
        f"data.val={shards / 'val'}",
        f"model.weights={clip}",
        *([f"model.backbone={json.dumps(GEOMETRY | SHAPES[args.backbone])}"] if SHAPES[args.backbone] else []),
        f"out={run}",
        *(["model.head={type: factors, dropout: 0.0}"] if args.factors else []),
    )
    last = run / "last.safetensors"
    evaluate = ("-m", "i2v.evaluate", "--checkpoint", last, "--batch-size", 32)
    seconds["evaluation"] = call("evaluate", *evaluate, "--json", run / "scores.json", "--scores", run / "scores.npz")
    seconds["evaluation"] += call(
        "a control: frames in random order",
        *evaluate,
        "--json",
        run / "scores_shuffled.json",
        "--scores",
        run / "scores_shuffled.npz",
        "shuffle_frames=true",
    )
    call("all of it on one page", "-m", "i2v.report", run, "--out", run / "report.html")
    one = sorted((videos / "val").rglob("*.mp4"))[-1]
    call("predict one video", "-m", "i2v.predict", "--checkpoint", last, one, "--top", 3)

    scores, shuffled = (json.loads((run / name).read_text()) for name in ("scores.json", "scores_shuffled.json"))
    print(f"\n=== {args.method}: {scores['counted']} validation videos")
    rows = figures(scores, shuffled)
    for name, (ordered, without_order, chance) in rows.items():
        for what, share in ((f"{name}, frames in order", ordered), (f"{name}, frames in random order", without_order)):
            print(f"{what:31} {100 * share:5.1f} %")
        print(f"{'chance':31} {100 * chance:5.1f} %")
    print("\n" + "   ".join(f"{name} {spent:.0f} s" for name, spent in seconds.items()))
    if args.json:
        result = {
            "method": args.method,
            "backbone": args.backbone,
            "top1": scores["top1"],
            "top1_shuffled": shuffled["top1"],
            "videos": scores["counted"],
        }
        result |= {"figures": rows} if args.factors else {}
        command = "python benchmarks/demo.py " + " ".join(sys.argv[1:])
        write_result(args.json, command, result | {"seconds": {name: round(spent, 1) for name, spent in seconds.items()}})
    print(f"what the classes look like   {videos / 'classes.png'}")
    print(f"curves                       {run / 'curves.png'}")
    print(f"report                       {run / 'report.html'}")
    print(f"log                          {run / 'log.jsonl'}")
    print(f"run folder                   {run}")


if __name__ == "__main__":
    main()
