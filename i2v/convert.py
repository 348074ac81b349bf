"""Turn other people's checkpoints into ours, and adapters into plain weights.

    # the authors' released weights -> a checkpoint for i2v.evaluate and i2v.predict
    python -m i2v.convert --config configs/st_adapter/k400_vit-b16_8f.yaml --source released.pth --classes shards/val \\
        --out k400.safetensors

    # ZeroI2V without its adapters: a plain CLIP transformer with the temporal shift, the same logits
    python -m i2v.convert --checkpoint runs/zeroi2v/k400_vit-b16_8f/best.safetensors --merge --out merged.safetensors \\
        --data shards/val

A merge is verified before anything is written: on random clips the logits must agree, and with --data both models are
scored, too. What comes out of --merge holds every weight and needs no other file. With --plain it is not a checkpoint
of ours but a bare state dict with CLIP's names (conv1.weight, transformer.resblocks.0...., and what CLIP does not have:
temporal_embedding, head.fc.*), for other programs.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from i2v.checkpoint import Meta, not_finite, save_checkpoint, write_tensors
from i2v.config import load_config, to_dict
from i2v.console import as_sentence
from i2v.feed import check_classes, labels_of
from i2v.metrics import evaluate
from i2v.model import merge_adapters
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.index import combinations
from i2v.session import INCLUDED, Session, add_flags, build_model, command, describe_backbone, open_session, own_tensors, parse
from i2v.shard_tools.lists.classes import FORMS, read_class_list
from i2v.weights import fingerprint, load_weights

MERGE_TOLERANCE = 1e-4  # of the largest logit, in float32


def import_weights(config_path: str, overrides: list[str], source: Path, classes_from: str, layout: str) -> tuple[dict, Meta]:
    """(tensors, meta) of a checkpoint with the weights of `source` in the model of a configuration."""
    config = load_config(config_path, overrides)
    names, about = read_class_list(classes_from)
    factors = names if isinstance(names, dict) else {}
    classes = combinations(names) if factors else names
    print(f"note: {about}")
    model, backbone = build_model(config.model, classes)
    before = fingerprint(model.frozen_parameters())
    report = load_weights(model, source, layout)
    print(f"loaded {len(report.loaded)} tensors of {source}")
    for note in report.notes:
        print(f"note: {note}")
    for title, names in (("not in the file", report.missing), ("not used", report.ignored)):
        print(f"{title}: {len(names)}" + (f" ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})" if names else ""))
    described = describe_backbone(model, config.model, backbone)
    if described.fingerprint != before:
        print("the file has a backbone of its own, which is not that of the configuration: the checkpoint includes it")
        described = replace(described, weights=INCLUDED)
    about = {"clips": config.clips, "config": to_dict(config), "imported_from": str(source), "factors": factors}
    meta = Meta(model.config, described, classes, **about)
    return own_tensors(model, described), meta


def merge_checkpoint(args) -> tuple[dict, Meta]:
    """(tensors, meta) of the merged model of a checkpoint. Raises ValueError if the two disagree."""
    session, device = open_session(args), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, session.device = session.model.to(device), device
    merged = merge_adapters(model).eval().to(device)
    verify_merge(model, merged)
    if args.data is not None:
        before, after = (score(replace(session, model=each), args.data) for each in (model, merged))
        print(f"accuracy on {args.data}: {100 * before:.2f} % before, {100 * after:.2f} % after merging")
        if abs(before - after) > 0.001:
            raise ValueError("Merging changes the accuracy by more than 0.1 points: nothing is written.")
    backbone = replace(session.meta.backbone, weights=INCLUDED, fingerprint=None)
    return dict(merged.cpu().state_dict()), replace(session.meta, model=merged.config, backbone=backbone)


@torch.no_grad()
def verify_merge(model, merged, clips: int = 4) -> None:
    """Raises ValueError unless both models give the same logits on random clips."""
    size = model.spec.image_size
    batch = torch.randn(clips, 3, model.num_frames, size, size, generator=torch.Generator().manual_seed(0))
    batch = batch.to(next(model.parameters()).device)
    expected, found = model(batch), merged(batch)
    difference = ((expected - found).abs().max() / expected.abs().max()).item()
    if not difference <= MERGE_TOLERANCE:
        raise ValueError(
            f"The merged model's logits differ by {difference:.1e} of the largest, more than {MERGE_TOLERANCE:.0e}: "
            "nothing is written."
        )
    print(f"largest difference of the logits on {clips} random clips: {difference:.1e} of the largest")


def score(session: Session, data: str) -> float:
    """Top-1, or the mean average precision, on a data set, with the views of the run."""
    loader = build_loader(data, **session.views())
    check_classes(loader.shards, session.meta.classes)
    labels, videos = labels_of(loader.shards), len(loader.plan)
    found = evaluate(session.model, loader, labels, videos, session.device, session.autocast)
    return found.value("map" if labels.several else "top1")


def main() -> None:
    parser = command("i2v.convert", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="the experiment whose model takes the weights of --source")
    add_flags(what, "--checkpoint", checkpoint="a checkpoint of ours, to --merge")
    parser.add_argument("--source", type=Path, help="released weights: .pt .pth .pyth .safetensors")
    parser.add_argument("--layout", default="authors", choices=("authors", "i2v", "auto"), help="names in --source")
    parser.add_argument("--classes", help=f"class names: {FORMS}; numbers decide the order")
    parser.add_argument("--merge", action="store_true", help="fold the adapters into the backbone")
    parser.add_argument("--plain", action="store_true", help="with --merge: write a bare state dict with CLIP's names")
    add_flags(parser, "--weights")
    parser.add_argument("--data", help="shards on which the accuracy before and after --merge is compared")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="with --config: replace its values")
    args = parse(parser)
    try:
        if args.config:
            if not args.source or not args.classes:
                raise ValueError("--config needs --source, the weights to import, and --classes, their class names.")
            if args.merge or args.plain:
                raise ValueError("--merge and --plain go with --checkpoint: import first, then merge what came out.")
            tensors, meta = import_weights(args.config, args.overrides, args.source, args.classes, args.layout)
        else:
            if not args.merge:
                raise ValueError("--checkpoint needs --merge: there is nothing else to do with it.")
            tensors, meta = merge_checkpoint(args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        bad = not_finite(tensors)
        if bad:
            raise ValueError(f"{bad[0]} is not finite: nothing is written, as nothing could be predicted with it.")
        if args.plain:
            write_tensors(args.out, {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()})
        else:
            save_checkpoint(args.out, tensors, meta)
    except (ValueError, TypeError, OSError, ShardError) as error:
        sys.exit(f"i2v.convert: {as_sentence(error)}")
    print(f"wrote {args.out}, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
