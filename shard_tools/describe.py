"""What is in a data set? `python shard_tools/describe.py DIR [DIR ...]`. `--help` explains."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a file: import from this checkout
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    import i2v.console  # noqa: F401  # before the others, which take their time: see quiet_start

import argparse
import csv
import io
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np

from i2v.console import as_text, begin_command, refuse_place
from i2v.pipelines.index import class_counts
from i2v.pipelines.shards import ShardError, ShardSet

PERCENTILES = (0, 1, 10, 50, 90, 99, 100)
BAR = 40  # characters

EPILOG = """\
"8x16: too short" counts the clips with fewer frames than 8 frames at stride 16 span, (8 - 1) x 16 + 1 = 113: there,
frames come twice. Given several data sets, say train and val, it shows them side by side, and checks that their
classes agree and that no video is in two of them: the same stored pixels, or the same source path.

examples
  python shard_tools/describe.py shards/train
  python shard_tools/describe.py shards/train shards/val --png data.png --json data.json
  python shard_tools/describe.py shards/train --need 16x4 32x2

exit codes: 0 fine; 1 a data set cannot be read, classes differ, or videos are in two data sets; 2 wrong arguments
"""


# ---- numbers ---------------------------------------------------------------------------------------------------------


def measure(shards: ShardSet, needs: list[tuple[int, int]]) -> dict:
    """What there is to know of a data set, as JSON; needs: (frames, stride) of models."""
    clips, manifest = shards.clips, shards.manifest
    frames, fps = clips["frames"].astype(np.int64), clips["fps"].astype(np.float64)
    seconds, size = frames / fps, clip_sums(shards, "size") + clips["header_size"]
    per_class = class_counts(clips["label"], len(shards.classes), shards.label_sets)
    filled = per_class[per_class > 0]
    return {
        "data": str(shards.root),
        "clips": len(clips),
        "hours": seconds.sum() / 3600,
        "frames": int(frames.sum()),
        "shards": len(manifest["shards"]),
        "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
        "codec": manifest["codec"],
        "gop": manifest["gop"],
        "seconds": spread(seconds),
        "frames_per_clip": spread(frames),
        "bytes_per_clip": spread(size),
        "bytes_per_second": size.sum() / seconds.sum(),
        "sizes": count(f"{w}x{h}" for w, h in zip(clips["width"].tolist(), clips["height"].tolist())),
        "fps": count(f"{rate:.4g}" for rate in fps.tolist()),
        "too_short": {f"{t}x{stride}": int((frames < (t - 1) * stride + 1).sum()) for t, stride in needs},
        "classes": len(shards.classes),
        "unlabelled": int((clips["label"] < 0).sum()),
        "empty_classes": [shards.classes[i] for i in np.flatnonzero(per_class == 0)],
        "imbalance": float(filled.max() / filled.min()) if len(filled) else None,  # largest / smallest class
        "clips_per_class": dict(zip(shards.classes, per_class.tolist())),
        "duplicates": len(clips) - len(set(signatures(shards))),
        "rejected": count_reasons(shards),
    }


def clip_sums(shards: ShardSet, field: str) -> np.ndarray:
    """(clips,) what a field of the fragments of every clip adds up to."""
    first, total = shards.clips["first_fragment"].astype(np.int64), np.empty(len(shards), np.int64)
    for at in range(0, len(first), 4096):  # in parts: a large data set has 100 million fragments
        part = first[at : at + 4096]
        stop = first[at + 4096] if at + 4096 < len(first) else len(shards.fragments)
        total[at : at + 4096] = np.add.reduceat(shards.fragments[field][part[0] : stop].astype(np.int64), part - part[0])
    return total


def signatures(shards: ShardSet) -> list[tuple]:
    """For every clip what another one has in common with it only if it is the same video, encoded alike."""
    fields = (clip_sums(shards, "crc"), clip_sums(shards, "size"), *(shards.clips[f] for f in ("frames", "width", "height")))
    return list(zip(*(field.tolist() for field in fields)))


def spread(values: np.ndarray) -> dict:
    names = ["min" if p == 0 else "max" if p == 100 else "median" if p == 50 else f"p{p}" for p in PERCENTILES]
    return {"mean": float(values.mean())} | dict(zip(names, np.percentile(values, PERCENTILES).tolist()))


def count(values) -> dict[str, int]:
    return dict(Counter(values).most_common())


def count_reasons(shards: ShardSet) -> dict[str, int]:
    """Reason, without its numbers -> how many source videos were rejected for it."""
    return count(re.sub(r"\d+", "N", row.get("reason") or "") for row in read_table(shards, "rejected.csv"))


def read_table(shards: ShardSet, name: str) -> list[dict]:
    """The rows of clips.csv or rejected.csv; none if there is no such file."""
    try:
        text = shards.files.fetch(name).decode("utf-8", "surrogateescape")
    except ShardError:
        return []
    return list(csv.DictReader(io.StringIO(text, newline="")))


# ---- several data sets -----------------------------------------------------------------------------------------------


def compare(sets: list[ShardSet]) -> list[str]:
    """What is wrong between data sets that belong together, in sentences."""
    problems, videos = [], [(signatures(one), read_sources(one)) for one in sets] if len(sets) > 1 else []
    for (a, a_videos), (b, b_videos) in combinations(zip(sets, videos), 2):
        if a.classes != b.classes:
            at = next((i for i, (x, y) in enumerate(zip(a.classes, b.classes)) if x != y), None)
            how = f"class {at} is {a.classes[at]!r} and {b.classes[at]!r}" if at is not None else "one list is longer"
            problems.append(f"The classes of {a.root} and {b.root} differ ({how}): make them with the same --classes.")
        alike = all(a.manifest.get(key) == b.manifest.get(key) for key in ("codec", "gop", "short_side", "encoder"))
        both = shared_videos(*a_videos, *b_videos, alike)
        if both:
            problems.append(
                f"{len(both):,} videos of {b.root} are in {a.root} too, such as {', '.join(both[:3])}: "
                "take them out of one, or its scores mean nothing."
            )
    return problems


def shared_videos(a_pixels: list, a_sources: list, b_pixels: list, b_sources: list, alike: bool) -> list[str]:
    """Paths of the videos of b that a has too: the same stored pixels, or the same source path.

    Relative paths may be relative to different folders. So a path in common does not count where whole videos were
    encoded alike and yet are not the same.
    """
    pixels, paths = set(a_pixels), {path for path, _ in a_sources if path}
    return [
        path or "one without a name"
        for mine, (path, is_part) in zip(b_pixels, b_sources)
        if mine in pixels or (path in paths and (not alike or is_part or os.path.isabs(path) or "://" in path))
    ]


def read_sources(shards: ShardSet) -> list[tuple[str, bool]]:
    """For every clip the path of its source video as it was listed, and whether it is only a part of it."""
    rows = read_table(shards, "clips.csv")[: len(shards)]
    return [(row["path"], bool(row["start"] or row["end"])) for row in rows] + [("", False)] * (len(shards) - len(rows))


# ---- text ------------------------------------------------------------------------------------------------------------


def table(facts: list[dict]) -> str:
    """One row per number, one column per data set."""
    rows = {"": [fact["data"] for fact in facts]}

    def row(title: str, show) -> None:
        rows[title] = [show(fact) for fact in facts]

    for name in ("clips", "frames", "shards"):
        row(name, lambda fact: f"{fact[name]:,}")
    row("hours", lambda fact: f"{fact['hours']:.2f}")
    row("GB", lambda fact: f"{fact['bytes'] / 1e9:.3f}")
    row("codec, gop", lambda fact: f"{fact['codec']}, {fact['gop']}")
    row("KB per clip, per second", lambda f: f"{f['bytes_per_clip']['mean'] / 1e3:.1f}, {f['bytes_per_second'] / 1e3:.1f}")
    row("classes, of them empty", lambda fact: f"{fact['classes']:,}, {len(fact['empty_classes']):,}")
    row("largest / smallest class", lambda fact: f"{fact['imbalance']:.1f}" if fact["imbalance"] else "-")
    row("unlabelled clips", lambda fact: f"{fact['unlabelled']:,}")
    row("clips that come twice", lambda fact: f"{fact['duplicates']:,}")
    row("rejected videos", lambda fact: f"{sum(fact['rejected'].values()):,}")
    for name in facts[0]["seconds"]:
        row(f"seconds, frames: {name}", lambda fact: f"{fact['seconds'][name]:.2f}, {fact['frames_per_clip'][name]:.0f}")
    for need in facts[0]["too_short"]:
        row(f"{need}: too short", lambda f: f"{f['too_short'][need]:,} ({100 * f['too_short'][need] / f['clips']:.1f} %)")
    widths = [max(map(len, rows))] + [max(len(row[i]) for row in rows.values()) for i in range(len(facts))]
    lines = []
    for title, cells in rows.items():
        lines.append("  ".join([f"{title:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:]))]))
    return "\n".join(lines)


def histograms(shards: ShardSet, fact: dict) -> str:
    """Lengths, sizes, frame rates, classes and rejected videos of one data set, as bars."""
    seconds = shards.clips["frames"] / shards.clips["fps"].astype(np.float64)
    edges = length_edges(seconds)
    counts, _ = np.histogram(seconds, edges)
    lengths = {f"{low:.2f} - {high:.2f} s": n for low, high, n in zip(edges, edges[1:], counts.tolist())}
    sections = [bars("length", lengths), bars("size", fact["sizes"], 10), bars("fps", fact["fps"], 10)]
    per_class = dict(sorted(fact["clips_per_class"].items(), key=lambda item: -item[1]))
    if len(per_class) <= 20:
        sections.append(bars("clips per class", per_class))
    else:
        sections.append(bars("largest classes", per_class, 5))
        sections.append(bars("smallest classes", dict(list(per_class.items())[-5:])))
    sections.append(bars("rejected, by reason", fact["rejected"], 10))
    return "\n".join(filter(None, sections))


def length_edges(seconds: np.ndarray) -> np.ndarray:
    """Bounds of 12 classes of length; the last one takes the longest 1 %, however long they are."""
    low, most, high = np.percentile(seconds, (0, 99, 100))
    return np.array([low, high]) if low == high else np.unique([*np.linspace(low, most, 12), high])


def bars(title: str, counts: dict[str, int], most: int = 1000) -> str:
    if not counts:
        return ""
    shown = dict(list(counts.items())[:most])
    if len(shown) < len(counts):
        title += f" ({len(counts) - most:,} more are not shown)"
    width, largest = max(map(len, shown)), max(*shown.values(), 1)
    lines = [f"  {name:>{width}}  {'#' * -(-BAR * n // largest)} {n:,}" for name, n in shown.items()]
    return "\n".join([title, *lines])


# ---- picture ---------------------------------------------------------------------------------------------------------


def draw(path: Path, sets: list[ShardSet], facts: list[dict]) -> None:
    """Four panels: lengths, sizes, clips per class, bytes per second."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    (length, size), (classes, rate) = figure.subplots(2, 2)
    seconds = [one.clips["frames"] / one.clips["fps"].astype(np.float64) for one in sets]
    rates = [8e-3 * (clip_sums(one, "size") / each) for one, each in zip(sets, seconds)]
    sizes = list(dict.fromkeys(name for fact in facts for name in list(fact["sizes"])[:12]))[:16]
    names = [as_text(fact["data"]) for fact in facts]
    for panel, values, title in ((length, seconds, "length (s)"), (rate, rates, "kbit/s")):
        edges = np.histogram_bin_edges(np.concatenate(values), 40)
        for name, each in zip(names, values):
            panel.hist(each, edges, histtype="stepfilled", alpha=0.5, label=name)
        panel.set(xlabel=title, ylabel="clips", yscale="log", ylim=(0.8, None))
        panel.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:,.0f}")
        panel.yaxis.set_minor_formatter(NullFormatter())
    for i, fact in enumerate(facts):
        places = np.arange(len(sizes)) + (i + 0.5) * 0.8 / len(facts) - 0.4
        size.barh(places, [fact["sizes"].get(name, 0) for name in sizes], 0.8 / len(facts), alpha=0.7, label=names[i])
        per_class = sorted(fact["clips_per_class"].values(), reverse=True)
        classes.plot(np.arange(1, len(per_class) + 1), per_class, drawstyle="steps-mid", label=names[i])
    size.set(yticks=range(len(sizes)), yticklabels=sizes, xlabel="clips")
    size.invert_yaxis()
    classes.set(xlabel="classes, the largest first", ylabel="clips", ylim=(0, None))
    for axis in (size.xaxis, classes.xaxis, classes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    for panel, title in ((length, "Length"), (size, "Size"), (classes, "Clips per class"), (rate, "Bit rate")):
        panel.set_title(title, loc="left")
        panel.grid(alpha=0.3)
    length.legend(fontsize=8)
    figure.savefig(path, dpi=110)


# ---- command ---------------------------------------------------------------------------------------------------------


def parse_need(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not frames x stride, such as 8x16")
    frames, stride = text.split("x")
    return int(frames), int(stride)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="describe",
        description="Show what is in data sets: lengths, sizes, classes, bytes, what was rejected.",
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=110),
    )
    add = parser.add_argument
    add("data", metavar="DIR", nargs="+", help="folders (or URLs) that make_shards wrote to; several: side by side")
    add(
        "--need",
        type=parse_need,
        nargs="+",
        default=[(8, 16), (16, 4), (32, 2)],
        metavar="TxS",
        help="count the clips that are too short for T frames at stride S (default: 8x16 16x4 32x2)",
    )
    add("--cache", metavar="DIR", help="folder on a local disk for what is read from URLs")
    add("--png", type=Path, metavar="FILE", help="draw lengths, sizes, classes and bit rates here")
    add("--json", type=Path, metavar="FILE", help="write every number here")
    arguments = parser.parse_args(argv)
    begin_command()
    for data in arguments.data:
        if "://" not in data and not Path(data, "manifest.json").exists():
            parser.error(f"{data} holds no manifest.json: give folders that make_shards has finished.")
    try:
        refuse_place("--png", arguments.png)
        refuse_place("--json", arguments.json)
    except ValueError as error:
        parser.error(str(error))
    try:
        sets = [ShardSet(data, arguments.cache) for data in arguments.data]
        problems = compare(sets)
    except ShardError as error:
        print(f"describe: {error} verify.py lists all that is wrong.", file=sys.stderr)
        return 1
    facts = [measure(one, arguments.need) for one in sets]
    print(table(facts))
    for one, fact in zip(sets, facts):
        print(f"\n{fact['data']}\n{histograms(one, fact)}")
    for problem in problems:
        print(f"\n{problem}")
    try:
        if arguments.json:
            arguments.json.write_text(json.dumps({"data": facts, "problems": problems}, indent=1) + "\n")
        if arguments.png:
            draw(arguments.png, sets, facts)
    except (OSError, ValueError) as error:  # ValueError: matplotlib does not know the format
        print(f"describe: cannot write: {error}", file=sys.stderr)
        return 2
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
