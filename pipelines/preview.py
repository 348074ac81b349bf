"""Clips as the model will see them, in one picture: `python pipelines/preview.py DIR --out FILE`. `--help` explains."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a file: import from this checkout
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    import i2v.console  # noqa: F401  # before the others, which take their time: see quiet_start

import argparse
import re
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

from i2v.console import begin_command, refuse_pipe, refuse_place
from i2v.experiments import find_config
from i2v.pipelines import ShardError
from i2v.pipelines.index import SEVERAL

MARGIN, TITLE, FONT = 4, 18, 12  # pixels: around every frame, above every row, height of letters
SMALLEST, LARGEST = 96, 224  # pixels: smaller frames are enlarged, larger ones are shrunk

EPILOG = """\
A row is a clip, after every augmentation that the options ask for; with --split test, a view of a video. Options are
those of the configuration's section `clips` and its model.num_frames; name=value replaces them. The same options, seed
and place in the stream give the same picture, and the clips that a training run with that seed gets.

examples
  python pipelines/preview.py shards/train --config configs/st_adapter/ssv2_vit-b16_8f.yaml --out sheet.png
  python pipelines/preview.py shards/train --config CONFIG --out sheet.png --epoch 3 --clips 4 crop=short_side
  python pipelines/preview.py shards/val --split test --out views.png num_frames=16 sampling=stride stride=4 crops=3

