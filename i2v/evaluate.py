"""Score a model on a sharded data set: every video exactly once, all its views averaged, on any number of ranks.

    python -m i2v.evaluate --checkpoint runs/st_adapter/k400_vit-b16_8f/best.safetensors
    torchrun --nproc-per-node 8 -m i2v.evaluate --checkpoint ... --data /data/ssv2/val clips=2 crops=3

    python -m i2v.evaluate --config configs/clip/k400_vit-b16_8f.yaml         # zero-shot: nothing was trained

    python -m i2v.evaluate --checkpoint ... --scores a.npz                    # every video's probabilities, for i2v.report
    python -m i2v.evaluate --from-scores a.npz b.npz                          # again, without a model; several: ensembled
    python -m i2v.evaluate --checkpoint ... --data shards/epic/test --submission test.json    # EPIC-KITCHENS-100's challenge

Views and sampling are those of the run's configuration; name=value replaces them. shuffle_frames=true shows each
clip's frames in random order: what is lost is what the model had learnt from time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tqdm import tqdm

from i2v.console import as_sentence, refuse_place
from i2v.distributed import World, close_world, init_world
from i2v.feed import check_classes, head_for, labels_of
from i2v.metrics import MEMORY, VIEWS_AT_ONCE, evaluate, side_of, videos_at_once
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.shards import ClipError, ShardSet
from i2v.rules import more_than
from i2v.scores import Collector, VideoScores, ensemble, load_scores
from i2v.session import Session, add_flags, command, open_session, parse, real
from i2v.submission import write_submission
from i2v.tally import Labels, Scores, SeveralScores


def score(args, world: World) -> tuple[Scores | SeveralScores | None, VideoScores]:
    """Totals, None if videos have no labels, and what they are totals of."""

    def data_or(val: str | None) -> str:
        if args.data is None and val is None:
            raise ValueError("The run had no data.val: say with --data which shards to score on.")
        return args.data or val

    stored = {"cache": args.cache, "cache_size": args.cache_size}
    session = open_session(args, lambda config: ShardSet(data_or(config.data.val), **stored).classes)
    data, classes = data_or(session.meta.config["data"]["val"]), session.meta.classes
    session.place(world.device, args.precision)
    views = session.views(args.options, pretext=True)
    options = views["options"]
    batch_size = args.batch_size or videos_at_once(options, args.memory)
    shared = {"rank": world.rank, "world_size": world.size, "decode": args.decode, "quarantine": args.quarantine}
    loader = build_loader(data, batch_size=batch_size, **views, **shared, **stored)
    shards = loader.shards
    labels = check_data(args, session, shards)
    batches = tqdm(loader, unit="batch", disable=not (world.is_main and sys.stderr.isatty()))
    at_once = max(1, int(args.memory * 1e9 / 2 / (options["num_frames"] * side_of(options) ** 2 * 12)))  # half for the floats
    at_once = min(VIEWS_AT_ONCE, at_once)
    keep = Collector()
    expected = len(loader.plan)
    scores = evaluate(session.model, batches, labels, expected, world.device, session.autocast, at_once, keep)
    how = {
        "model": str(args.checkpoint or args.config),
        "data": str(data),
        "views": "a still with each motion" if loader.plan.stills else f"{loader.plan.clips} clips x {loader.plan.crops} crops",
        "options": options,
        "step": session.meta.progress["step"],
        "precision": session.precision,
        "several": labels.several,
    }

    def name(video: int) -> tuple[str, str]:
        try:
            wanted = args.scores or args.submission
            return loader.shards.key(video), loader.shards.metadata(video).get("source", "") if wanted else ""
        except ClipError:
            return loader.shards.key(video), ""

    factors = shards.factors or session.meta.factors
    return scores, keep.gather(classes, expected, how, name, factors, labels.several and labels.known)


def check_data(args, session: Session, shards: ShardSet) -> Labels:
    """What the videos are labelled with. Raises ValueError if it is not what the model was trained for."""
    classes, meta, labelled = session.meta.classes, session.meta, bool((shards.clips["label"] >= 0).all())
    if not labelled and (args.json or not (args.scores or args.submission)):
        raise ValueError(f"{shards.root} has videos without a label: only --scores and --submission can be made of them.")
    if labelled or shards.classes:
        check_classes(shards, classes)
    if not labelled:
        return Labels(len(classes), several=meta.several, known=False)
    labels = labels_of(shards)
    if args.config:
        head_for(session.model.config["head"], shards)
    elif meta.several != labels.several:
        trained, there = ("several", "one") if meta.several else ("one", "several")
        raise ValueError(f"The model was trained for {trained} class a video, and those of {shards.root} have {there}.")
    return labels


def report(scores: Scores | SeveralScores, classes: list[str], how: dict, factors: dict[str, list[str]]) -> str:
    """The result as text: totals, then classes from the worst to the best (the ends only, if there are many); of every factor,
    where the classes are combinations."""
    lines = [
        f"{how['data']}, {how['views']}, {how['precision']}",
        f"{scores.words().replace('  ', '   ')}   counted {scores.counted} of {scores.expected} videos",
    ]
    for name, names in factors.items():
        lines += ["", *table_of_classes(scores.factors[name], names, name)]
    return "\n".join(lines if factors else [*lines, "", *table_of_classes(scores, classes)])


def table_of_classes(scores: Scores | SeveralScores, classes: list[str], title: str = "class") -> list[str]:
    figure, confusion = ("AP" if scores.confusion is None else "top-1"), scores.confusion
    videos = scores.videos if confusion is None else confusion.sum(1)
    taken_for = "" if confusion is None else "   most often taken for"
    lines = [f"{title:40} {'videos':>6} {figure:>7}{taken_for}"]
    accuracy = scores.per_class()
    order = [int(i) for i in accuracy.nan_to_num(2).argsort() if videos[i]]
    shown = order if len(order) <= 24 else [*order[:12], None, *order[-6:]]
    for i in shown:
        if i is None:
            lines.append("...")
            continue
        taken = ""
        if confusion is not None:
            wrong = confusion[i].clone()
            wrong[i] = 0
            taken = f"{classes[int(wrong.argmax())]} ({int(wrong.max())})" if wrong.max() else ""
        lines.append(f"{classes[i][:40]:40} {int(videos[i]):6d} {100 * accuracy[i]:6.1f} %  {taken}")
    return lines


def main() -> None:
    parser = command("i2v.evaluate", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    add_flags(what, "--checkpoint")
    what.add_argument("--config", help="an experiment that needs no training: CLIP's zero-shot classification")
    what.add_argument("--from-scores", nargs="+", type=Path, metavar="NPZ", help="what --scores wrote; several: ensembled")
    parser.add_argument("--ensemble", default="softmax", choices=("softmax", "logits"), help="of what the mean is taken")
    parser.add_argument("--scores", type=Path, metavar="NPZ", help="write label and probabilities of every video here")
    parser.add_argument("--submission", type=Path, metavar="JSON", help="write EPIC-KITCHENS-100's challenge's file here")
    parser.add_argument("--data", help="shards to score on (default: data.val of the run)")
    parser.add_argument(
        "--memory",
        type=real(more_than(0)),
        default=MEMORY,
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
        for flag, path in (("--scores", args.scores), ("--submission", args.submission)):
            refuse_place(flag, path)
        world = init_world(args.device)
        if args.from_scores:
            videos = ensemble([load_scores(path) for path in args.from_scores], args.ensemble)
            scores = videos.scores() if videos.labelled else None
        else:
            scores, videos = score(args, world)
        if args.scores and world.is_main:
            videos.save(args.scores)
        if args.submission and world.is_main:
            write_submission(args.submission, videos)
    except FloatingPointError as error:
        sys.exit(f"i2v.evaluate: {error}: try --precision float32; if it stays, the weights are damaged.")
    except (ValueError, TypeError, OSError, ShardError) as error:
        sys.exit(f"i2v.evaluate: {as_sentence(error)}")
    finally:
        close_world()
    if not world.is_main:
        return
    classes, how = videos.classes, videos.how
    if scores is None:
        print(f"{how['data']}, {how['views']}: {len(videos.ids)} of {videos.expected} videos, which have no labels")
    else:
        print(report(scores, classes, how, videos.factors), videos.sentence(), sep="\n\n")
    if args.json and scores is not None:
        args.json.write_text(json.dumps(videos.summary() | details(scores, classes, videos.factors) | how, indent=1))
    missing = videos.expected - len(videos.ids)
    if missing:
        sys.exit(f"i2v.evaluate: {missing} of {videos.expected} videos could not be read and are not in these figures.")


def details(scores: Scores | SeveralScores, classes: list[str], factors: dict[str, list[str]]) -> dict:
    """Accuracies by class and the confusion matrix, as JSON; of every factor, where the classes are combinations."""
    per_class = {name: None if x != x else x for name, x in zip(classes, scores.per_class().tolist())}
    if factors:
        occur = {name: share for name, share in per_class.items() if share is not None}
        return {"per_class": occur, "factors": {name: details(scores.factors[name], factors[name], {}) for name in factors}}
    return {"per_class": per_class} | ({} if scores.confusion is None else {"confusion": scores.confusion.tolist()})


if __name__ == "__main__":
    main()
