"""Which video comes when: endless streams, each a pure function of the seed and the absolute position in it.

So the state of a run's data is one integer, whatever the order: shuffled as a whole or shard after shard, balanced, or a
mixture of data sets. Ranks, batch sizes and accumulation only decide who takes which positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

import numpy as np

from i2v.pipelines.options import OrderOptions
from i2v.pipelines.philox import ORDER, permutation, uniforms

VIDEOS, SHARDS, POINTS, DRAWN, BLOCKS = (kind << 20 for kind in range(5))  # what of a data set a random order is of
BLOCK = 10_000  # positions of a mixture in which every data set has exactly its share


class Place(NamedTuple):
    """What stands at a position of a stream."""

    clip: int  # which video
    epoch: int  # how often this stream has gone round; with `draw` the key of the clip's random numbers
    draw: int  # the video; where one can come twice in an epoch, its place in it


class Order:
    """The stream of one data set.

    shards: (n,) the shard of each video, ascending, numbered through all data sets. weights: (n,) how often each is
    wanted, relatively; None: equally. Unweighted, every n positions from a multiple of n hold every video once: nothing
    is dropped, padded or repeated. Weighted, every n positions hold a video floor or ceil of its expected number of times
    (systematic sampling). number: of the data set in a mixture.
    """

    def __init__(
        self, shards: np.ndarray, options: OrderOptions, seed: int, weights: np.ndarray | None = None, number: int = 0
    ):
        self.n, self.options, self.seed, self.number = len(shards), options, seed, number
        self.shards, self.weights = shards, weights
        # Two rounds: batches and ranks straddle the border.
        self._round = _remember_two(self._make_round)

    def __getitem__(self, position: int) -> Place:
        position, copy = divmod(position, self.options.repeats)
        epoch, index = divmod(position, self.n)
        clip = int(self._round(epoch)[index])
        return Place(clip, epoch * self.options.repeats + copy, clip if self.weights is None else index)

    def shards_ahead(self, position: int, count: int) -> list[int]:
        """The shards that the next `count` positions need, in the order of need."""
        first, last = position // self.options.repeats, (position + count - 1) // self.options.repeats
        shards: dict[int, None] = {}
        while first <= last:
            epoch, index = divmod(first, self.n)
            clips = self._round(epoch)[index : index + last - first + 1]
            shards |= dict.fromkeys(self.shards[clips].tolist())
            first += len(clips)
        return list(shards)

    def _make_round(self, epoch: int) -> np.ndarray:
        """(n,) the videos of one round, in order."""
        order = permutation(self.seed, epoch, self.n, VIDEOS | self.number)
        if self.weights is not None:
            order = self._sampled(order, epoch)
        if self.options.shuffle == "global":
            return order
        # The windows one after the other, each in the order that the videos have among all.
        shards = self.shards - self.shards[0]
        turn = np.empty(int(shards[-1]) + 1, dtype=np.int64)
        turn[permutation(self.seed, epoch, len(turn), SHARDS | self.number)] = np.arange(len(turn))
        return order[np.argsort(turn[shards[order]] // self.options.window_shards, kind="stable")]

    def _sampled(self, order: np.ndarray, epoch: int) -> np.ndarray:
        """n draws by weight, in random order."""
        wanted = np.cumsum(self.weights[order])
        points = (uniforms(self.seed, ORDER, epoch, POINTS | self.number, 1) + np.arange(self.n)) / self.n * wanted[-1]
        drawn = order[np.searchsorted(wanted, points, side="right").clip(0, self.n - 1)]
        return drawn[permutation(self.seed, epoch, self.n, DRAWN | self.number)]


class Mixture:
    """The streams of several data sets in one, by shares.

    orders: of the data sets; firsts: the number of each one's first video among all; shares: parts of the stream, which are
    honoured exactly in every 10,000 positions. Raises ValueError for a share that is too small for that.
    """

    def __init__(self, orders: list[Order], firsts: list[int], shares: list[float], seed: int):
        self.orders, self.firsts, self.seed = orders, firsts, seed
        parts = np.array(shares, dtype=np.float64) / sum(shares) * BLOCK
        counts = np.floor(parts).astype(np.int64)
        counts[np.argsort(counts - parts, kind="stable")[: BLOCK - counts.sum()]] += 1  # the largest remainders
        if counts.min() < 1:
            raise ValueError(f"Share {shares[int(counts.argmin())]} of a data set is less than 1 in {BLOCK}: leave it out.")
        self.counts = counts
        self._block = _remember_two(self._make_block)

    def __getitem__(self, position: int) -> Place:
        block, index = divmod(position, BLOCK)
        which, nth = self._block(block)
        k = int(which[index])
        place = self.orders[k][block * int(self.counts[k]) + int(nth[index])]
        first = self.firsts[k]
        return Place(first + place.clip, place.epoch, first + place.draw)

    def shards_ahead(self, position: int, count: int) -> list[int]:
        """The shards that the next `count` positions need, each data set's in its order of need."""
        block, index = divmod(position, BLOCK)
        before = np.bincount(self._block(block)[0][:index], minlength=len(self.orders)) + block * self.counts
        ahead = self.counts * (-(-count // BLOCK))
        if count < BLOCK:
            which = np.concatenate([self._block(block)[0], self._block(block + 1)[0]])[index : index + count]
            ahead = np.bincount(which, minlength=len(self.orders))
        lists = [order.shards_ahead(int(p), int(c)) for order, p, c in zip(self.orders, before, ahead)]
        return [shard for lot in itertools.zip_longest(*lists) for shard in lot if shard is not None]

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The data set of each position of a block, and how many of that data set came in it before."""
        which = np.repeat(np.arange(len(self.counts)), self.counts)
        which = which[permutation(self.seed, block, BLOCK, BLOCKS)]
        nth = np.empty(BLOCK, dtype=np.int64)
        for k, count in enumerate(self.counts):
            nth[which == k] = np.arange(count)
        return which, nth


def balancing_weights(labels: np.ndarray, balance: float) -> np.ndarray | None:
    """(n,) weights with which a class comes in proportion to its size^(1 - balance); None if that is as it is."""
    if balance == 0 or len(labels) == 0:
        return None
    _, which, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return sizes[which] ** -float(balance)


def _remember_two(function: Callable) -> Callable:
    """A function that remembers its last two results. Several threads that ask at once wait for one answer."""
    cached, lock = lru_cache(maxsize=2)(function), Lock()

    def remembering(number: int):
        with lock:
            return cached(number)

    return remembering