exit codes: 0 done; 1 the data set cannot be read or has bad clips; 2 wrong arguments or options;
130 interrupted
"""


def read_options(config: Path | None, overrides: list[str]) -> dict:
    """Options of build_loader. Raises ValueError, one sentence."""
    options = {}
    if config is not None:
        try:
            config = find_config(config)
            refuse_pipe(config)
            content = yaml.safe_load(config.read_text(encoding="utf-8-sig"))
            model, options = content.get("model") or {}, dict(content.get("clips") or {})
        except (OSError, yaml.YAMLError, AttributeError, ValueError, TypeError) as error:
            raise ValueError(f"{config} cannot be read as a configuration: {' '.join(str(error).split())}") from error
        options |= {"num_frames": model["num_frames"]} if "num_frames" in model else {}
        size = size_of(model.get("backbone"))
        options |= {"size": size} if size else {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"{override!r} is not an option: write name=value, such as num_frames=16.")
        try:
            options[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{override!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if config is not None and "size" not in options:
        raise ValueError(f"the backbone of {config} does not say how large its pictures are: give size=..., as in size=224.")
    return options


def size_of(backbone) -> int | None:
    """Pixels along a side of a backbone's pictures, as it says them: a section, or a name such as ViT-B-16 (224) or
    timm/vit_base_patch16_siglip_384; None for one that does not, a folder or timm/vit_base_patch14_dinov2."""
    if isinstance(backbone, dict):
        return backbone["image_size"] if "image_size" in backbone else size_of(backbone.get("name"))
    said = re.search(r"[-_](\d{3})(-quickgelu|\..*)?$", str(backbone))
    return int(said[1]) if said else None if "/" in str(backbone) else 224


def read_rows(loader, clips: int, columns: int) -> list[tuple[str, np.ndarray]]:
    """Title and frames (at most `columns`, H, W, 3) uint8 of every row: of clips, or of all views of so many videos."""
    rows, plan = [], loader.plan
    mean, std = np.float32(loader.graph.grey)
    for position, batch in zip(range(loader.start, loader.start + clips), loader):
        spec, label = plan[position], batch.labels[0]
        if not spec.weight:  # after the last video
            break
        labels = [int(label)] if label.ndim == 0 else label.nonzero().flatten().tolist()
        name = SEVERAL.join(loader.shards.classes[each] for each in labels if each >= 0) or "not labelled"
        views = batch.clips.numpy()
        views = views[0] if views.ndim == 6 else views  # (V, 3, T, H, W)
        frames = spec.frames.reshape(plan.clips, -1)  # (clips, T)
        shown = np.unique(np.linspace(0, frames.shape[1] - 1, min(columns, frames.shape[1])).round().astype(int))
        for view, pixels in enumerate(views):
            crop, clip = divmod(view, plan.clips)
            parts = [
                name,
                loader.shards.key(spec.id),
                "frames " + ", ".join(map(str, frames[clip][shown])),
                "box " + ", ".join(f"{side:.0f}" for side in spec.boxes[crop]),
            ]
            parts += ["mirrored"] * spec.flip + [f"view {view + 1} of {len(views)}"] * (len(views) > 1)
            parts += [] if batch.weights[0] else [f"BAD, never trained on: {loader.quarantine.reason(spec.id)}"]
            rgb = np.moveaxis(pixels[:, shown], 0, -1) * std + mean  # (shown, H, W, 3)
            rows.append(("   ".join(parts), np.clip(np.rint(rgb), 0, 255).astype(np.uint8)))
    return rows


def draw_sheet(rows: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Rows of frames, each row under its title."""
    count, size = rows[0][1].shape[:2]
    side = min(size, LARGEST) if size > SMALLEST else size * -(-SMALLEST // size)
    font = ImageFont.load_default(FONT)
    width = MARGIN + max([count * (side + MARGIN), *(int(font.getlength(title)) + MARGIN for title, _ in rows)])
    sheet = Image.new("RGB", (width, MARGIN + len(rows) * (TITLE + side + MARGIN)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (title, frames) in enumerate(rows):
        top = MARGIN + row * (TITLE + side + MARGIN)
        draw.text((MARGIN, top), title, fill="black", font=font)
        for column, frame in enumerate(frames):
            how = Image.Resampling.NEAREST if side > size else Image.Resampling.LANCZOS
            picture = Image.fromarray(frame).resize((side, side), how)
            sheet.paste(picture, (MARGIN + column * (side + MARGIN), top + TITLE))
    return sheet


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="preview",
        description="Draw clips as the model will see them, augmentation included: a picture of rows of frames.",
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=110),
    )
    add = parser.add_argument
    add("data", metavar="DIR", help="folder (or URL) that make_shards wrote to")
    add("options", metavar="name=value", nargs="*", help="options of clips, such as num_frames=16 flip=0 size=336")
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="a configuration of i2v, or the name of an installed one, for its section clips (default: none)",
    )
    add("--out", type=Path, metavar="FILE", required=True, help="picture to write, .png")
    add("--split", choices=("train", "val", "test"), default="train", help="how clips are drawn (default: train)")
    add("--clips", type=int, default=8, metavar="N", help="rows; with --split test: videos (default: 8)")
    add("--columns", type=int, default=16, metavar="N", help="frames shown of a clip at most (default: 16)")
    add("--epoch", type=int, default=0, metavar="N", help="of the training stream (default: 0)")
    add("--start", type=int, default=0, metavar="N", help="clips to pass over first (default: 0)")
    add("--seed", type=int, default=0, metavar="N", help="of the training stream (default: 0)")
    add("--cache", metavar="DIR", help="folder on a local disk for what is read from URLs")
    arguments = parser.parse_intermixed_args(argv)
    begin_command()
    for name, least in (("clips", 1), ("columns", 2), ("epoch", 0), ("start", 0), ("seed", 0)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name} must be at least {least}, not {getattr(arguments, name)}.")
    from i2v.pipelines import build_loader  # brings torch, which --help does not need

    try:
        refuse_place("--out", arguments.out)
        options = read_options(arguments.config, arguments.options)
        loader = build_loader(
            arguments.data,
            arguments.split,
            options,
            1,
            "cpu",
            start=arguments.start,
            seed=arguments.seed,
            cache=arguments.cache,
        )
        loader.start += arguments.epoch * len(loader.plan)
        rows = read_rows(loader, arguments.clips, arguments.columns)
    except ShardError as error:
        print(f"preview: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("preview: interrupted; nothing was written.", file=sys.stderr)
        return 130
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    if not rows:
        parser.error(f"{arguments.data} has {len(loader.plan):,} videos: choose a smaller --start or --epoch.")
    try:
        draw_sheet(rows).save(arguments.out)
    except (OSError, ValueError) as error:
        parser.error(f"{arguments.out} cannot be written: {error}.")
    print(f"{arguments.out}: {len(rows)} rows of {loader.plan.options.num_frames} frames")
    return 1 if loader.bad else 0


if __name__ == "__main__":
    sys.exit(main())
