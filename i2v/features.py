"""Features of every video of a sharded data set: what temporal localisation, retrieval or a linear probe start from.

    python -m i2v.features --checkpoint runs/aim/k400_vit-b16_8f/best.safetensors --data /data/films --out features/films \\
        --window 1.0 --hop 0.5
    python -m i2v.features ... --window 64f --hop 8f fps=60 crops=3 --crops-as beside --scores     # for i2v.localise
    torchrun --nproc-per-node 8 -m i2v.features --config configs/clip/k400_vit-b16_8f.yaml --data /data/k400/val --out ...

With --window, windows of so many seconds slide over each video, --hop seconds apart, frames at equal distances in each, one
crop of the centre if crops=3 does not say otherwise; 64f is a window of 64 frames of the video, or at the rate that fps=60
says. Without, there is one row per clip of the run's evaluation. A row is what enters the classifier: of all crops the mean,
or one crop beside the other. Times are seconds of the source file as players show them. Interrupted, the same command goes on.

what comes out: features.csv (key, source, class, rows), features.json (how they were made) and, with --format npy,
KEY.npy (rows, D) float32 and KEY.times.npy (rows, 2) float64: start and end; with --format shards the same as members of
WebDataset tars, with KEY.json. With --scores also KEY.scores.class.npy (rows, K) float32: logits, those of crops likewise
beside each other or as one, whose softmax is the mean of theirs; with a head of factors KEY.scores.FACTOR.npy for each.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from i2v.atomic import replacing
from i2v.distributed import World, close_world, init_world, sum_over_ranks, wait_for_all
from i2v.lock import held
from i2v.metrics import videos_at_once
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.shards import ClipError
from i2v.rows import Rows, class_kinds
from i2v.session import add_flags, command, open_session, parse

PART = 16  # videos that are written together, and that an interruption costs at most
MEMORY = 4.0  # GB for clips
FILE_NAMES = ("utf-8", "surrogateescape")  # in tables, as in clips.csv: what is not UTF-8 in a name is kept, byte by byte


def extract(args, world: World) -> tuple[int, list[str]]:
    """Write the features. Returns how many videos there are, and the keys of those that could not be read."""
    session = open_session(args)
    weights = session.fingerprint()  # before anything is cast
    session.place(world.device, args.precision)
    views = session.views(args.options, args.window, args.hop)
    batch_size = args.batch_size or videos_at_once(views["options"], MEMORY)
    stored = {"decode": args.decode, "cache": args.cache, "cache_size": args.cache_size}
    loader = build_loader(args.data, batch_size=batch_size, **views, **stored)
    how = {
        "model": str(args.checkpoint or args.config),
        "weights": weights,
        "data": loader.fingerprint(),
        "videos": len(loader.shards),
        "split": views["split"],
        "format": args.format,
        "part": PART,
        "options": views["options"],
        "precision": session.precision,
    }
    rows = Rows(session.model, loader.plan, args.crops_as == "beside", class_kinds(session) if args.scores else None)
    how |= {"crops_as": args.crops_as} if rows.beside else {}  # no more than is used: older folders go on
    how |= {"scores": {"classes": rows.kinds, "views": loader.plan.crops if rows.beside else 1}} if rows.kinds else {}
    with held(args.out, world):
        return write_features(args, rows, loader, how, world, session.autocast)


def write_features(args, rows: Rows, loader, how: dict, world: World, autocast) -> tuple[int, list[str]]:
    """The missing parts, by all ranks, then the list of all."""
    claim(args.out, how, world)
    parts = range(-(-len(loader.shards) // PART))
    mine = own_parts(args.out, parts, world)
    done = features_of_parts(rows, loader, mine, autocast)
    for part, found in tqdm(done, unit=f"{PART} videos", total=len(mine), disable=not (world.is_main and sys.stderr.isatty())):
        write_part(args, loader.shards, part, found)
    wait_for_all()
    return len(loader.shards), join_parts(args.out, parts) if world.is_main else []


def own_parts(out: Path, parts: range, world: World) -> list[int]:
    """This rank's share of the parts that are not there yet, as rank 0 sees it: neighbours, as far as they can be."""
    missing = torch.tensor([world.is_main and not (out / part_name(part)).exists() for part in parts], dtype=torch.int32)
    return np.array_split(sum_over_ranks(missing).nonzero().flatten().numpy(), world.size)[world.rank].tolist()


def features_of_parts(rows: Rows, loader, parts: list[int], autocast) -> Iterator[tuple[int, dict[int, list]]]:
    """Each part, as soon as it is complete, with [(rows, spans), ...] of each of its videos that could be read.

    All parts are one pass of the loader: to begin one costs a pipeline, and what that reads and decodes ahead.
    """
    if not parts:
        return
    first, shards, found = first_rows(loader.plan), loader.shards, defaultdict(list)
    positions = [np.arange(first[videos.start], first[videos.stop]) for videos in (videos_of(part, shards) for part in parts)]
    loader.only = np.concatenate(positions)
    waiting = deque(zip(parts, np.cumsum(list(map(len, positions)))))
    with closing(iter(loader)) as batches:
        for batch in batches:
            add_features(found, rows, batch, loader, autocast)
            while waiting and waiting[0][1] <= batch.samples_seen:
                part, _ = waiting.popleft()
                pieces = {video: found.pop(video, []) for video in videos_of(part, shards)}
                yield part, {video: its for video, its in pieces.items() if len(its) == first[video + 1] - first[video]}


