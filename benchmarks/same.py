"""Does this tree compute what another commit computed? The same videos in: shards, batches, checkpoints and features out.

    python benchmarks/same.py                  # against HEAD: what is not committed changes nothing
    python benchmarks/same.py --against v0.1   # against any commit

For a change that is meant to change no number: moving, renaming, shortening. Both trees run the same small workload
through their own commands, one after the other, and everything that comes out is compared byte for byte.
Exit codes: 0 all is the same; 1 something differs, by name; 2 a tree did not run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
GEOMETRY = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "heads": 4, "embed_dim": 32}
METHODS = {
    "st_adapter": {"adapter_width": 16},
    "aim": {"drop_path": 0.2},
    "zeroi2v": {"shift_div": 4},
    "dist": {"integration_dim": 64, "temporal_dim": 32},
    "tada": {"route_head_dim": 16, "tubelet_stride": 1},
}
CLIPS = {
    "train": {
        "sampling": "stride",
        "stride": 2,
        "randaugment": "rand-m7-n4-mstd0.5-inc1",
        "erasing": 0.25,
        "color_jitter": [0.4, 0.4, 0.4, 0.1],
    },
    "val": {},
    "test": {"clips": 2, "crops": 3, "test_short_side": 40},
    "windows": {"window": 0.5, "hop": 0.25},
}


# ---- what both trees are given ---------------------------------------------------------------------------------------


def write_videos(folder: Path, videos: int = 12, frames: int = 24) -> None:
    """Videos of drifting patterns in three class folders, 24 frames a second, mpeg4: no code of either tree."""
    import av

    for number in range(videos):
        path = folder / f"class {number % 3}" / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, columns = np.mgrid[:72, :96]
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", 24, width=96, height=72)
            for t in range(frames):
                planes = [np.sin((columns * (number + 2) + rows * c + 9 * t) / 20) * 100 + 128 for c in (1, 3, 7)]
                picture = np.stack(planes, -1).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())


def write_config(path: Path, method: str) -> None:
    path.write_text(
        yaml.safe_dump(
            {
                "model": {
                    "method": method,
                    "backbone": GEOMETRY,
                    "weights": "random",
                    "num_frames": 4,
                    "options": METHODS[method],
                },
                "data": {"train": "shards/vp9", "val": "shards/vp9", "device": "cpu", "threads": 1},
                "clips": {"flip": 0.5},
                "train": {
                    "epochs": 2,
                    "batch_size": 6,
                    "micro_batch": 2,
                    "lr": 1e-3,
                    "weight_decay": 0.01,
                    "mixup": 0.2,
                    "compile": False,
                    "log_every": 1,
                    "warmup_epochs": 0.5,
                },
                "out": f"runs/{method}",
            }
        )
    )


# ---- what a tree makes of it -----------------------------------------------------------------------------------------


def workload(tree: Path) -> None:
    """In a folder with videos/ and one YAML file for each method: print name -> sha256 of all that comes out, as JSON."""
    found = {}
    for codec in ("vp9", "mjpeg"):
        options = ["--codec", codec, "--short-side", "48", "--shard-clips", "5", "--workers", "1"]
        command(tree / "shard_tools" / "make_shards.py", "videos", "--out", f"shards/{codec}", *options)
        found |= {str(path): sha256(path.read_bytes()) for path in sorted(Path(f"shards/{codec}").iterdir())}
    for split in CLIPS:
        found |= batches(split)
    for method in METHODS:
        command("-m", "i2v.train", "--config", f"{method}.yaml")
        for name in ("last", "best"):
            found |= tensors(Path(f"runs/{method}/{name}.safetensors"))
        for line in Path(f"runs/{method}/log.jsonl").read_text().splitlines():
            record = json.loads(line)
            if "loss" in record:
                found[f"runs/{method} loss after step {record['step']}"] = repr(record["loss"])
    command("-m", "i2v.features", "--checkpoint", "runs/aim/best.safetensors", "--data", "shards/vp9", "--out", "features")
    found |= {str(path): sha256(path.read_bytes()) for path in sorted(Path("features").glob("*.npy"))}
    print(json.dumps(found))


def batches(split: str) -> dict[str, str]:
    try:
        from i2v.pipelines import build_loader
    except ImportError:  # a commit in which pipelines was a package of its own
        from pipelines import build_loader
    import itertools

    found = {}
    loader = build_loader(
        "shards/vp9", split, CLIPS[split], batch_size=5, device="cpu", threads=1, num_frames=4, size=32, seed=1
    )
    for step, batch in enumerate(itertools.islice(loader, 6)):
        for name in ("pixels", "labels", "weights", "ids", "frames"):
            found[f"{split} batch {step} {name}"] = sha256(getattr(batch, name).contiguous().numpy().tobytes())
    return found


def tensors(path: Path) -> dict[str, str]:
    import torch
    from safetensors.torch import load_file

    return {
        f"{path} {name}": sha256(t.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        for name, t in load_file(path).items()
    }


def command(*arguments) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True, stdout=sys.stderr)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


# ---- both ------------------------------------------------------------------------------------------------------------


def run(tree: Path, folder: Path) -> dict[str, str]:
    """The workload's findings with the code of `tree`. Raises RuntimeError with the end of what it said."""
    write_videos(folder / "videos")
    for method in METHODS:
        write_config(folder / f"{method}.yaml", method)
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, __file__, "--workload", str(tree)]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tree} did not run:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="HEAD", metavar="COMMIT", help="default: HEAD")
    parser.add_argument("--workload", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.workload:
        workload(arguments.workload)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        other = Path(temporary) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(other), arguments.against], check=True)
        try:
            before, now = run(other, Path(temporary) / "before"), run(ROOT, Path(temporary) / "now")
        except RuntimeError as error:
            print(f"same: {error}", file=sys.stderr)
            return 2
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
    differ = [name for name in before | now if before.get(name) != now.get(name)]
    for name in differ:
        print(f"{name}: {before.get(name, 'not there')} before, {now.get(name, 'not there')} now")
    print(f"{len(now) - len(differ)} of {len(before | now)} results are the same as in {arguments.against}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
