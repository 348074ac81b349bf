"""Which layout a source has: every layout becomes a table of path and label.

folder       videos/abseiling/x.mp4: every subfolder is a class, its video files (at any depth) are the videos
list         path,label: one row per video; commas, semicolons, tabs or spaces; labels are names or integers from 0;
             without labels the videos are unlabelled. A path without a suffix is an id: x is x.mp4, a/x.webm, ...
segments     path,start,end,label or start,duration: parts of long videos, in seconds or h:m:s
kinetics     label,youtube_id,time_start,time_end,split: the clips are {youtube_id}_{start:06d}_{end:06d}.mp4
ssv2         Something-Something: train.json of V2, id;label of V1; the class is the template without its brackets
ucf101       trainlist01.txt, testlist01.txt: the class is the folder
hmdb51       a folder of {class}_test_split1.txt
diving48     Diving48_V2_train.json
webdataset   tar files with video members, one of them, or videos-{000..010}.tar; labels in .cls, .label, .json or .txt
"""

from __future__ import annotations

from i2v.shard_tools.lists import folder, hmdb51, kinetics, plain, records, ucf101, webdataset
from i2v.shard_tools.lists.source import Source, Table
from i2v.shard_tools.paths import SourceError, exists, is_folder

# What reads each of them, by fits(source) and read(source). They are tried from the last, which is the easiest to tell, to
# the first, which takes what is left.
OF_FOLDERS = {"folder": folder, "webdataset": webdataset, "ucf101": ucf101, "hmdb51": hmdb51}
OF_FILES = {
    "list": plain,
    "segments": plain,
    "kinetics": kinetics,
    "ssv2": records,
    "ucf101": ucf101,
    "diving48": records,
    "webdataset": webdataset,
}
LAYOUTS = ("auto", *(OF_FOLDERS | OF_FILES))


def read_layout(place: str, root: str | None, layout: str, split: str | None) -> Table:
    """The rows of a source. Raises SourceError."""
    if layout not in LAYOUTS:
        raise SourceError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}.")
    source = Source(place, root, layout, split)
    known = OF_FOLDERS if source.is_folder else OF_FILES
    if layout not in ("auto", *known):
        kind = "folder" if source.is_folder else "file"
        raise SourceError(f"{place} is a {kind}, but layout {layout} is not read from one: {', '.join(known)} are.")
    if not source.is_folder and (layout == "webdataset" or webdataset.fits(source)):
        return webdataset.read(source)  # a name ends in .tar whatever else it is said to be; and may stand for many
    if not source.is_folder and not exists(place):
        raise SourceError(f"{place} does not exist: give a folder of class folders, or a CSV file of path,label.")
    if not source.is_folder and not is_folder(source.root or "."):
        raise SourceError(f"the root folder {source.root} does not exist.")
    if layout == "auto":
        return next(each for each in reversed(known.values()) if each.fits(source)).read(source)
    return known[layout].read(source)
