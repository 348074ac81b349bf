"""What the authors' code computed: tensors and figures, some here (tests/golden), the rest in ../shared/reference."""

import gzip
import json
from pathlib import Path

import pytest
from safetensors import safe_open

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared" / "reference"


def find(name: str) -> Path:
    """The file of this name; the test is skipped where it is not."""
    path = next((folder / name for folder in (HERE / "golden", SHARED / "golden", SHARED) if (folder / name).exists()), None)
    return path or pytest.skip(f"{name}, the authors' figures, is only in ../shared/reference")


def tensors(name: str) -> tuple[dict, dict]:
    """(tensors, config) of a golden vector."""
    with safe_open(find(name), "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])


def figures(name: str):
    """What NAME.json.gz holds: sampling, learning rates, parameter groups."""
    return json.loads(gzip.decompress(find(f"{name}.json.gz").read_bytes()))
