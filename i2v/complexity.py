"""Parameters and multiply-accumulates (MACs) of configurations, for a view and for all views of their evaluation.

    python -m i2v.complexity configs/st_adapter/k400_vit-b16_8f.yaml
    python -m i2v.complexity configs/aim configs/dist --json costs.json      # a folder: every YAML below it

Counted as in the authors' tables, which say "GFLOPs" and mean MACs: convolutions, linear layers and matrix products,
both products of attention included, and with fvcore's estimates 5 per element for a LayerNorm and 2 for a batch norm.
Other element-wise work and resizing count nothing. What is counted is what this code would run for one clip if the last
layer computed every token, as the authors' code does, and not only those that are read (`benchmarks/anatomy.py` counts what
is run); on the meta device: every layer at its true size, without memory, weights or arithmetic.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from i2v.config import Config, load_config
from i2v.console import as_sentence
from i2v.model import VideoClassifier, can_merge, create_model, head_kind
from i2v.session import add_flags, command, parse
from i2v.vit import VisionTransformer

CLASSES = {"k400": 400, "k700": 700, "ssv2": 174, "ucf101": 101, "hmdb51": 51, "diving48": 48, "mosi": 9, "epic100": 97 * 300}

# What the authors print: GMACs, and for how many views. ST-Adapter, DiST, TAda2D and the rows left out print none.
PUBLISHED = {
    "aim/k400_vit-b16_8f": (606, 3),
    "aim/k400_vit-b16_16f": (1214, 3),
    "aim/k400_vit-b16_32f": (2428, 3),
    "aim/k400_vit-l14_8f": (2802, 3),  # their 2902 is a misprint: four other rows are multiples of 2802
    "aim/k400_vit-l14_16f": (5604, 3),
    "aim/k400_vit-l14_32f": (11208, 3),
    "aim/k700_vit-b16_32f": (7284, 9),
    "aim/k700_vit-l14_32f": (33624, 9),
    "aim/diving48_vit-b16_32f": (809, 1),
    "aim/diving48_vit-l14_32f": (3736, 1),
    "zeroi2v/k400_vit-b16_8f, merged": (422, 3),
    "zeroi2v/k400_vit-l14_32f, merged": (7783, 3),
    "zeroi2v/ssv2_vit-b16_8f, merged": (422, 3),
    "zeroi2v/ssv2_vit-l14_32f, merged": (7783, 3),
    "tada/k400_vit-b16_16f": (153, 1),
    "tada/k400_vit-l14_16f": (703, 1),
    "tada/k400_vit-l14_32f": (1406, 1),
    "tada/k400_vit-l14_64f": (2812, 1),
    "tada/ssv2_vit-b16_16f": (187, 1),
    "tada/ssv2_vit-b16_32f": (374, 1),
    "tada/ssv2_vit-l14_16f": (858, 1),
    "tada/ssv2_vit-l14_32f": (1716, 1),
    "tadaconvnext/k400_tiny_16f": (47, 1),
    "tadaconvnext/k400_tiny_32f": (94, 1),
    "tadaconvnext/k400_small_16f": (91, 1),
    "tadaconvnext/k400_small_32f": (183, 1),
    "tadaconvnext/k400_small-in21k_32f": (183, 1),
    "tadaconvnext/k400_base_16f": (162, 1),
    "tadaconvnext/k400_base_32f": (324, 1),
    "tadaconvnext/k400_base-in21k_32f": (324, 1),
    "tadaconvnext/ssv2_tiny_16f": (47, 1),
    "tadaconvnext/ssv2_tiny_32f": (94, 1),
    "tadaconvnext/ssv2_small_16f": (91, 1),
    "tadaconvnext/ssv2_small_32f": (183, 1),
    "tadaconvnext/ssv2_small-in21k_32f": (183, 1),
    "tadaconvnext/ssv2_base-in21k_32f": (324, 1),
}

COLUMNS = ("config", "params (M)", "trained (M)", "GMACs/view", "views", "GMACs", "published", "difference")
NOTES = """
GMACs count one clip (/view) and all clips x crops of the evaluation. Published are the authors' figures, for the
number of views in brackets; the difference compares as many views of ours. Methods whose adapters fold into CLIP's
layers have a second row for the merged model, which is what ZeroI2V publishes. AIM's figures grow in proportion to the
frames, while attention over frames grows faster; TAdaFormer's are rounded down. Where this code does not do exactly
what the authors' does: DiST embeds only the frames that CLIP sees (0.6 % less than theirs, which publish no figure),
ST-Adapter and TAdaFormer send the class token through their projections as well (up to 0.1 % more). Of the last layer
all tokens are counted, as in the authors' code, although this code computes only the class tokens that are read.
The two convolutional trunks are counted at the size of their test pictures, 256.
"""


def costs(path: str, classes: int | None = None) -> list[dict]:
    """The rows of a configuration: the model that is trained and, where the method merges adapters, the merged one.

    A row: config, params, trained (None: not to be trained), macs (of one view), macs_by_operator, views, and published
    (GMACs, views) or None. classes: None derives them from the file's name. Raises ValueError, TypeError or OSError.
    """
    config, name = load_config(path), "/".join(Path(path).with_suffix("").parts[-2:])
    classes = classes or classes_of(path)
    rows = [cost(name, config, classes)]
    if can_merge(config.model.method) and not config.model.options.get("merged"):
        rows.append(cost(f"{name}, merged", config, classes, merged=True) | {"trained": None})
    return rows


def cost(name: str, config: Config, classes: int, **options) -> dict:
    """One row; options replace those of the configuration."""
    model = config.model
    classes = None if head_kind(model.head) == "factors" else classes  # its own
    with torch.device("meta"):
        built = create_model(model.method, model.backbone, model.num_frames, classes, model.head, **model.options | options)
    params = sum(p.numel() for p in built.parameters())
    trained = sum(p.numel() for p in built.trainable_parameters().values())
    by_operator = count_macs(built, config.clips.get("test_size"))
    return {
        "config": name,
        "params": params,
        "trained": trained,
        "macs": sum(by_operator.values()),
        "macs_by_operator": by_operator,
        "views": config.clips.get("clips", 1) * config.clips.get("crops", 1),
        "published": PUBLISHED.get(name),
    }


def count_macs(model: VideoClassifier, size: int | None = None) -> dict[str, int]:
    """operator -> MACs of one clip, of pictures of `size` pixels if that is not the one it trains on. The model is on the
    meta device; it is frozen, as the counter follows gradients."""
    aten, size = torch.ops.aten, size or model.spec.image_size
    formulas = {  # torch's counter knows the products; like it, these return two operations for a MAC
        aten.native_layer_norm: lambda x, *rest, **more: 2 * 5 * math.prod(x),
        aten._native_batch_norm_legit_no_training: lambda x, *rest, **more: 2 * 2 * math.prod(x),
        aten.mul: tap_of_depthwise_convolution,
    }
    with every_token(), torch.no_grad(), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        model.eval().requires_grad_(False)(torch.empty(1, 3, model.num_frames, size, size, device="meta"))
    operators = counter.get_flop_counts()["Global"].items()
    return {str(operator).removeprefix("aten."): count // 2 for operator, count in operators if count}


def every_token():
    """A context in which the last layer computes all of its tokens, not only those that are read."""
    encode = VisionTransformer.encode
    return mock.patch.object(
        VisionTransformer, "encode", lambda self, tokens, frames=1, wanted=None: encode(self, tokens, frames)
    )


def tap_of_depthwise_convolution(a, b, *, out_shape) -> int:
    """Of a product of shapes a and b: ST-Adapter's depthwise convolution multiplies by one number per channel, tap by
    tap; all other element-wise products are by numbers or by tensors of several axes and belong to no convolution."""
    by_channel = any(isinstance(shape, torch.Size) and len(shape) == 1 for shape in (a, b))
    return 2 * math.prod(out_shape) if by_channel else 0


def classes_of(path: str) -> int:
    """The number of classes of the data set with which a file's name begins. Raises ValueError for another name."""
    data = Path(path).stem.split("_")[0]
    if data not in CLASSES:
        raise ValueError(f"{path}: the file's name does not begin with one of {', '.join(CLASSES)}: give --classes.")
    return CLASSES[data]


