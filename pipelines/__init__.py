"""Sharded videos in, torch batches out, with NVIDIA DALI in between."""

import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING

from i2v.pipelines.shards import ShardError

if TYPE_CHECKING:
    from i2v.pipelines.loader import Batch, build_loader

__all__ = ["Batch", "ShardError", "build_loader"]


def __getattr__(name: str):
    # The loader brings torch, which takes seconds to import and which make_shards does not need.
    if name in ("Batch", "build_loader"):
        return getattr(importlib.import_module("i2v.pipelines.loader"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "pipelines":  # imported from a checkout by its short name: the same modules, not a second copy of each
    package = importlib.import_module("i2v.pipelines")
    modules = {found.name: importlib.import_module(f"i2v.pipelines.{found.name}") for found in pkgutil.iter_modules(__path__)}
    sys.modules.update({"pipelines": package, **{f"pipelines.{name}": module for name, module in modules.items()}})
