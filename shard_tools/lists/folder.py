"""Class folders, videos/abseiling/x.mp4: every subfolder is a class, its video files at any depth are the videos."""

import re

from i2v.shard_tools.lists.source import Row, Source
from i2v.shard_tools.paths import SourceError, by_suffix, files_below, is_video, join

SPLIT_FOLDER = re.compile(
    r"(videos?[_-]?)?(train|training|val|valid|validation|test|testing)([_-]?(set|data|videos?|\d+))?", re.IGNORECASE
)


def fits(source: Source) -> bool:
    return True


def read(source: Source) -> list[Row]:
    source.refuse_split()
    if source.given_root is not None:
        raise SourceError(f"{source} is a folder of videos, so there is no other root: leave {source.given_root} out.")
    if any(is_video(name) for name in source.files):
        raise SourceError(
            f"{source} holds videos outside of class folders: give the folder whose subfolders are the classes, "
            "or a CSV file with only a path column if the videos have no labels."
        )
    below = {name: files_below(join(source.place, name)) for name in source.folders}
    videos = {name: list(filter(is_video, below[name])) for name in source.folders}
    _refuse_split_folders(source, videos)
    rows = [Row(f"folder {name}", f"{name}/{video}", name) for name in source.folders for video in videos[name]]
    others = [file for name in source.folders for file in below[name] if not is_video(file)] + source.files
    if not rows:
        held = f" but {by_suffix(others)}" if others else ""
        raise SourceError(f"{source} holds no class folders with videos (mp4, webm, avi, mkv, ...){held}.")
    if others:
        source.notes.append(
            f"{len(others):,} files in {source} are no videos by their names and are left out: {by_suffix(others)}."
        )
    source.classes = source.folders
    return rows


def _refuse_split_folders(source: Source, videos: dict[str, list[str]]) -> None:
    """Folders that are called train and val, and no others, are parts of a data set rather than its classes."""
    names = [name for name in videos if videos[name]]
    if not names or not all(SPLIT_FOLDER.fullmatch(name) for name in names):
        return
    if len(names) > 1 or any("/" in video for video in videos[names[0]]):
        first, *others = sorted(names, key=lambda name: "train" not in name.lower())
        rest = "".join(f", and {join(source.place, name)} with --classes" for name in others)
        raise SourceError(
            f"the folders of {source} are splits, not classes ({', '.join(names)}): give {join(source.place, first)}{rest}."
        )