def cells(row: dict) -> tuple[str, ...]:
    """One line of the table, as text."""
    published, difference = "", ""
    if row["published"]:
        gmacs, views = row["published"]
        published = f"{gmacs} ({views})"
        difference = f"{100 * (row['macs'] * views / 1e9 / gmacs - 1):+.2f} %"
    params, view, views = f"{row['params'] / 1e6:.3f}", row["macs"] / 1e9, row["views"]
    trained = "" if row["trained"] is None else f"{row['trained'] / 1e6:.3f}"
    return row["config"], params, trained, f"{view:.1f}", str(views), f"{view * views:.1f}", published, difference


def markdown(rows: list[dict]) -> Iterator[str]:
    """Lines of a table for a document, with its notes."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "| --- |" + " ---: |" * (len(COLUMNS) - 1)
    yield from (f"| {' | '.join(cells(row))} |" for row in rows)
    yield NOTES.rstrip()


def plain(rows: list[dict]) -> Iterator[str]:
    """Lines of a table for the terminal."""
    lines = [COLUMNS, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for name, *numbers in lines:
        yield "  ".join([name.ljust(widths[0]), *(n.rjust(width) for n, width in zip(numbers, widths[1:]))]).rstrip()


def files(paths: list[str]) -> list[str]:
    """Every YAML file of folders, 8f before 16f, and files as they are."""
    found = []
    for path in paths:
        below = map(str, Path(path).rglob("*.yaml")) if Path(path).is_dir() else [path]
        below = list(below)
        if not below:
            raise ValueError(f"{path} has no configurations (*.yaml): give a folder that has, or a file.")
        found += sorted(below, key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(9), name))
    return found


def main() -> None:
    parser = command("i2v.complexity", __doc__)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML files, or folders of them")
    parser.add_argument("--classes", type=int, help="of the classifier (default: by the data set in the file's name)")
    add_flags(parser, "--json", json="write all rows here, with the MACs of each kind of operator")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parse(parser)
    try:
        rows = [row for path in files(args.configs) for row in costs(path, args.classes)]
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"i2v.complexity: {as_sentence(error)}")
    if args.markdown:
        print(f"<!-- python -m i2v.complexity {shlex.join(sys.argv[1:])} -->\n\n# What each configuration costs\n")
    print("\n".join(markdown(rows) if args.markdown else plain(rows)))


if __name__ == "__main__":
    main()
