"""A store that can be told to fail, and data sets of random bytes to put into it."""

from __future__ import annotations

import json
import tarfile
import zlib
from pathlib import Path

import fsspec
import numpy as np
from fsspec.spec import AbstractFileSystem

from i2v.pipelines.index import CLIP, FORMAT, FRAGMENT, VERSION, clip_key, manifest_crc32


class Store(AbstractFileSystem):
    """store://folder/name. `files` are its contents; `answer(name, data)` may change, refuse or delay what a request gets."""

    protocol = "store"
    cachable = False
    files: dict[str, bytes] = {}
    requests: list[str] = []  # names, one for every request of content
    answer = staticmethod(lambda name, data: data)

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        return [self.info(name) for name in self.files if name.startswith(f"{path}/")]

    def info(self, path, **_):
        path = self._strip_protocol(path)
        if path not in self.files:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.files[path]), "type": "file"}

    def cat_file(self, path, start=None, end=None, **_):
        path = self._strip_protocol(path)
        if path not in self.files:
            raise FileNotFoundError(path)
        name = path.rpartition("/")[2]
        self.requests.append(name)
        return type(self).answer(name, self.files[path][start:end])

    @classmethod
    def reset(cls):
        fsspec.register_implementation("store", cls, clobber=True)
        cls.files, cls.requests, cls.answer = {}, [], staticmethod(lambda name, data: data)

    @classmethod
    def put(cls, folder: Path, name: str) -> str:
        """Copy a folder into the store; its URL."""
        cls.files |= {f"{name}/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()}
        return f"store://{name}"


def random_data_set(folder: Path, shards: int = 4, clips: int = 3, frames: int = 20, seed: int = 0) -> Path:
    """Shards whose clips are random bytes under a right index: they can be read, not decoded. A shard has about 20 kB."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    index, fragments, listed = np.zeros(shards * clips, CLIP), np.zeros(shards * clips * frames, FRAGMENT), []
    fragments["size"] = rng.integers(200, 400, len(fragments))
    fragments["time"] = np.tile(np.arange(frames) / 25, len(index))
    for shard in range(shards):
        tar = b""
        for clip in range(shard * clips, (shard + 1) * clips):
            first = clip * frames
            parts = [rng.bytes(600)] + [rng.bytes(int(size)) for size in fragments["size"][first : first + frames]]
            fragments["crc"][first : first + frames] = list(map(zlib.crc32, parts[1:]))
            index[clip] = (shard, len(tar) + 512, 600, zlib.crc32(parts[0]), first, frames, 64, 48, 25, clip % 5)
            info = tarfile.TarInfo(f"{clip_key(shard, clip % clips)}.mp4")
            info.size = sum(map(len, parts))
            tar += info.tobuf(tarfile.USTAR_FORMAT) + b"".join(parts)
            tar += bytes(-len(tar) % 512)
        name = f"shard-{shard:06d}.tar"
        (folder / name).write_bytes(tar)
        listed.append({"name": name, "bytes": len(tar), "clips": clips, "crc32": zlib.crc32(tar)})
    np.save(folder / "clips.npy", index)
    np.save(folder / "fragments.npy", fragments)
    facts = {"format": FORMAT, "version": VERSION, "codec": "vp9", "gop": 8, "clips": len(index), "frames": len(fragments)}
    write_manifest(folder, {**facts, "classes": list("abcde"), "shards": listed})
    return folder


def write_manifest(folder: Path, manifest: dict) -> None:
    """With the right checksums of itself and of the index."""
    crcs = {kind: zlib.crc32((folder / f"{kind}.npy").read_bytes()) for kind in ("clips", "fragments")}
    manifest = {**manifest, "index_crc32": crcs}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "crc32": manifest_crc32(manifest)}))
