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
beside each other or as one, whose softmax (sigmoid, where videos have several classes) is the mean of theirs; with a head of
factors KEY.scores.FACTOR.npy for each.
"""

from __future__ import annotations

import sys
from pathlib import Path

from i2v.console import as_sentence, interrupted
from i2v.distributed import World, close_world, init_world
from i2v.extraction import extract
from i2v.metrics import videos_at_once
from i2v.pipelines import ShardError, build_loader
from i2v.rows import Rows, class_kinds
from i2v.session import add_flags, command, open_session, parse


def write(args, world: World) -> tuple[int, list[str]]:
    """Write the features. Returns how many videos there are, and the keys of those that could not be read."""
    session = open_session(args)
    weights = session.fingerprint()
    session.place(world.device, args.precision)
    views = session.views(args.options, args.window, args.hop)
    batch_size = args.batch_size or videos_at_once(views["options"])
    stored = {"decode": args.decode, "cache": args.cache, "cache_size": args.cache_size}
    loader = build_loader(args.data, batch_size=batch_size, **views, **stored)
    kinds = class_kinds(session) if args.scores else None
    rows = Rows(session.model, loader.plan, args.crops_as == "beside", kinds, session.meta.several)
    model = str(args.checkpoint or args.config)
    how = {"model": model, "weights": weights, "format": args.format, "options": views["options"]}
    how |= {"crops_as": args.crops_as} if rows.beside else {}  # no more than is used: older folders go on
    how |= {"scores": {"classes": rows.kinds, "views": loader.plan.crops if rows.beside else 1}} if rows.kinds else {}
    if rows.kinds and rows.several:
        how["scores"]["several"] = True
    return len(loader.shards), extract(session, rows, loader, how, args.out, world)


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
        videos, unreadable = write(args, world)
    except (ValueError, TypeError, OSError, ShardError) as error:
        sys.exit(f"i2v.features: {as_sentence(error)}")
    except KeyboardInterrupt:
        interrupted("i2v.features: interrupted; the same command goes on")
    finally:
        close_world()
    if world.is_main:
        print(f"features of {videos - len(unreadable)} of {videos} videos are in {args.out}")
    if unreadable:
        sys.exit(f"i2v.features: {len(unreadable)} videos could not be read: {', '.join(unreadable[:10])}")


if __name__ == "__main__":
    main()
