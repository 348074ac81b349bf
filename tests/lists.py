"""Folders, lists and tars for the tests of what is read from them."""

import io
import json
import tarfile
from pathlib import Path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


def touch(folder, *names):
    for name in names:
        write(folder / name, "x")
    return folder


def found(videos, root):
    return [str(Path(video.path).relative_to(root)) for video in videos]


def listed(videos):
    return [(video.source, video.label, video.class_name) for video in videos]


def write_tar(path, members, format=tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
