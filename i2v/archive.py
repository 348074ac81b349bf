"""Tensors by name from a checkpoint file of any kind. No code from the file is run.

.safetensors, torch.save (zip and the older pickle) and TorchScript archives, as OpenAI's CLIP files are; told apart by
content. Of an archive only the pickled modules and the raw numbers are read, with an unpickler that knows how to rebuild
a tensor and nothing else; the compiled code beside them is left alone.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file

FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
INDICES = tuple(f"{name}.index.json" for name in FILES)  # beside a checkpoint in several files
STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_file(path: str | Path):
    """What the file holds: name -> tensor, or a dict that wraps that. Raises FileNotFoundError or ValueError, one sentence."""
    path = Path(path)
    if path.is_dir():  # as the hub lays models out
        path = next((path / name for name in (*FILES, *INDICES) if (path / name).is_file()), path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}: check the path")
    if path.stat().st_size == 0:
        raise ValueError(f"checkpoint {path} is empty: download or copy it again")
    if path.name.endswith(".index.json"):
        return _read_several(path)
    try:
        return _read(path)
    except PermissionError as error:
        raise ValueError(f"checkpoint {path} cannot be read ({error.strerror}): check its permissions") from error
    except Exception as error:  # every reader raises its own kinds, and they all mean that this is no usable checkpoint
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            raise ValueError(
                f"checkpoint {path} is damaged or holds Python objects besides tensors, which could run "
                "code: save its state dict alone with torch.save and give that file"
            ) from error
        raise ValueError(
            f"{path} is damaged or not a checkpoint: give a .safetensors file, a file of torch.save or a "
            "TorchScript archive, or download it again"
        ) from error


def _read_several(index: Path) -> dict[str, torch.Tensor]:
    """The tensors of all files that an index names."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [index.parent / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged or no index of checkpoint files: download it again") from error
    return {name: tensor for path in paths for name, tensor in read_file(path).items()}


def _read(path: Path):
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # safetensors: eight bytes of length, then JSON
        return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            folders = {name.removesuffix("constants.pkl") for name in archive.namelist() if name.endswith("/constants.pkl")}
            if folders:
                return _of_module(_ArchiveUnpickler(archive, folders.pop()).load())
    return torch.load(path, map_location="cpu", weights_only=True)


class _Module:
    """A pickled module: its attributes, whatever its class was."""


def _of_module(module: _Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a module and of those in it, by their dotted names."""
    if not isinstance(module, _Module):
        raise pickle.UnpicklingError("no module")
    tensors = {}
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, _Module):
            tensors |= _of_module(value, f"{prefix}{name}.")
    return tensors


class _ArchiveUnpickler(pickle.Unpickler):
    """Reads FOLDER/data.pkl of a TorchScript archive; its numbers are in FOLDER/data/0, 1, ..."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        super().__init__(archive.open(f"{folder}data.pkl"))
        self.archive, self.folder = archive, folder
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("big-endian numbers")

    def find_class(self, module: str, name: str):
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        known = {("torch._utils", "_rebuild_tensor_v2"): _rebuild, ("collections", "OrderedDict"): OrderedDict}
        known |= {("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"Unsupported global {module}.{name}")
        return known[module, name]

    def persistent_load(self, key: tuple) -> torch.Tensor:
        """The flat tensor of a storage."""
        _, dtype, name, _, count = key
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a storage of unknown kind")
        data = bytearray(self.archive.read(f"{self.folder}data/{name}"))
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if len(flat) != count:
            raise pickle.UnpicklingError("a storage of another size")
        return flat


def _rebuild(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_) -> torch.Tensor:
    return torch.as_strided(storage, size, stride, offset)
