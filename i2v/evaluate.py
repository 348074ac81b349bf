"""Score a model on a sharded data set: every video exactly once, all its views averaged, on any number of ranks.

    python -m i2v.evaluate --checkpoint runs/st_adapter/k400_vit-b16_8f/best.safetensors
    torchrun --nproc-per-node 8 -m i2v.evaluate --checkpoint ... --data /data/ssv2/val clips=2 crops=3

    python -m i2v.evaluate --config configs/clip/k400_vit-b16_8f.yaml         # zero-shot: nothing was trained

    python -m i2v.evaluate --checkpoint ... --scores a.npz                    # every video's probabilities, for i2v.report
    python -m i2v.evaluate --from-scores a.npz b.npz                          # again, without a model; several: ensembled

Views and sampling are those of the run's configuration; name=value replaces them. shuffle_frames=true shows each
clip's frames in random order: what is lost is what the model had learnt from time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tqdm import tqdm

from i2v.distributed import World, close_world, init_world
from i2v.metrics import VIEWS_AT_ONCE, Scores, evaluate, videos_at_once
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.shards import ClipError, ShardSet
from i2v.scores import Collector, VideoScores, ensemble, load_scores
from i2v.session import add_flags, command, open_session, parse


def score(args, world: World) -> tuple[Scores, VideoScores]:
    """Totals, and what they are totals of."""

    def data_or(val: str | None) -> str:
        if args.data is None and val is None:
            raise ValueError("The run had no data.val: say with --data which shards to score on.")
        return args.data or val

    stored = {"cache": args.cache, "cache_size": args.cache_size}
    session = open_session(args, lambda config: ShardSet(data_or(config.data.val), **stored).classes)
    data, classes = data_or(session.meta.config["data"]["val"]), session.meta.classes
    session.place(world.device, args.precision)
    views = session.views(args.options)
    options = views["options"]
    batch_size = args.batch_size or videos_at_once(options, args.memory)
    shared = {"rank": world.rank, "world_size": world.size, "decode": args.decode, "quarantine": args.quarantine}
    loader = build_loader(data, batch_size=batch_size, **views, **shared, **stored)
    if loader.shards.classes != classes:
        raise ValueError(
            f"{loader.shards.root} does not have the checkpoint's class names in the same order: "
            "make these shards with --classes and the manifest of the training shards."
        )
    batches = tqdm(loader, unit="batch", disable=not (world.is_main and sys.stderr.isatty()))
    at_once = max(1, int(args.memory * 1e9 / 2 / (options["num_frames"] * options["size"] ** 2 * 12)))  # half for the floats
    at_once = min(VIEWS_AT_ONCE, at_once)
    keep = Collector()
    scores = evaluate(session.model, batches, len(classes), len(loader.plan), world.device, session.autocast, at_once, keep)
    how = {
        "model": str(args.checkpoint or args.config),
        "data": str(data),
        "views": f"{loader.plan.clips} clips x {loader.plan.crops} crops",
        "options": options,
        "step": session.meta.progress["step"],
        "precision": session.precision,
    }

    def name(video: int) -> tuple[str, str]:
        try:
            return loader.shards.key(video), loader.shards.metadata(video).get("source", "") if args.scores else ""
        except ClipError:
            return loader.shards.key(video), ""

    return scores, keep.gather(classes, scores.expected, how, name)


def report(scores: Scores, classes: list[str], how: dict) -> str:
    """The result as text: totals, then classes from the worst to the best (the ends only, if there are many)."""
    lines = [
        f"{how['data']}, {how['views']}, {how['precision']}",
        f"top-1 {100 * scores.top1:.2f} %   top-5 {100 * scores.top5:.2f} %   "
        f"counted {scores.counted} of {scores.expected} videos",
        "",
        f"{'class':40} {'videos':>6} {'top-1':>7}   most often taken for",
    ]
    accuracy = scores.per_class()
    order = [int(i) for i in accuracy.nan_to_num(2).argsort() if scores.confusion[i].sum()]
    shown = order if len(order) <= 24 else [*order[:12], None, *order[-6:]]
    for i in shown:
        if i is None:
            lines.append("...")
            continue
        wrong = scores.confusion[i].clone()
        wrong[i] = 0
        taken = f"{classes[int(wrong.argmax())]} ({int(wrong.max())})" if wrong.max() else ""
        lines.append(f"{classes[i][:40]:40} {int(scores.confusion[i].sum()):6d} {100 * accuracy[i]:6.1f} %  {taken}")
    return "\n".join(lines)


def main() -> None:
    parser = command("i2v.evaluate", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    add_flags(what, "--checkpoint")
    what.add_argument("--config", help="an experiment that needs no training: CLIP's zero-shot classification")
    what.add_argument("--from-scores", nargs="+", type=Path, metavar="NPZ", help="what --scores wrote; several: ensembled")
    parser.add_argument("--ensemble", default="softmax", choices=("softmax", "logits"), help="of what the mean is taken")
    parser.add_argument("--scores", type=Path, metavar="NPZ", help="write label and probabilities of every video here")
    parser.add_argument("--data", help="shards to score on (default: data.val of the run)")
    parser.add_argument(
        "--memory",
        type=float,
        default=4.0,
        metavar="GB",
        help="for clips, per device (default: %(default)g): as many videos at once as fit, at least one and at most 8",
    )
    add_flags(parser, "--weights", "--batch-size", "--device", "--decode", batch_size="videos per device, instead of --memory")
    parser.add_argument("--quarantine", type=Path, help="a CSV to which videos that cannot be read are written")
    about = "write scores, per-class accuracy and the confusion matrix here"
    add_flags(parser, "--precision", "--cache", "--cache-size", "--json", json=about)
    add_flags(parser, "options", options="how clips are cut: clips, crops, stride, ...")
    args = parse(parser)
    try:
        if args.scores and not args.scores.parent.is_dir():
            raise ValueError(f"{args.scores.parent} does not exist: --scores needs a folder that does.")
        world = init_world(args.device)
        if args.from_scores:
            videos = ensemble([load_scores(path) for path in args.from_scores], args.ensemble)
            scores = videos.scores()
        else:
            scores, videos = score(args, world)
        if args.scores and world.is_main:
            videos.save(args.scores)
    except FloatingPointError as error:
        sys.exit(f"i2v.evaluate: {error}: try --precision float32; if it stays, the weights are damaged.")
    except (ValueError, TypeError, OSError, ShardError) as error:
        sys.exit(f"i2v.evaluate: {error}")
    finally:
        close_world()
    if not world.is_main:
        return
    classes, how = videos.classes, videos.how
    print(report(scores, classes, how), videos.sentence(), sep="\n\n")
    if args.json:
        per_class = {name: None if x != x else x for name, x in zip(classes, scores.per_class().tolist())}
        content = videos.summary() | {"per_class": per_class, "confusion": scores.confusion.tolist()} | how
        args.json.write_text(json.dumps(content, indent=1))
    if scores.counted != scores.expected:
        missing = scores.expected - scores.counted
        sys.exit(f"i2v.evaluate: {missing} of {scores.expected} videos could not be read and are not in these figures.")


if __name__ == "__main__":
    main()
