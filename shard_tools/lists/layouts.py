"""Which layout a source has: tried in order, every one becomes rows of path and label."""

from collections.abc import Sequence

from i2v.shard_tools.lists import charades, epic, folder, hmdb51, kinetics, plain, records, ucf101, webdataset
from i2v.shard_tools.lists.source import Row, Source
from i2v.shard_tools.paths import SourceError, exists, is_folder

# What reads each of them, by fits(source) and read(source). They are tried from the last, which is the easiest to tell, to
# the first, which takes what is left.
OF_FOLDERS = {"folder": folder, "webdataset": webdataset, "ucf101": ucf101, "hmdb51": hmdb51}
OF_FILES = {
    "list": plain,
    "segments": plain,
    "kinetics": kinetics,
    "epic": epic,
    "charades": charades,
    "ssv2": records,
    "ucf101": ucf101,
    "diving48": records,
    "webdataset": webdataset,
}
LAYOUTS = ("auto", *(OF_FOLDERS | OF_FILES))


def read_layout(
    place: str, root: str | None, layout: str, split: str | None, factors: Sequence[str] = ()
) -> tuple[list[Row], Source]:
    """The rows of a source, and what was found out about it. Raises SourceError."""
    if layout not in LAYOUTS:
        raise SourceError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}.")
    source = Source(place, root, layout, split, factors)
    known = OF_FOLDERS if source.is_folder else OF_FILES
    if layout not in ("auto", *known):
        kind = "folder" if source.is_folder else "file"
        raise SourceError(f"{source} is a {kind}, but layout {layout} is not read from one: {', '.join(known)} are.")
    reader = known.get(layout)
    if not source.is_folder and webdataset.fits(source):
        reader = webdataset  # whatever it is said to be
    if not source.is_folder and reader is not webdataset:
        if not exists(place):
            raise SourceError(f"{source} does not exist: give a folder of class folders, or a CSV file of path,label.")
        if not is_folder(source.root or "."):
            raise SourceError(f"the root folder {source.root} does not exist.")
    if reader is None:
        reader = next(each for each in reversed(known.values()) if each.fits(source))
    return reader.read(source), source
