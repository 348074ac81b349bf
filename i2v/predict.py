"""What do these videos show?

    python -m i2v.predict --checkpoint runs/st_adapter/k400_vit-b16_8f/best.safetensors video.mp4 folder/ --top 5

Each video is stored as training stored its videos, cut and looked at from the views of the run's evaluation, and named
with the classes in the checkpoint: the prediction is the one that an evaluation of that video would count. Needs the
checkpoint and the backbone's weights, nothing else.

    python -m i2v.predict --checkpoint ... film.mp4 --window 2 --hop 1     # what happens when: a window slides over the film
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path

import torch

from i2v.checkpoint import load_checkpoint
from i2v.console import print_any_name
from i2v.distributed import init_world
from i2v.metrics import videos_at_once, view_probabilities
from i2v.pipelines import ShardError, build_loader
from i2v.runtime import autocast_for, choose_precision, place, restore_model
from i2v.shard_tools.dataset import OutputError, make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.paths import videos_below
from i2v.shard_tools.sources import Video

MEMORY = 4.0  # GB for clips
AT_ONCE = 64  # videos per round: results come soon, and little disk is needed


def find_videos(paths: list[Path]) -> list[Path]:
    """Files as given, folders searched for video files that are not hidden. Raises ValueError if there is nothing."""
    videos = []
    for path in paths:
        if path.is_dir():
            videos += [path / name for name in videos_below(str(path))]
        elif path.exists():
            videos.append(path)
        else:
            raise ValueError(f"{path} does not exist: give video files or folders.")
    if not videos:
        raise ValueError(f"{', '.join(map(str, paths))} holds no video files.")
    return list(dict.fromkeys(videos))


@torch.no_grad()
def predict(model, meta: dict, videos: list[Path], device: torch.device, autocast, workers: int, window=None, hop=None) -> dict:
    """For every video a list of (start, end, probabilities): seconds as players count them, and a (K,) tensor; or why it
    could not be read.

    window, hop: seconds; None: the views of the run's evaluation, averaged, are one answer for the whole video.
    """
    stored = dict(meta["stored"])
    options = meta["clips"] | {"num_frames": model.num_frames, "size": model.spec.image_size}
    split = "test"
    if window is not None:
        split, options = "windows", options | {"window": window, "hop": hop}
        stored["max_seconds"] = None
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        items = [Video(str(video), source=str(i)) for i, video in enumerate(videos)]  # a name may be no text
        manifest = make_shards(items, [], folder, EncodeSettings(**stored), workers=workers)
        with open(Path(folder) / "rejected.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
            found |= {row["path"]: row["reason"] for row in csv.DictReader(file)}
        if manifest["clips"]:
            where = "gpu" if device.type == "cuda" else "cpu"
            loader = build_loader(folder, split, options, min(videos_at_once(options, MEMORY), manifest["clips"]), where)
            for batch in loader:
                with autocast():
                    probabilities = view_probabilities(model, batch).cpu()
                for i in batch.weights.nonzero().flatten().tolist():
                    clip = int(batch.ids[i])
                    length = float(loader.shards.clips["frames"][clip] / loader.shards.clips["fps"][clip])
                    begin = loader.shards.begin(clip)
                    start, end = loader.plan.window(int(batch.positions[i])) if window is not None else (0.0, length)
                    answers = found.setdefault(loader.shards.metadata(clip)["source"], [])
                    answers.append((begin + start, begin + min(end, length), probabilities[i]))
            for clip, reason in loader.bad.items():
                found[loader.shards.metadata(clip)["source"]] = reason
    return {str(video): found[str(i)] for i, video in enumerate(videos)}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="i2v.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="best.safetensors or last.safetensors of a run")
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="files, or folders that are searched for them")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name")
    parser.add_argument("--window", type=float, metavar="S", help="an answer for every so many seconds of a video")
    parser.add_argument("--hop", type=float, metavar="S", help="seconds from window to window (default: --window)")
    parser.add_argument("--weights", help="the backbone's file or tag, if it is not where the run had it")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "float32"))
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare videos (default: this one)")
    parser.add_argument("--json", type=Path, help="write all of it here as well")
    args = parser.parse_args()
    print_any_name()
    try:
        if args.top < 1:
            raise ValueError(f"--top is {args.top}: it must be at least 1.")
        if args.hop is not None and args.window is None:
            raise ValueError("--hop says how far windows are apart: give --window as well.")
        if args.workers < 0:
            raise ValueError(f"--workers is {args.workers}: it must be at least 0.")
        if args.json and not args.json.parent.is_dir():
            raise ValueError(f"{args.json.parent} does not exist: --json needs a folder that does.")
        videos = find_videos(args.videos)
        tensors, meta = load_checkpoint(args.checkpoint)
        device = init_world(args.device).device
        model = restore_model(tensors, meta, args.weights).eval()
        dtype = choose_precision(args.precision, device)
        place(model, device, dtype)
        results = []
        for first in range(0, len(videos), AT_ONCE):
            chunk = videos[first : first + AT_ONCE]
            found = predict(model, meta, chunk, device, autocast_for(device, dtype), args.workers, args.window, args.hop)
            for video, answer in found.items():
                results.append(show(video, answer, meta["classes"], args.top, args.window is not None))
    except (ValueError, TypeError, OSError, ShardError, OutputError) as error:
        sys.exit(f"i2v.predict: {error}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    unread = sum("error" in result for result in results)
    if unread:
        sys.exit(f"i2v.predict: {unread} of {len(results)} videos could not be read.")


def show(video: str, answer, classes: list[str], top: int, windowed: bool) -> dict:
    """Print one video's result, and return it."""
    print(video)
    if isinstance(answer, str):
        print(f"    cannot be read: {answer}")
        return {"video": video, "error": answer}
    windows = []
    for start, end, probabilities in answer:
        best = probabilities.topk(min(top, len(classes)))
        named = [(classes[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist())]
        if windowed:
            print(f"  {start:.2f} to {end:.2f} s")
        for name, probability in named:
            print(f"    {100 * probability:5.1f} %  {name}")
        windows.append({"start": start, "end": end, "top": [{"class": name, "probability": p} for name, p in named]})
    return {"video": video, "windows": windows} if windowed else {"video": video, "top": windows[0]["top"]}


if __name__ == "__main__":
    main()
