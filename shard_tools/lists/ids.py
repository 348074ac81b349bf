"""Videos that are listed by an id: which file is whose, in whatever folder it lies and whatever its suffix is."""

import posixpath
import re
from collections import defaultdict

from i2v.shard_tools.lists.source import Row, Source
from i2v.shard_tools.paths import SourceError, is_folder, is_video, join, open_binary, videos_below

CLIP = re.compile(r"(.+)_(\d+)_(\d+)")  # of Kinetics: id, start and end in whole seconds


def locate(source: Source, rows: list[Row]) -> list[Row]:
    """Rows whose paths are ids get the path of their video. What is not found keeps its id for a path."""
    first = join(source.root, rows[0].path)
    if is_folder(first):
        raise SourceError(f"{first} is a folder of frames, not a video: give the videos themselves, in any container.")
    videos = Videos(source.root)
    paths = [row.path if is_video(row.path) else videos.find(row) for row in rows]
    tell_missing(source, [row.path for row, path in zip(rows, paths) if path is None], len(rows))
    return [row._replace(path=path or row.path, listed=row.path) for row, path in zip(rows, paths)]


def tell_missing(source: Source, missing: list[str], count: int) -> None:
    if len(missing) == count:
        raise SourceError(
            f"none of the {count:,} videos of {source} is in {source.root or '.'} or below, the first is "
            f"{missing[0]!r}: give their folder as the root."
        )
    if missing:
        source.notes.append(
            f"{len(missing):,} of the {count:,} videos of {source} are not in {source.root or '.'}: they stay listed "
            f"and will be rejected as missing; the first is {missing[0]}."
        )


class Videos:
    """The videos below a folder by name."""

    def __init__(self, root: str):
        self.root = root
        self.named = defaultdict(list)  # stem, and path without suffix -> paths
        self.clips = defaultdict(list)  # of Kinetics, by clip_name -> paths
        for path in videos_below(root or "."):
            stem = posixpath.splitext(posixpath.basename(path))[0]
            for name in {stem, posixpath.splitext(path)[0]}:
                self.named[name].append(path)
            if match := CLIP.fullmatch(stem):
                self.clips[clip_name(*match.groups())].append(path)

    def find(self, row: Row) -> str | None:
        """The path of a row's id; of a Kinetics clip's, however its file is named."""
        path, match = self.one(self.named[row.path], row), CLIP.fullmatch(row.path)
        if path is None and match:
            clip = clip_name(*match.groups())
            path = self.one(self.clips[clip], row)
            if path is None and row.path == clip:
                path = self.one(self.named[match[1]], row)
                whole = row.end is None and row._replace(path=path, start=float(match[2]), end=float(match[3]))
                if path and whole and not self.are_trimmed([whole]):
                    return None  # the row means a clip, not the whole video
        return path

    def one(self, paths: list[str], row: Row) -> str | None:
        """The only path; of several, the one in the folder of the row's class."""
        if len(paths) > 1:
            label = row.label.replace("_", " ") if isinstance(row.label, str) else ""
            folders = [posixpath.basename(posixpath.dirname(path)).replace("_", " ") for path in paths]
            of_class = [path for path, folder in zip(paths, folders) if folder == label]
            if len(of_class) != 1:
                raise SourceError(
                    f"{row.where}: {row.path} is both {paths[0]} and {paths[1]} in {self.root or '.'}: "
                    "give a folder that holds only one of them as the root."
                )
            paths = of_class
        return paths[0] if paths else None

    def are_trimmed(self, rows: list[Row]) -> bool:
        """Whether files named {youtube_id}.mp4 hold only the listed part: both kinds are in use. A few durations tell."""
        votes = set()
        for row in sorted(rows, key=lambda row: -row.start)[:5]:  # the later the part, the clearer the difference
            seconds = _duration(join(self.root, row.path))
            if seconds is not None and row.start >= 1:
                votes.add(seconds < (row.end + (row.end - row.start)) / 2)
        if len(votes) > 1:
            raise SourceError(
                f"{self.root or '.'} holds whole videos and cut ones under names without times: put the cut ones "
                "elsewhere, or name them {youtube_id}_{start:06d}_{end:06d}."
            )
        return votes == {True}


def clip_name(video: str, start: float | str, end: float | str) -> str:
    return f"{video}_{int(start):06d}_{int(end):06d}"


def _duration(place: str) -> float | None:
    """Seconds; None where the file does not say."""
    import av

    try:
        with open_binary(place) as file, av.open(file) as container:
            return container.duration / av.time_base if container.duration else None
    except (OSError, av.FFmpegError):
        return None
