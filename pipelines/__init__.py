"""Sharded videos in, torch batches out, with NVIDIA DALI in between."""

from pipelines.shards import ShardError

__all__ = ["Batch", "ShardError", "build_loader"]


def __getattr__(name: str):
    # The loader brings torch, which takes seconds to import and which make_shards does not need.
    if name in ("Batch", "build_loader"):
        from pipelines import loader

        return getattr(loader, name)
    raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
