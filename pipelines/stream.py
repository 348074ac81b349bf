"""The stream of a training run: one data set, several as one, or several by shares; balanced or weighted."""

from __future__ import annotations

import csv
import math
import os
import zlib

import numpy as np

from i2v.pipelines.options import OrderOptions
from i2v.pipelines.order import Mixture, Order, balancing_weights
from i2v.pipelines.shards import ShardSet
from i2v.pipelines.source import ClipSource


def open_sources(manifest, split: str, cache=None, cache_size=None) -> tuple[list[ClipSource], list[float] | None]:
    """Sources and shares, as build_loader is given them; no shares: videos of all data sets are alike. Raises ValueError."""
    if hasattr(manifest, "checksums"):
        return [manifest], None
    if isinstance(manifest, (str, os.PathLike)):
        return [ShardSet(manifest, cache, cache_size)], None
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
    shares = [float(entry["weight"]) for entry in entries] if all(weighted) else None
    return [ShardSet(entry["path"], cache, cache_size) for entry in entries], shares


def training_order(
    shards: ClipSource, sets: list[ClipSource], shares: list[float] | None, options: OrderOptions, seed: int, weights
) -> Order | Mixture:
    """Which video comes when. weights: see sample_weights of build_loader. Raises ValueError."""
    if weights is not None and options.balance:
        raise ValueError("sample_weights and balance both say how often a video comes: give one of them.")
    if weights is not None:
        weights = read_weights(weights, shards)
    elif options.balance and shards.label_sets is not None:
        raise ValueError(f"Videos of {shards.root} have several classes, so no order can balance them: use sample_weights.")
    else:
        weights = balancing_weights(np.asarray(shards.clips["label"]), options.balance)
    of_shard = np.array(shards.clips["shard"], dtype=np.int64)
    if shares is None:
        return Order(of_shard, options, seed, weights)
    firsts = np.cumsum([0, *map(len, sets)]).tolist()
    orders = []
    for number, (each, a, b) in enumerate(zip(sets, firsts, firsts[1:])):
        own = None if weights is None else weights[a:b]
        if own is not None and own.sum() == 0:
            raise ValueError(f"All weights of the videos in {each.root} are 0: leave the data set out of the mixture.")
        orders.append(Order(of_shard[a:b], options, seed, own, number))
    return Mixture(orders, firsts, shares, seed)


def read_weights(given, shards: ClipSource) -> np.ndarray:
    """(n,) from an array, a .npy or a CSV of key,weight. Raises ValueError."""
    is_file = isinstance(given, (str, os.PathLike))
    source = str(given) if is_file else "sample_weights"
    if is_file and not source.lower().endswith(".npy"):
        weights = np.array(_weights_by_key(source, shards))
    else:
        try:
            weights = np.asarray(np.load(source) if is_file else given, dtype=np.float64)
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise ValueError(f"{source} cannot be read as weights ({error}): give a .npy, or a CSV of key,weight.") from error
    if weights.shape != (len(shards),) or not np.isfinite(weights).all() or weights.min() < 0 or weights.max() <= 0:
        raise ValueError(f"{source} must hold {len(shards)} weights, one per video, at least 0 and not all 0.")
    return weights


def _weights_by_key(path: str, shards: ClipSource) -> list[float]:
    """One weight per video, from a CSV in UTF-8, with or without a byte order mark, that has each key once."""
    rows = _rows(path)
    header = ",".join(rows[0][1]) if rows else ""
    if header != "key,weight":
        raise ValueError(f"{path} begins with {header!r:.80}: its first row must be key,weight, separated by a comma.")
    wanted, found = {shards.key(clip) for clip in range(len(shards))}, {}
    for line, cells in rows[1:]:
        where, key = f"row {line} of {path}", cells[0]
        if len(cells) != 2:
            raise ValueError(f"{where} has {len(cells)} columns: it must be key,weight.")
        if key in found:
            raise ValueError(f"{where} gives {key!r} a second weight: keep one row per key.")
        if key not in wanted:
            raise ValueError(
                f"{where} has the key {key!r}, which no video has: remove the row, or write keys as clips.csv "
                f"does (in a list of data sets: 0/KEY, 1/KEY, ...), such as {shards.key(0)}."
            )
        found[key] = _weight(cells[1], where)
    lacking = wanted - found.keys()
    if lacking:
        raise ValueError(
            f"{path} lacks {len(lacking)} of {len(wanted)} keys, such as {min(lacking)!r}: it must have a row "
            "for every video; weight 0 leaves one out."
        )
    return [found[shards.key(clip)] for clip in range(len(shards))]


def _rows(path: str) -> list[tuple[int, list[str]]]:
    """Line number and cells of every row that is not blank."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (OSError, ValueError, csv.Error) as error:  # a UnicodeDecodeError is a ValueError
        raise ValueError(
            f"{path} cannot be read as weights ({error}): give a .npy, or a CSV of key,weight in UTF-8."
        ) from error
    return [(line, cells) for line, cells in rows if any(cells)]


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"{where} has the weight {text!r}: it must be a number, at least 0.")
    return weight


def fingerprint(shards: ClipSource, order: Order | Mixture | None) -> dict:
    """Which videos these are and how often each comes, wherever they lie: what a run must not change midway."""
    parts = order.orders if isinstance(order, Mixture) else [order] if order else []
    weights = [None if part.weights is None else zlib.crc32(np.ascontiguousarray(part.weights)) for part in parts]
    shares = order.counts.tolist() if isinstance(order, Mixture) else None
    return {"videos": shards.checksums(), "shares": shares, "weights": weights}
