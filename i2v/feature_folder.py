"""Folders of features that i2v.features wrote, or of a KEY.npy (rows, channels) for each video, read where they lie.

Beside KEY.npy may be KEY.times.npy (rows, 2), start and end of each row in seconds, and for each kind of labels
KEY.scores.KIND.npy (rows, views * classes), logits. A folder of i2v.features also says in features.csv which video a key
is, and in features.json what the classes are called.
"""

from __future__ import annotations

import csv
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

ABOUT, TABLE = "features.json", "features.csv"
FILE_NAMES = ("utf-8", "surrogateescape")  # in tables, as in clips.csv: what is not UTF-8 in a name is kept, byte by byte
UNREADABLE = "unreadable"  # instead of a number of rows: a video of which there are none


@dataclass(frozen=True)
class Place:
    """Where an array begins in a file."""

    file: Path
    offset: int = 0


class FeatureFolder:
    """The arrays of a folder, by video. Raises ValueError, one sentence, for a folder that has none."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"{path} is no folder: give one that i2v.features wrote, or one with a .npy for each video.")
        self.about = read_about(self.path / ABOUT)
        self.places = {file.name.removesuffix(".npy"): Place(file) for file in sorted(self.path.glob("*.npy"))}
        for shard in sorted(self.path.glob("*.tar")):
            self.places |= members(shard)
        if not self.places:
            raise ValueError(f"{path} holds no features: there is neither a .npy nor a .tar in it.")
        self.keys = self._keys()

    def _keys(self) -> dict[str, str]:
        """What a video may be called -> its key; names that fit several are none."""
        keys = {name: name for name in self.places}
        if (self.path / TABLE).exists():
            head, *lines = read_table(self.path / TABLE) or [[]]
            rows = [row for row in (dict(zip(head, line)) for line in lines) if row.get("key") in self.places]
            for name_of in (lambda source: source, lambda source: PurePosixPath(source).name, lambda s: PurePosixPath(s).stem):
                named: dict[str, set] = {}
                for row in rows:
                    named.setdefault(name_of(row["source"]), set()).add(row["key"])
                keys |= {name: min(found) for name, found in named.items() if name not in keys and len(found) == 1}
        return keys

    def __contains__(self, video: str) -> bool:
        return self.key_of(video) is not None

    def key_of(self, video: str) -> str | None:
        """What the video's features are called here; None: it has none."""
        return next((self.keys[name] for name in (video, PurePosixPath(video).stem) if name in self.keys), None)

    def features(self, video: str) -> np.ndarray:
        """(rows, channels), read when it is looked at. Raises ValueError for a video without features."""
        if video not in self:
            raise ValueError(f"{self.path} has no features of {video}: make them, or take the video out of the list.")
        return self._array(self.key_of(video))

    def times(self, video: str) -> np.ndarray | None:
        name = f"{self.key_of(video)}.times"
        return np.array(self._array(name)) if name in self.places else None

    def kinds(self, video: str) -> dict[str, np.ndarray]:
        """Class scores by kind of label: (rows, views * classes) each."""
        begin = f"{self.key_of(video)}.scores."
        return {name.removeprefix(begin): self._array(name) for name in self.places if name.startswith(begin)}

    @property
    def views(self) -> int | None:
        """Whose class scores are side by side; None: not known."""
        return self.about.get("scores", {}).get("views")

    @property
    def several(self) -> bool:
        """Whether its class scores are of classes of which a video has several: their sigmoids are the probabilities."""
        return self.about.get("scores", {}).get("several", False)

    def classes(self, kind: str) -> list[str] | None:
        """The names of the classes that its scores are of, if it is known."""
        return self.about.get("scores", {}).get("classes", {}).get(kind)

    def _array(self, name: str) -> np.ndarray:
        place = self.places[name]
        try:
            array = open_array(place)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{place.file} cannot be read as an array ({error}): make its features again.") from error
        if array.ndim != 2 or not len(array) or array.dtype.kind != "f":
            raise ValueError(
                f"{place.file}: {name} is {array.dtype} {array.shape}: expected numbers with a point, (rows, "
                "channels), and a row at least."
            )
        return array


def read_clips(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of a folder of i2v.features: (n,) the numbers of the videos that could be read, in the order of the data set, and
    (n, rows, D) their features. All must have as many rows, as they have without windows. Raises ValueError."""
    keys = [key if rows != UNREADABLE else None for key, _, _, rows in read_table(path / TABLE)[1:]]
    ids = np.array([i for i, key in enumerate(keys) if key is not None], dtype=np.int64)
    if not len(ids):
        raise ValueError(f"{path} has features of no video, as none could be read: see {path / TABLE}.")
    folder = FeatureFolder(path)
    missing = [keys[i] for i in ids if keys[i] not in folder.places]
    if missing:
        raise ValueError(f"{path} has no features of {missing[0]}, which {TABLE} names: make them again.")
    return ids, np.stack([np.array(folder.features(keys[i])) for i in ids])  # each a copy: no file stays open


def format_of(path: Path) -> str:
    """In which of the two formats of i2v.features a folder's are, or would be if there were any."""
    return read_about(path / ABOUT).get("format", "npy")


def open_array(place: Place) -> np.ndarray:
    """A .npy, alone or in a tar, mapped into memory."""
    with open(place.file, "rb") as file:
        file.seek(place.offset)
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        begin = file.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(place.file, dtype, "r", begin, shape, "F" if fortran else "C")


def members(shard: Path) -> dict[str, Place]:
    """The arrays of a tar."""
    try:
        with tarfile.open(shard) as archive:
            return {
                member.name.removesuffix(".npy"): Place(shard, member.offset_data)
                for member in archive
                if member.isfile() and member.name.endswith(".npy")
            }
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{shard} cannot be read as a tar ({error}): make its features again.") from error


def read_table(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding=FILE_NAMES[0], errors=FILE_NAMES[1]) as file:
        return list(csv.reader(file))


def read_about(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): make the features again.") from error
