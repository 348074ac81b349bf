"""The stream of a training run: one data set, several as one, or several by shares; balanced or weighted."""

from __future__ import annotations

import csv
import math
import os
import zlib
from pathlib import Path

import numpy as np

from pipelines.joined import JoinedShards
from pipelines.options import OrderOptions
from pipelines.order import Mixture, Order, balancing_weights
from pipelines.shards import ShardSet


def parse_manifests(manifest, split: str) -> tuple[list, list[float] | None]:
    """Paths and shares; no shares: videos of all data sets are alike. Raises ValueError."""
    if isinstance(manifest, (str, os.PathLike)):
        return [manifest], None
    if not isinstance(manifest, (list, tuple)) or not manifest:
        raise ValueError(f"manifest is {manifest!r}: it must be a path, or a list of paths or of {{path, weight}}.")
    if split != "train" and len(manifest) > 1:
        raise ValueError(f"{len(manifest)} data sets are given for split {split!r}: only training can mix them.")
    entries = [entry if isinstance(entry, dict) else {"path": entry} for entry in manifest]
    for entry in entries:
        weight = entry.get("weight", 1)
        fine = isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 < weight < math.inf
        if not fine or "path" not in entry or entry.keys() - {"path", "weight"}:
            raise ValueError(f"{entry!r} is not a data set of a mixture: write path and weight, a number more than 0.")
    weighted = ["weight" in entry for entry in entries]
    if any(weighted) and not all(weighted):
        raise ValueError("Some data sets of the mixture have a weight and some have none: give all of them one, or none.")
    return [entry["path"] for entry in entries], [float(entry["weight"]) for entry in entries] if all(weighted) else None


def training_order(
    shards: ShardSet | JoinedShards, sets: list[ShardSet], shares: list[float] | None, options: OrderOptions, seed: int, weights
) -> Order | Mixture:
    """Which video comes when. weights: see sample_weights of build_loader. Raises ValueError."""
    if weights is not None and options.balance:
        raise ValueError("sample_weights and balance both say how often a video comes: give one of them.")
    if weights is not None:
        weights = read_weights(weights, shards)
    else:
        weights = balancing_weights(np.asarray(shards.clips["label"]), options.balance)
    first_shards = np.cumsum([0, *(len(each.manifest["shards"]) for each in sets)])
    of_shard = [np.array(each.clips["shard"], dtype=np.int64) + first for each, first in zip(sets, first_shards)]
    if shares is None:
        return Order(np.concatenate(of_shard), options, seed, weights)
    firsts = np.cumsum([0, *map(len, sets)]).tolist()
    orders = []
    for number, (each, a, b) in enumerate(zip(sets, firsts, firsts[1:])):
        own = None if weights is None else weights[a:b]
        if own is not None and own.sum() == 0:
            raise ValueError(f"All weights of the videos in {each.root} are 0: leave the data set out of the mixture.")
        orders.append(Order(of_shard[number], options, seed, own, number))
    return Mixture(orders, firsts, shares, seed)


def read_weights(given, shards: ShardSet | JoinedShards) -> np.ndarray:
    """(n,) from an array, a .npy or a CSV of key,weight. Raises ValueError."""
    source = "sample_weights"
    try:
        if isinstance(given, (str, os.PathLike)):
            source, path = str(given), Path(given)
            if path.suffix == ".npy":
                given = np.load(path)
            else:
                with open(path, newline="") as file:
                    found = {row["key"]: float(row["weight"]) for row in csv.DictReader(file)}
                given = [found[shards.key(clip)] for clip in range(len(shards))]
        weights = np.asarray(given, dtype=np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{source} cannot be read as weights ({error}): give a .npy, or a CSV of key,weight.") from error
    except KeyError as error:
        raise ValueError(f"{source} has no {error}: it must be a CSV of key,weight with a row for every video.") from error
    if weights.shape != (len(shards),) or not np.isfinite(weights).all() or weights.min() < 0 or weights.max() <= 0:
        raise ValueError(f"{source} must hold {len(shards)} weights, one per video, at least 0 and not all 0.")
    return weights


def fingerprint(sets: list[ShardSet], order: Order | Mixture | None) -> dict:
    """Which videos these are and how often each comes, wherever they lie: what a run must not change midway."""
    videos = []
    for each in sets:
        pixels = repr([shard.get("crc32") for shard in each.manifest["shards"]]).encode()
        videos.append(zlib.crc32(np.ascontiguousarray(each.clips["label"]), zlib.crc32(pixels)))
    parts = order.orders if isinstance(order, Mixture) else [order] if order else []
    weights = [None if part.weights is None else zlib.crc32(np.ascontiguousarray(part.weights)) for part in parts]
    return {"videos": videos, "shares": order.counts.tolist() if isinstance(order, Mixture) else None, "weights": weights}
