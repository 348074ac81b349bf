"""What a data set tells strangers: README.md, a card as the Hugging Face hub shows it, and croissant.json, which data-set
searches and loaders read (MLCommons Croissant 1.0).

Both say what the manifest knows. Whose the videos are and what may be done with them it does not: the card asks for it.
"""

from __future__ import annotations

import hashlib
import json

from i2v.console import as_text
from i2v.shard_tools.output import Output

CARD, CROISSANT = "README.md", "croissant.json"
SHOWN = 100  # classes that the card names
CROISSANT_TERMS = """citeAs column extract field fileObject fileProperty fileSet format includes isLiveDataset jsonPath key md5
    parentField path recordSet references regex repeated replace separator source subField transform""".split()
OTHER_TERMS = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
}
CONTEXT = dict(sorted((OTHER_TERMS | {term: f"cr:{term}" for term in CROISSANT_TERMS}).items()))  # as the specification has it
COLUMNS = {  # of clips.csv
    "key": ("sc:Text", "name of the clip's members in its shard, without .mp4 and .json"),
    "path": ("sc:Text", "of the source video, as it was listed"),
    "start": ("sc:Text", "seconds in the source where the clip was to begin; empty: its beginning"),
    "end": ("sc:Text", "seconds in the source where it was to end; empty: its end"),
    "class": ("sc:Text", "what it shows; empty: not labelled"),
    "frames": ("sc:Integer", "stored frames"),
    "seconds": ("sc:Float", "frames / frames per second"),
    "width": ("sc:Integer", "pixels"),
    "height": ("sc:Integer", "pixels"),
}


def write_card(output: Output, manifest: dict) -> bool:
    """Write both, once the data set is complete; every shard is read for its checksum. Returns whether README.md was
    written: one that is there already is somebody's, and kept."""
    name = output.name.rstrip("/").rpartition("/")[2] or "clips"
    metadata = json.dumps(croissant(name, manifest, _checksums(output, manifest)), indent=1) + "\n"
    with output.lock("manifest.json"):  # several tasks may end at the same time
        _write(output, CROISSANT, metadata)
        if output.has(CARD):
            return False
        _write(output, CARD, as_text(card(name, manifest)))  # whatever the names are, a card is text
        return True


def _write(output: Output, name: str, text: str) -> None:
    """By way of a temporary file of always the same name: what a writer left that was killed, the next one writes over."""
    path = output.folder / f"{name}.tmp"
    path.write_text(text, encoding="utf-8")
    output.publish(path)


def about(name: str, manifest: dict) -> str:
    return (
        f"{name}: {manifest['clips']:,} video clips of {len(manifest['classes']):,} classes, {manifest['hours']:.2f} hours, "
        f"{manifest['codec']}, short side {manifest['short_side']} pixels, as shards for i2v and WebDataset."
    )


def card(name: str, manifest: dict) -> str:
    """README.md: what is in the data set, how it was made and how it is read."""
    counts = sorted(zip(manifest["classes"], manifest["clips_per_class"]), key=lambda pair: -pair[1])
    rows = [f"| {_cell(label)} | {count:,} |" for label, count in counts[:SHOWN]]
    rows += [f"| {len(counts) - SHOWN:,} more | {sum(count for _, count in counts[SHOWN:]):,} |"] if counts[SHOWN:] else []
    size, bytes_ = _size(manifest["clips"]), sum(shard["bytes"] for shard in manifest["shards"])
    front = {"pretty_name": name, "size_categories": [size], "task_categories": ["video-classification"], "tags": ["i2v"]}
    stored = f"{bytes_:,} bytes in {len(manifest['shards']):,} shards, {manifest['codec']} without sound"
    stored += f", a key frame every {manifest['gop']} frames"
    made = {key: value for key, value in manifest["made_with"].items() if key != "sources"}
    return f"""---
{chr(10).join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items())}
---

# {name}

{about(name, manifest)}

Written by `make_shards --card` from what it knows. **To be filled in before anybody else uses it:** where the videos come
from, who is in them, under which licence they are (`license:` in the lines above), and what they must not be used for.

| | |
| --- | --- |
| clips | {manifest["clips"]:,}, of {manifest["clips"] + manifest["rejected"]:,} videos that were listed |
| rejected | {manifest["rejected"]:,}: `rejected.csv` has the reasons |
| length | {manifest["hours"]:.2f} hours, {manifest["frames"]:,} frames |
| stored | {stored} |
| pictures | {", ".join(f"{size} ({count:,})" for size, count in list(manifest["sizes"].items())[:5])} |
| made with | `{json.dumps(made)}` |

| class | clips |
| --- | ---: |
{chr(10).join(rows)}

## Reading it

Each shard is a plain WebDataset tar of `KEY.mp4` and `KEY.json`; `clips.csv` lists all clips, `croissant.json` describes the
files for other tools. With i2v:

```python
from i2v.pipelines import build_loader

loader = build_loader("{name}", "train", num_frames=8, size=224, batch_size=8)
```
"""


def croissant(name: str, manifest: dict, checksums: dict[str, tuple[int, str]]) -> dict:
    """The metadata; checksums: bytes and SHA-256 of clips.csv and of every shard, by name."""
    kinds = {True: "application/x-tar", False: "text/csv"}
    files = [
        {
            "@type": "cr:FileObject",
            "@id": file,
            "name": file,
            "contentUrl": file,
            "contentSize": f"{size} B",
            "encodingFormat": kinds[file.endswith(".tar")],
            "sha256": sha256,
        }
        for file, (size, sha256) in checksums.items()
    ]
    videos = {
        "@type": "cr:FileSet",
        "@id": "videos",
        "name": "videos",
        "description": "The clips: KEY.mp4, as key of clips.csv has it.",
        "containedIn": [{"@id": shard["name"]} for shard in manifest["shards"]],
        "encodingFormat": "video/mp4",
        "includes": "*.mp4",
    }
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"clips/{column}",
            "name": f"clips/{column}",
            "description": what,
            "dataType": kind,
            "source": {"fileObject": {"@id": "clips.csv"}, "extract": {"column": column}},
        }
        for column, (kind, what) in COLUMNS.items()
    ]
    records = {"@type": "cr:RecordSet", "@id": "clips", "name": "clips", "key": {"@id": "clips/key"}, "field": fields}
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": about(name, manifest),
        "version": f"1.{manifest['generation']}.0",
        "distribution": [*files, videos],
        "recordSet": [records],
    }


def _checksums(output: Output, manifest: dict) -> dict[str, tuple[int, str]]:
    found = {}
    for name in ("clips.csv", *(shard["name"] for shard in manifest["shards"])):
        with output.local_copy(name) as path, open(path, "rb") as file:
            found[name] = (path.stat().st_size, _sha256(file))
    return found


def _sha256(file) -> str:
    checksum = hashlib.sha256()
    while block := file.read(1 << 24):
        checksum.update(block)
    return checksum.hexdigest()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _size(clips: int) -> str:
    """As the hub sorts data sets."""
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    return next((name for most, name in bounds if clips < most), "1M<n<10M")
