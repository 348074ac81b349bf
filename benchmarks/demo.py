"""The product in a few minutes on a laptop's CPU: from videos to a prediction, with the commands that users give.

    python benchmarks/demo.py --out runs/demo
    python benchmarks/demo.py --out runs/demo --factors       # two labels a video, its motion and its speed
    python benchmarks/demo.py --out runs/demo --backbone dinov2-like    # registers, no norm before the layers, other colours
    python benchmarks/demo.py --method dist --seeds 3 train.epochs=36   # three runs, the mean and how far they are apart

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
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file: import from the repository

from benchmarks.machine import write_result
from benchmarks.measure import percent
from benchmarks.pretrain_stills import GEOMETRY, SHAPES
from i2v.config import ConfigError, load_config


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


def figures(scores: list[dict], shuffled: list[dict]) -> dict[str, tuple[list[float], list[float], float]]:
    """Of every factor and of their combinations, or of classes: top-1 of every run, that of frames in random order, chance."""
    chances = {f"{name}_top1": 1 / len(found["per_class"]) for name, found in scores[0].get("factors", {}).items()}
    chances["top1"] = math.prod(chances.values()) if chances else 1 / len(scores[0]["per_class"])
    shown = {name: name.replace("_", " ").replace("top1", "top-1") for name in chances}
    return {
        shown[name]: ([each[name] for each in scores], [each[name] for each in shuffled], chance)
        for name, chance in chances.items()
    }


@dataclass
class Demo:
    """Its steps, in their order, and the files between them."""

    out: Path
    method: str
    backbone: str
    factors: bool
    seeds: int = 1
    overrides: list[str] = field(default_factory=list)  # of the configuration
    seconds: dict[str, float] = field(default_factory=dict)  # of each step; a run's mean of training, evaluation

    def __post_init__(self):
        self.config = Path("configs/demo") / f"{self.method}.yaml"
        self.convolutional = self.method == "tadaconvnext"
        below = self.out / "factors" if self.factors else self.out
        self.videos, self.shards = below / "videos", below / "shards"
        name = "_".join([self.method, *[self.backbone] * (self.backbone != "clip"), *self.overrides]).replace("/", "-")
        trunk = "convnext" if self.convolutional else self.backbone
        ends = ["", *(f"_seed{seed}" for seed in range(1, self.seeds))]
        self.weights = [self.out / f"{trunk}{end}.safetensors" for end in ends]
        self.runs = [below / f"{name}{end}" for end in ends]

    def make_videos(self) -> None:
        speeds = ["--speeds"] if self.factors else []
        moving = ("-m", "benchmarks.moving_shapes", self.videos, "--train", 120, "--val", 40, *speeds)
        self.seconds["videos"] = call("write videos of moving shapes", *moving, made=self.videos / "classes.png")

    def make_shards(self) -> None:
        labels = ["--factors", "motion,speed"] if self.factors else []
        make = ("shard_tools/make_shards.py", "--short-side", 48, *labels)
        train, val = (self.videos / f"{split}.csv" if self.factors else self.videos / split for split in ("train", "val"))
        self.seconds["shards"] = call("shard them", *make, train, "--out", self.shards / "train")
        others = (*make, val, "--out", self.shards / "val", "--classes", self.shards / "train" / "manifest.json")
        self.seconds["shards"] += call("shard the others, with the same classes", *others)

    def make_backbones(self) -> None:
        shape = ["--shape", self.backbone] if SHAPES[self.backbone] else ["--convnext"] * self.convolutional
        title, spent = f"train the backbone on still pictures, in place of {self.backbone}", 0.0
        for seed, weights in enumerate(self.weights):
            pretrain = ("benchmarks/pretrain_stills.py", "--out", weights, *shape, "--seed", seed)
            spent += call(title, *pretrain, made=weights)
        self.seconds["backbone"] = spent

    def train(self) -> None:
        shape = SHAPES[self.backbone]
        data = (f"data.train={self.shards / 'train'}", f"data.val={self.shards / 'val'}")
        backbone = [f"model.backbone={json.dumps(GEOMETRY | shape)}"] if shape else []
        head = ["model.head={type: factors, dropout: 0.0}"] if self.factors else []
        spent = 0.0
        for seed, (weights, run) in enumerate(zip(self.weights, self.runs)):
            own = (f"model.weights={weights}", f"train.seed={seed}", f"out={run}")
            command = ("-m", "i2v.train", "--config", self.config, *data, *backbone, *head, *self.overrides, *own)
            spent += call(f"train {self.method} from there", *command)
        self.seconds["training"] = spent / self.seeds

    def evaluate(self) -> None:
        ways = (("evaluate", "scores", ()), ("a control: frames in random order", "scores_shuffled", ("shuffle_frames=true",)))
        spent = 0.0
        for run in self.runs:
            for title, name, options in ways:
                evaluate = ("-m", "i2v.evaluate", "--checkpoint", run / "last.safetensors", "--batch-size", 32)
                written = ("--json", run / f"{name}.json", "--scores", run / f"{name}.npz")
                spent += call(title, *evaluate, *written, *options)
        self.seconds["evaluation"] = spent / self.seeds

    def show(self) -> None:
        """What came out, as a user looks at it."""
        call("all of it on one page", "-m", "i2v.report", *self.runs, "--out", self.runs[0] / "report.html")
        one = sorted((self.videos / "val").rglob("*.mp4"))[-1]
        call("predict one video", "-m", "i2v.predict", "--checkpoint", self.runs[0] / "last.safetensors", one, "--top", 3)

    def scores(self) -> tuple[list[dict], list[dict]]:
        """Of every run: with the frames in order, and in random order."""
        scores, shuffled = (
            [json.loads((run / f"{name}.json").read_text()) for run in self.runs] for name in ("scores", "scores_shuffled")
        )
        return scores, shuffled

    def print_table(self) -> None:
        scores, shuffled = self.scores()
        print(f"\n=== {self.method}: {scores[0]['counted']} validation videos" + f", {self.seeds} seeds" * (self.seeds > 1))
        for name, (ordered, without_order, chance) in figures(scores, shuffled).items():
            print(f"{name + ', frames in order':31} {percent(ordered)}")
            print(f"{name + ', frames in random order':31} {percent(without_order)}")
            print(f"{'chance':31} {percent([chance])}")
        print("\n" + "   ".join(f"{name} {spent:.0f} s" for name, spent in self.seconds.items()))

    def write(self, path: Path) -> None:
        """The table, the machine and the command, as JSON."""
        scores, shuffled = self.scores()
        result = {
            "method": self.method,
            "backbone": self.backbone,
            "overrides": self.overrides,
            "videos": scores[0]["counted"],
            "figures": figures(scores, shuffled),
        }
        result |= {"seconds": {name: round(spent, 1) for name, spent in self.seconds.items()}}
        write_result(path, "python benchmarks/demo.py " + " ".join(sys.argv[1:]), result)

    def print_paths(self) -> None:
        print(f"what the classes look like   {self.videos / 'classes.png'}")
        print(f"curves                       {self.runs[0] / 'curves.png'}")
        print(f"report                       {self.runs[0] / 'report.html'}")
        print(f"log                          {self.runs[0] / 'log.jsonl'}")
        print("\n".join(f"run folder                   {run}" for run in self.runs))


def parsed() -> argparse.Namespace:
    """The arguments, in which method and backbone go together; else it ends with one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for all of it (default: %(default)s)")
    parser.add_argument("--method", default="st_adapter", help="a file in configs/demo (default: %(default)s)")
    parser.add_argument("--factors", action="store_true", help="videos with two labels each, and a head of factors")
    parser.add_argument("--backbone", choices=SHAPES, default="clip", help="whose shape it has (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="so many backbones, and a run from each (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="in place of the configuration's values")
    parser.add_argument("--json", type=Path, help="write the table, the machine and the command here")
    args = parser.parse_intermixed_args()
    known = sorted(path.stem for path in (ROOT / "configs/demo").glob("*.yaml"))
    if args.method not in known:
        sys.exit(f"demo: configs/demo/{args.method}.yaml does not exist: --method is one of {', '.join(known)}.")
    if args.method == "tadaconvnext" and args.backbone != "clip":
        sys.exit("demo: tadaconvnext has a trunk of its own: leave out --backbone.")
    if args.seeds < 1:
        sys.exit(f"demo: --seeds is {args.seeds}: it must be at least 1.")
    try:
        load_config(ROOT / "configs/demo" / f"{args.method}.yaml", args.overrides)
    except ConfigError as error:
        sys.exit(f"demo: {error}")
    return args


def main() -> None:
    args = parsed()
    demo = Demo(args.out.resolve(), args.method, args.backbone, args.factors, args.seeds, args.overrides)
    demo.make_videos()
    demo.make_shards()
    demo.make_backbones()
    demo.train()
    demo.evaluate()
    demo.show()
    demo.print_table()
    if args.json:
        demo.write(args.json)
    demo.print_paths()


if __name__ == "__main__":
    main()
