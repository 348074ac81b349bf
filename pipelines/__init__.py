"""Sharded videos in, torch batches out, with NVIDIA DALI in between."""

from pipelines.loader import Batch, build_loader
from pipelines.shards import ShardError

__all__ = ["Batch", "ShardError", "build_loader"]