def add_features(found: dict[int, list], rows: Rows, batch, loader, autocast) -> None:
    """Of each sample of a batch that could be read: (rows, spans), to those of its video."""
    with torch.no_grad(), autocast():
        made = rows.of(batch)
    for i, (position, clip, weight) in enumerate(zip(batch.positions.tolist(), batch.ids.tolist(), batch.weights.tolist())):
        if weight:
            try:
                times = spans(loader.plan, loader.shards, clip, position, batch.frames[i].numpy())
                found[clip].append(({name: values[i] for name, values in made.items()}, times))
            except ClipError:
                pass  # without its times it is not complete


def videos_of(part: int, shards) -> range:
    return range(part * PART, min((part + 1) * PART, len(shards)))


def first_rows(plan) -> np.ndarray:
    """(n + 1,) position of each video's first sample."""
    return plan.first_windows if plan.split == "windows" else np.arange(len(plan) + 1)


def spans(plan, shards, clip: int, position: int, frames: np.ndarray) -> np.ndarray:
    """(clips, 2) start and end of each clip of a sample, in seconds of the source as players count them."""
    begin, fps = shards.begin(clip), float(shards.clips["fps"][clip])
    if plan.split == "windows":
        return np.array([plan.window(position)]).clip(max=int(shards.clips["frames"][clip]) / fps) + begin
    times = shards.times(clip)[frames.reshape(plan.clips, -1)]
    return np.stack([times.min(1), times.max(1) + 1 / fps], axis=1).astype(np.float64) + begin


def claim(out: Path, how: dict, world: World) -> None:
    """Raises ValueError if the folder holds features that were made otherwise."""
    path = out / "features.json"
    if world.is_main:
        how = json.loads(json.dumps(how))
        if path.exists() and json.loads(path.read_text()) != how:
            raise ValueError(f"{out} holds features that were made otherwise (see {path}): choose a new folder.")
        write_whole(path, (json.dumps(how, indent=1) + "\n").encode())
    wait_for_all()


def part_name(part: int) -> str:
    return f"part-{part:06d}.csv"


def write_part(args, shards, part: int, found: dict) -> None:
    """The features of some videos, then the list of them, which says that they are complete."""
    lines, members = [], []
    for clip in videos_of(part, shards):
        key = shards.key(clip)
        if clip not in found:
            lines.append([key, "", "", "unreadable"])
        else:
            facts = shards.metadata(clip)
            pieces = [{"": made[""], "times": times} | made for made, times in found[clip]]
            arrays = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
            lines.append([key, facts["source"], facts["class"] or "", len(arrays[""])])
            members += [(".".join(filter(None, (key, name, "npy"))), npy(array)) for name, array in arrays.items()]
            if args.format == "shards":
                members.append((f"{key}.json", json.dumps(facts).encode()))
    if args.format == "shards":
        members = [(f"features-{part:06d}.tar", tar(members))]
    for name, data in members:
        write_whole(args.out / name, data)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_whole(args.out / part_name(part), text.getvalue().encode(*FILE_NAMES))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tar(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def write_whole(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def join_parts(out: Path, parts: range) -> list[str]:
    """features.csv of all parts. Returns the keys of the videos that could not be read."""
    rows = []
    for part in parts:
        with open(out / part_name(part), newline="", encoding=FILE_NAMES[0], errors=FILE_NAMES[1]) as file:
            rows += csv.reader(file)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["key", "source", "class", "rows"], *rows])
    write_whole(out / "features.csv", text.getvalue().encode(*FILE_NAMES))
    return [row[0] for row in rows if row[3] == "unreadable"]


def main() -> None:
    parser = command("i2v.features", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    add_flags(what, "--checkpoint")
    what.add_argument("--config", help="an experiment whose backbone needs no training, such as CLIP's")
    parser.add_argument("--data", required=True, help="shards: a folder or URL that make_shards wrote to")
    parser.add_argument("--out", required=True, type=Path, help="folder to write, continued if it was left unfinished")
    add_flags(parser, "--window", "--hop", window="seconds that a row covers, sliding over the video; or frames: 64f")
    about = "crops in a row: their mean, or one beside the other"
    parser.add_argument("--crops-as", default="mean", choices=("mean", "beside"), help=about)
    parser.add_argument("--scores", action="store_true", help="what the classifier says of each row, as well")
    parser.add_argument("--format", default="npy", choices=("npy", "shards"))
    about = "windows, or videos, at once (default: what fits into 4 GB, at most 8)"
    add_flags(parser, "--weights", "--batch-size", "--device", "--decode", batch_size=about)
    about = "how clips are cut: clips, crops, fps"
    add_flags(parser, "--precision", "--cache", "--cache-size", "options", options=about)
    args = parse(parser)
    if args.scores and not args.checkpoint:
        sys.exit("i2v.features: --scores are those of a trained classifier: give --checkpoint.")
    world = None
    try:
        world = init_world(args.device)
        videos, unreadable = extract(args, world)
    except (ValueError, TypeError, OSError, ShardError) as error:
        sys.exit(f"i2v.features: {error}")
    except KeyboardInterrupt:
        sys.exit("i2v.features: interrupted; the same command goes on")
    finally:
        close_world()
    if world.is_main:
        print(f"features of {videos - len(unreadable)} of {videos} videos are in {args.out}")
    if unreadable:
        sys.exit(f"i2v.features: {len(unreadable)} videos could not be read: {', '.join(unreadable[:10])}")


if __name__ == "__main__":
    main()
