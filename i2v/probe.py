"""Linear probes: many heads on the features of a frozen trunk, trained at once in minutes; the best is a checkpoint.

    python -m i2v.probe --config configs/clip/k400_vit-b16_8f.yaml probe.lr=[1e-2,1e-3,1e-4] probe.weight_decay=[0,0.01]
    torchrun --nproc-per-node 8 -m i2v.probe --config ...          # the features by all, the heads by the first

The trunk is that of a configuration of which nothing but a head would train, such as CLIP's. Of every video of data.train and
data.val there are features as i2v.features writes them: one row for each clip of the run's evaluation (clips.clips), averaged
over its crops. They are made first, where they are missing; interrupted, the same command goes on with them. On those of
data.train there is a head for each learning rate with each weight decay, as if it were trained alone; on those of data.val all
are scored, each video once, and train.best says by which figure the best is chosen. So its figure is that of the best of
so many: say how many there were, or score it on videos that nothing was chosen by.

what comes out, in the configuration's `out`: probe.csv and probe.json, a row for each head; best.safetensors, a checkpoint
for i2v.evaluate and i2v.predict (features are standardised for training, its head takes them as they are); and features.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from i2v.atomic import replacing, write_whole
from i2v.checkpoint import Backbone, Meta, save_checkpoint
from i2v.config import Config, load_config, to_dict, with_best
from i2v.console import aligned, as_sentence, interrupted
from i2v.distributed import World, close_world, init_world
from i2v.extraction import extract
from i2v.feature_folder import format_of, read_clips
from i2v.feed import check_labels, how_stored
from i2v.heads import LinearHead
from i2v.lock import held
from i2v.manyheads import ROWS, Recipe, fold, standardisation, standardise, train_heads
from i2v.metrics import Scores, probabilities_of, videos_at_once
from i2v.model import VideoClassifier, complete_config
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.loader import Loader
from i2v.rows import Rows
from i2v.scores import VideoScores
from i2v.session import Session, command, describe_backbone, own_tensors, parse, session_of

DROPOUT = 0.0  # of the heads
FIGURES = ("top1", "top5", "class_mean", "cross_entropy")
COLUMNS = ("lr", "weight_decay", "loss", *FIGURES)


def probe(config: Config, name: str, features: Path, world: World) -> list[str]:
    """All of it. Returns what there is to say, on rank 0. name: of the configuration, for people."""
    data, out = {"train": config.data.train, "val": config.data.val}, Path(config.out)
    for split, place in data.items():
        if not isinstance(place, str):
            raise ValueError(f"data.{split} is {place!r}: to probe, give it one folder or URL of shards.")
    if (out / "last.safetensors").exists():
        raise ValueError(f"{out} is the folder of a training, and its best.safetensors stays: choose another with out=...")
    session = session_of(config, name, "probe a trunk that needs none, as that of method clip")
    weights = session.fingerprint()
    backbone = describe_backbone(session.model, config.model, session.meta.backbone.weights)
    session.place(world.device, config.train.precision)
    with held(out, world):
        loaders = {split: open_clips(config, session, place) for split, place in data.items()}
        if any(loader.shards.label_sets is not None for loader in loaders.values()):
            raise ValueError("the videos have several classes each: linear probes are of one class a video.")
        config = with_best(config, several=False)
        check_labels(*loaders.values())
        how, unread = {"model": name, "weights": weights, "options": session.views()["options"]}, {}
        for split, loader in loaders.items():
            folder = features / split
            rows = Rows(session.model, loader.plan)
            unread[split] = extract(session, rows, loader, how | {"format": format_of(folder)}, folder, world)
        close_world()  # the others are done
        if not world.is_main:
            return []
        train, val = (Clips(loader, features / split, world.device) for split, loader in loaders.items())
        weight, bias, losses, steps = train_linear(config, train)
        heads = [score(each, val) for each in zip(weight, bias)]
        k, rows = choose(config, losses, heads)
        write_table(out, rows, k, config, how)
        model = with_head(session.model, weight[k], bias[k])
        meta = describe(config, model, backbone, loaders["train"], steps, heads[k])
        save_checkpoint(out / "best.safetensors", own_tensors(model, backbone), meta)
    return [*as_lines(rows, k), "", *remarks(config, rows, k, heads[k], unread, loaders["val"].plan.crops)]


def open_clips(config: Config, session: Session, place: str) -> Loader:
    """Every video once, in the views of the run's evaluation."""
    views, data = session.views(), config.data
    batch_size = config.train.eval_batch or videos_at_once(views["options"])
    stored = {"decode": data.decode, "threads": data.threads, "cache": data.cache, "cache_size": data.cache_size}
    return build_loader(place, batch_size=batch_size, **views, **stored)


