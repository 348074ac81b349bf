"""Other class names for a data set, nothing encoded again: `python shard_tools/relabel.py DIR --out NEW`. `--help` explains."""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a file: import from this checkout
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    import i2v.console  # noqa: F401  # before the others, which take their time: see quiet_start

import argparse
import csv
import difflib
from collections.abc import Iterator
from dataclasses import fields

import numpy as np

from i2v.console import as_sentence, begin_command
from i2v.pipelines.index import SEVERAL, Factors, combinations
from i2v.pipelines.shards import ClipError, ShardError, ShardSet
from i2v.pipelines.store import is_url
from i2v.shard_tools.checks import read_index
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodedClip, EncodeSettings
from i2v.shard_tools.lists.classes import FORMS, read_class_list
from i2v.shard_tools.lists.labels import read_map
from i2v.shard_tools.output import OutputError
from i2v.shard_tools.paths import SourceError
from i2v.shard_tools.source_video import RejectedVideo
from i2v.shard_tools.sources import Video

EPILOG = """\
The clips are copied as they are; labels and class names are written again. A clip whose bytes are damaged is listed in
NEW's rejected.csv; what DIR had rejected is not. An interrupted command continues when it is given again.

examples
  relabel.py shards/val --out shards/val2 --classes shards/train/manifest.json   # a val set made without --classes
  relabel.py shards/train --out shards/merged --map merge.csv                    # rename, merge, leave out classes

exit codes: 0 done; 1 could not read or write; 2 wrong arguments or class names; 130 interrupted
"""


def relabelled(shards: ShardSet, renamed: dict[str, str], classes: list[str] | Factors | None):
    """Clips of a data set, as videos with their new labels -> their numbers in it; and the class names, or those of each
    factor. Raises SourceError."""
    if shards.factors and renamed:
        raise SourceError(f"{shards.root} is labelled with factors, whose names a map cannot change: leave --map out.")
    with open(os.path.join(shards.root, "clips.csv"), newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    if [row.get("key") for row in rows] != [shards.key(clip) for clip in range(len(shards))]:
        raise SourceError(f"{shards.root}/clips.csv does not list the clips that are there: restore it from a copy.")
    names = [renamed.get(name, name) for name in shards.classes]
    if unknown := sorted(renamed.keys() - set(shards.classes)):
        raise SourceError(
            f"the map renames {unknown[0]!r}, which is no class of {shards.root}: {_nearest(unknown[0], shards.classes)}."
        )
    classes = classes or [name for name in dict.fromkeys(names) if name]
    known = combinations(classes) if isinstance(classes, dict) else classes
    index = {name: label for label, name in enumerate(known)}
    sets, videos = shards.label_sets, {}
    for clip, row in enumerate(rows):
        label = int(shards.clips["label"][clip])
        before = [] if label < 0 else [label] if sets is None else sets[label]
        new = [name for each in before if (name := names[each])]
        if sets is None and before and not new:
            continue
        if missing := next((name for name in new if name not in index), None):
            raise SourceError(
                f"class {missing!r} of {shards.root} is not among the new classes: {_nearest(missing, known)}, or give --map."
            )
        labels = tuple(sorted({index[name] for name in new}))
        name = SEVERAL.join(known[each] for each in labels) if label >= 0 else None
        end = float(row["end"]) if row["end"] else None
        label = labels if sets is not None else labels[0] if labels else -1
        videos[Video("", label, name, row["path"], float(row["start"] or 0), end)] = clip
    if not videos:
        raise SourceError("the map leaves out every clip: give other classes a name.")
    return videos, classes


def _nearest(name: str, names: list[str]) -> str:
    return f"the nearest is {(difflib.get_close_matches(name, names, 1, 0) or ['nothing'])[0]!r}"


def copies(shards: ShardSet, clips: Iterator[int]) -> Iterator[EncodedClip | RejectedVideo]:
    """The stored clips of these numbers, checked."""
    for clip in clips:
        try:
            data, begin = shards.read_whole(clip), shards.begin(clip)
        except ClipError as error:
            yield RejectedVideo(error.reason)
            continue
        record = shards.clips[clip]
        first, count = int(record["first_fragment"]), int(record["frames"])
        facts = {name: record[name].item() for name in ("header_size", "header_crc", "width", "height", "fps")}
        fragments = np.array(shards.fragments[first : first + count])
        yield EncodedClip(data, fragments=fragments, begin=begin, source_bytes=len(data), **facts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="relabel",
        description="Copy a data set with other class names or labels; no video is decoded or encoded.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", metavar="DIR", help="folder that make_shards wrote, on this machine")
    parser.add_argument("--out", metavar="NEW", required=True, help="folder or URL to write")
    parser.add_argument("--classes", metavar="FILE", help=f"class names: {FORMS}; numbers decide the order")
    parser.add_argument("--map", metavar="FILE", help="CSV file from,to that renames, merges or (empty to) leaves out classes")
    arguments = parser.parse_args(argv)
    begin_command()
    if arguments.classes is None and arguments.map is None:
        parser.error("give --classes, --map or both: there is nothing else to change.")
    if is_url(arguments.data):
        parser.error(f"{arguments.data} is a URL: copy the data set to this machine, or mount it, and give that folder.")
    try:
        renamed = read_map(arguments.map) if arguments.map else {}
        listed = read_class_list(arguments.classes) if arguments.classes else None
        shards = ShardSet(arguments.data)
        *_, problems = read_index(shards.root, shards.manifest)
        if problems:  # NEW has checksums of its own, by which it would be sound
            raise ShardError(f"of {shards.root}, {problems[0].what}: {problems[0].remedy}.")
        videos, classes = relabelled(shards, renamed, listed.names if listed else None)
        made = shards.manifest["made_with"]
        settings = EncodeSettings(**{field.name: made[field.name] for field in fields(EncodeSettings)})
        given = {"seed": made["seed"], "shard_clips": made["shard_clips"]}
        encode = lambda part: copies(shards, (videos[video] for video in part))  # noqa: E731
        manifest = make_shards(list(videos), classes, arguments.out, settings, **given, encode=encode)
    except (SourceError, OutputError) as error:
        print(f"relabel: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.strerror and error.filename is None:  # one of a full disk names no file
            error.filename = arguments.out
        print(f"relabel: {as_sentence(error)}", file=sys.stderr)
        return 1
    except (ShardError, RuntimeError) as error:
        print(f"relabel: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("relabel: interrupted; what is done is kept, the same command continues.", file=sys.stderr)
        return 130
    if listed:
        print(f"note: {listed.note}", file=sys.stderr)
    made = f"{manifest['clips']:,} clips of {len(manifest['classes']):,} classes in {arguments.out}"
    print(f"{made}; damaged: {manifest['rejected']:,}.")
    return 1 if manifest["rejected"] else 0


if __name__ == "__main__":
    sys.exit(main())
