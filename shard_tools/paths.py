"""Where lists and videos are: local paths, or fsspec URLs as s3://bucket/videos is. Local paths never touch fsspec."""

from __future__ import annotations

import codecs
import contextlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable

from i2v.console import refuse_pipe
from i2v.pipelines.store import LONG, Store, is_url

VIDEO_SUFFIXES = frozenset(
    ".264 .265 .266 .3g2 .3gp .amv .asf .av1 .avc .avi .avs .cavs .dif .divx .drc .dv .evo .f4v .flv .gif .gxf .h261 .h263"
    " .h264 .h265 .h266 .hevc .ismv .ivf .m1v .m2p .m2t .m2ts .m2v .m4v .mj2 .mjpeg .mjpg .mk3d .mkv .mod .mov .mp4 .mpe"
    " .mpeg .mpg .mpv .mts .mxf .nsv .nut .nuv .obu .ogg .ogm .ogv .ogx .qt .rm .rmvb .tod .tp .trp .ts .vc1 .vob .vvc"
    " .webm .wmv .wtv .xvid .y4m".split()
)
# What systems and archivers leave beside the files of a user: macOS, pax, Synology, Windows, ext4.
HIDDEN = re.compile(r"\..*|__MACOSX|PaxHeaders.*|@eaDir|\$RECYCLE\.BIN|System Volume Information|lost\+found", re.DOTALL)


class SourceError(ValueError):
    """The source list cannot be used; the message is one sentence that says what, where and what to do."""


def is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def is_hidden(path: str) -> bool:
    """Whether a file or folder, or a folder on the way to it, is nobody's video or class: in folders and in tars alike."""
    return any(HIDDEN.fullmatch(name) for name in path.split("/") if name not in (".", ".."))


def by_suffix(names: Iterable[str]) -> str:
    """2 .txt, 1 without a suffix."""
    counts = Counter(os.path.splitext(name)[1].lower() or "without a suffix" for name in names)
    return ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(10)) + (", ..." if len(counts) > 10 else "")


def join(root: str, path: str) -> str:
    """`path` as seen from `root`; absolute paths and URLs are what they are."""
    if is_url(path) or os.path.isabs(path) or not is_url(root):
        return path if is_url(path) else os.path.join(root, path)
    scheme, separator, folder = root.rpartition("://")
    path = f"{folder.rstrip('/')}/{path}" if folder else path
    dotted = {".", ".."} & set(path.split("/"))  # object stores know no parent folder; a double slash may be a name
    return scheme + separator + (posixpath.normpath(path) if dotted else path)


def parent(place: str) -> str:
    scheme, separator, path = place.rpartition("://") if is_url(place) else ("", "", place)
    return scheme + separator + posixpath.dirname(path)


def is_folder(place: str) -> bool:
    return Store(place).is_folder() if is_url(place) else os.path.isdir(place)


def exists(place: str) -> bool:
    return Store(place).exists() if is_url(place) else os.path.exists(place)


def open_binary(place: str):
    """A seekable file. Small blocks: who reads headers here wants few bytes of many places."""
    if is_url(place):
        return Store(place).open(block=2**16)
    refuse_pipe(place)
    return open(place, "rb")


def read_text(place: str, errors: str = "strict", utf16: bool = False) -> str:
    """Text in UTF-8. errors="surrogateescape": what else a file's name may hold is kept, byte by byte. utf16: text in
    UTF-16 is read, too, if it begins with its mark."""
    with reading(place), open_binary(place) as file:
        data = file.read()
    try:
        marked = utf16 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16") if marked else data.decode("utf-8-sig", errors)
        bad = re.search("[\0-\x08\x0e-\x1f\x7f]", text)
        before, what = (text[: bad.start()].encode("utf-8", "replace"), f"{ord(bad[0]):#04x}") if bad else (b"", "")
    except UnicodeDecodeError as error:
        before, what = data[: error.start], f"{data[error.start]:#04x}"
    if what and is_video(place):
        raise SourceError(f"{place} is a video: give the folder that holds a folder for each class, or a list of path,label.")
    if what:
        line = before.count(b"\n") + 1
        raise SourceError(
            f"{place} is not a text file in UTF-8 (line {line} has the byte {what}): save it as UTF-8, or give "
            "another file or a folder."
        )
    return text


def entries(folder: str) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder, sorted, without hidden ones."""
    with reading(folder):
        if is_url(folder):
            found = [(entry.name, entry.is_folder) for entry in Store(folder).entries(LONG)]
        else:
            found = [(entry.name, entry.is_dir()) for entry in os.scandir(folder)]
    found = sorted((name, is_dir) for name, is_dir in found if not is_hidden(name))
    return [name for name, is_dir in found if not is_dir], [name for name, is_dir in found if is_dir]


def videos_below(folder: str) -> list[str]:
    """Every video file at any depth that is not hidden, relative to the folder, sorted. Links are followed."""
    return list(filter(is_video, files_below(folder)))


def files_below(folder: str) -> list[str]:
    """Every file, as `videos_below` has the videos."""
    with reading(folder):
        if is_url(folder):
            found = Store(folder).below()
        else:
            found = []
            ways = {folder: (os.path.realpath(folder),)}  # through which folders each is reached, without links
            for here, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
                way = ways.pop(here)
                for name in list(folders):
                    path = os.path.join(here, name)
                    real = os.path.realpath(path) if os.path.islink(path) else os.path.join(way[-1], name)
                    if real in way or _leads_upwards(path):
                        folders.remove(name)
                    else:
                        ways[path] = (*way, real)
                prefix = os.path.relpath(here, folder) + "/" if here != folder else ""
                found += [prefix + name for name in files]
    return sorted(name for name in found if not is_hidden(name))


@contextlib.contextmanager
def reading(place: str):
    """That a place cannot be read is told as a SourceError. A store that does not work is a StoreError, here as elsewhere."""
    try:
        yield
    except OSError as error:
        raise SourceError(f"{place} cannot be read: {error.strerror or error}.") from error


def _leads_upwards(folder: str) -> bool:
    """Whether it is a link to a folder that it lies in: a walk would never end."""
    real = os.path.realpath(folder)
    return os.path.islink(folder) and os.path.commonpath([real, os.path.realpath(os.path.dirname(folder))]) == real


def _raise(error: OSError):
    raise error
