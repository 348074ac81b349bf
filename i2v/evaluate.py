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

import argparse
import json
import sys
from pathlib import Path

from i2v.checkpoint import load_checkpoint
from i2v.config import load_config, parse_option
from i2v.console import print_any_name
from i2v.distributed import World, close_world, init_world
from i2v.metrics import VIEWS_AT_ONCE, Scores, evaluate, videos_at_once
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.shards import ClipError, ShardSet
from i2v.runtime import autocast_for, build_model, choose_precision, place, restore_model
from i2v.scores import Collector, VideoScores, ensemble, load_scores


def score(args, world: World) -> tuple[Scores, VideoScores]:
    """Totals, and what they are totals of."""
    model, meta, data = open_checkpoint(args) if args.checkpoint else open_config(args)
    options = meta["clips"] | {"num_frames": model.num_frames, "size": model.spec.image_size}
    options |= dict(map(parse_option, args.options))
    batch_size = args.batch_size or videos_at_once(options, args.memory)
    loader = build_loader(
        data,
        "test",
        options,
        batch_size,
        "gpu" if world.device.type == "cuda" else "cpu",
        world.rank,
        world.size,
        decode=args.decode,
        quarantine=args.quarantine,
        cache=args.cache,
        cache_size=args.cache_size,
    )
    if loader.shards.classes != meta["classes"]:
        raise ValueError(
            f"{loader.shards.root} does not have the checkpoint's class names in the same order: "
            "make these shards with --classes and the manifest of the training shards."
        )
    dtype = choose_precision(args.precision, world.device)
    place(model, world.device, dtype)
    batches = loader
    if world.is_main:
        from tqdm import tqdm

        batches = tqdm(loader, unit="batch", disable=not sys.stderr.isatty())
    at_once = max(1, int(args.memory * 1e9 / 2 / (options["num_frames"] * options["size"] ** 2 * 12)))  # half for the floats
    keep = Collector()
    scores = evaluate(
        model,
        batches,
        len(meta["classes"]),
        len(loader.plan),
        world.device,
        autocast_for(world.device, dtype),
        min(VIEWS_AT_ONCE, at_once),
        keep,
    )
    views = f"{loader.plan.clips} clips x {loader.plan.crops} crops"
    how = {"model": str(args.checkpoint or args.config), "data": str(data), "views": views, "options": options}
    how |= {"step": meta["progress"]["step"], "precision": str(dtype).removeprefix("torch.")}

    def name(video: int) -> tuple[str, str]:
        try:
            return loader.shards.key(video), loader.shards.metadata(video).get("source", "") if args.scores else ""
        except ClipError:
            return loader.shards.key(video), ""

    return scores, keep.gather(meta["classes"], scores.expected, how, name)


def open_checkpoint(args):
    """(model, meta, where the data is) of a trained model."""
    tensors, meta = load_checkpoint(args.checkpoint)
    return restore_model(tensors, meta, args.weights), meta, require_data(args.data or meta["config"]["data"]["val"])


def open_config(args):
    """(model, meta, where the data is) of a model that needs no training, such as CLIP with a text head."""
    config = load_config(args.config, [f"model.weights={args.weights}"] if args.weights else [])
    data = require_data(args.data or config.data.val)
    classes = ShardSet(data, args.cache, args.cache_size).classes
    model, _ = build_model(config.model, classes)
    if model.trainable_parameters():
        raise ValueError(f"{args.config} is a model that must be trained first: give its run's --checkpoint.")
    return model, {"classes": classes, "clips": config.clips, "progress": {"step": 0}}, data


def require_data(data: str | None) -> str:
    if data is None:
        raise ValueError("The run had no data.val: say with --data which shards to score on.")
    return data


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
    parser = argparse.ArgumentParser(
        prog="i2v.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, help="best.safetensors or last.safetensors of a run")
    what.add_argument("--config", help="an experiment that needs no training: CLIP's zero-shot classification")
    what.add_argument("--from-scores", nargs="+", type=Path, metavar="NPZ", help="what --scores wrote; several: ensembled")
    parser.add_argument("--ensemble", default="softmax", choices=("softmax", "logits"), help="of what the mean is taken")
    parser.add_argument("--scores", type=Path, metavar="NPZ", help="write label and probabilities of every video here")
    parser.add_argument("--data", help="shards to score on (default: data.val of the run)")
    parser.add_argument("--weights", help="the backbone's file or tag, if it is not where the run had it")
    parser.add_argument(
        "--memory",
        type=float,
        default=4.0,
        metavar="GB",
        help="for clips, per device (default: %(default)g): as many videos at once as fit, at least one and at most 8",
    )
    parser.add_argument("--batch-size", type=int, help="videos per device, instead of --memory")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--decode", default="auto", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "float32"))
    parser.add_argument("--cache", help="where shards of a URL are staged")
    parser.add_argument("--cache-size", help="how much of it they may fill, such as 200GB")
    parser.add_argument("--quarantine", type=Path, help="a CSV to which videos that cannot be read are written")
    parser.add_argument("--json", type=Path, help="write scores, per-class accuracy and the confusion matrix here")
    parser.add_argument("options", nargs="*", metavar="name=value", help="how clips are cut: clips, crops, stride, ...")
    args = parser.parse_args()
    print_any_name()
    try:
        if args.json and not args.json.parent.is_dir():
            raise ValueError(f"{args.json.parent} does not exist: --json needs a folder that does.")
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
        content = scores.summary() | videos.summary() | {"per_class": per_class, "confusion": scores.confusion.tolist()} | how
        args.json.write_text(json.dumps(content, indent=1))
    if scores.counted != scores.expected:
        missing = scores.expected - scores.counted
        sys.exit(f"i2v.evaluate: {missing} of {scores.expected} videos could not be read and are not in these figures.")


if __name__ == "__main__":
    main()