class Clips:
    """The features of a data set on a device: (n, rows, D), for the (n,) videos `ids`, which show `labels`."""

    def __init__(self, loader: Loader, folder: Path, device: torch.device):
        ids, features = read_clips(folder)
        self.ids, self.features = torch.from_numpy(ids), torch.from_numpy(features).to(device)
        self.labels = torch.from_numpy(loader.shards.clips["label"].astype(np.int64))[self.ids]
        self.classes, self.expected = loader.shards.classes, len(loader.shards)


def train_linear(config: Config, clips: Clips) -> tuple[torch.Tensor, torch.Tensor, list[float], int]:
    """(K, C, D) weights and (K, C) biases of all heads for features as they are, their losses, and the number of steps."""
    given, seed = config.probe, config.train.seed
    recipes = [Recipe(*both) for both in product(given.lr, given.weight_decay)]
    x = clips.features.flatten(0, 1)
    y = clips.labels.repeat_interleave(clips.features.shape[1]).to(x.device)
    mean, std = standardisation(x)
    standardise(x, mean, std)
    torch.manual_seed(seed)
    head, steps = (
        LinearHead(x.shape[1], len(clips.classes), DROPOUT).to(x.device),
        given.epochs * -(-len(x) // given.batch_size),
    )
    with tqdm(total=steps, desc=f"{len(recipes)} heads", unit="step", disable=not sys.stderr.isatty()) as bar:
        found, losses = train_heads(head, x, y, recipes, given.epochs, given.batch_size, seed, bar.update)
    return *fold(found["fc.weight"], found["fc.bias"], mean, std), losses.tolist(), steps


def score(head: tuple[torch.Tensor, torch.Tensor], clips: Clips) -> Scores:
    """Of (C, D) weights and (C,) biases: each video once, the probabilities of its rows averaged, as i2v.evaluate does."""
    rows = clips.features.split(max(1, ROWS // clips.features.shape[1]))
    probabilities = torch.cat([probabilities_of(F.linear(part, *head)).mean(1) for part in rows]).cpu()
    return VideoScores(clips.ids, clips.labels, probabilities, [], [], clips.classes, clips.expected).scores()


def choose(config: Config, losses: list[float], heads: list[Scores]) -> tuple[int, list[dict]]:
    """Which head is the best, of equals the first, and a row for each. Raises FloatingPointError if no loss is finite."""
    rows, given = [], config.probe
    for (lr, weight_decay), loss, found in zip(product(given.lr, given.weight_decay), losses, heads):
        figures = found.summary() if math.isfinite(loss) else {}
        rows.append({name: figures.get(name) for name in COLUMNS} | {"lr": lr, "weight_decay": weight_decay})
        rows[-1]["loss"] = loss if figures else None
    sound = [k for k, row in enumerate(rows) if row["loss"] is not None]
    if not sound:
        raise FloatingPointError("no head has come to finite numbers: give lower learning rates in probe.lr.")
    return max(sound, key=lambda k: (heads[k].value(config.train.best), -heads[k].cross_entropy)), rows


def with_head(model: VideoClassifier, weight: torch.Tensor, bias: torch.Tensor) -> VideoClassifier:
    """The same trunk under a linear head."""
    described = model.config | {"num_classes": len(bias), "head": {"type": "linear", "dropout": DROPOUT}}
    head = LinearHead(weight.shape[1], len(bias), DROPOUT)
    head.fc.load_state_dict({"weight": weight, "bias": bias})
    return VideoClassifier(model.backbone, head, complete_config(**described))


def describe(config: Config, model: VideoClassifier, backbone: Backbone, loader: Loader, steps: int, scores: Scores) -> Meta:
    """What the checkpoint says beside its tensors."""
    return Meta(
        model=model.config,
        backbone=backbone,
        classes=loader.shards.classes,
        stored=how_stored(loader.shards.manifest),
        stream=loader.fingerprint(),
        clips=config.clips,
        config=to_dict(replace(config, model=replace(config.model, head=model.config["head"]))),
        progress={"step": steps},
        scores=scores.summary() | {"views": f"{loader.plan.clips} clips x {loader.plan.crops} crops"},
    )


def write_table(out: Path, rows: list[dict], k: int, config: Config, how: dict) -> None:
    about = {"chosen": k, "by": config.train.best, "heads": rows, "features": how, "config": to_dict(config)}
    write_whole(out / "probe.json", json.dumps(about, indent=1))
    with replacing(out / "probe.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def as_lines(rows: list[dict], k: int) -> list[str]:
    """The table for people, with the accuracies in percent."""
    heads = ["lr", "weight decay", "loss", "top-1", "top-5", "mean class", "cross entropy", ""]
    cells = []
    for number, row in enumerate(rows):
        numbers = [f"{row['lr']:g}", f"{row['weight_decay']:g}"]
        if row["loss"] is None:
            cells.append([*numbers, "diverged", *[""] * 5])
            continue
        shares = [f"{100 * row[name]:.2f} %" for name in ("top1", "top5", "class_mean")]
        cells.append([*numbers, f"{row['loss']:.4f}", *shares, f"{row['cross_entropy']:.4f}", "best" if number == k else ""])
    return [line.rstrip() for line in aligned([heads, *cells])]


def remarks(config: Config, rows: list[dict], k: int, best: Scores, unread: dict[str, list[str]], crops: int) -> list[str]:
    lines = [f"the best by {config.train.best} of {len(rows)} heads is {config.out}/best.safetensors"]
    lines.append(f"counted {best.counted} of {best.expected} videos of {config.data.val}")
    for split, keys in unread.items():
        if keys:
            lines.append(
                f"WARNING: {len(keys)} videos of data.{split} could not be read and count for nothing, such as {keys[0]}"
            )
    rates = config.probe.lr
    ends = {max(rates): "highest", min(rates): "lowest"} if len(rates) > 1 else {}
    if rows[k]["lr"] in ends:
        lines.append(f"note: its learning rate is the {ends[rows[k]['lr']]} of probe.lr: try others beyond it")
    if crops > 1:
        lines.append(
            "note: the features are averaged over crops, where i2v.evaluate averages probabilities: its figures may differ"
        )
    return lines


def main() -> None:
    parser = command("i2v.probe", __doc__)
    parser.add_argument("--config", required=True, help="a YAML file, see configs/; its section probe says which heads")
    parser.add_argument("--features", type=Path, help="folder of the features, train and val (default: features in out)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace values of the file")
    args = parse(parser)
    lines = []
    try:
        config = load_config(args.config, args.overrides)
        world = init_world(config.data.device)
        lines = probe(config, args.config, args.features or Path(config.out) / "features", world)
    except (ValueError, TypeError, OSError, FloatingPointError, ShardError) as error:
        sys.exit(f"i2v.probe: {as_sentence(error)}")
    except KeyboardInterrupt:
        interrupted("i2v.probe: interrupted; the same command goes on")
    finally:
        close_world()
    print("\n".join(lines), end="\n" if lines else "")


if __name__ == "__main__":
    main()
