"""Random numbers as a pure function of (seed, stream, epoch, sample): the same on every machine, in any order."""

from __future__ import annotations

import numpy as np

# Independent streams: adding a draw to one does not change the others.
ORDER, FRAMES, CROP, FLIP, SHUFFLE, AUGMENT, COLOR, ERASE = range(8)
LARGEST_EPOCH = 2**20  # of the 64 bits of a key, a stream takes 4, an epoch 20 and a sample 40


def uniforms(seed: int, stream: int, epoch: int, sample: int, numbers: int) -> np.ndarray:
    """(numbers,) float64 in [0, 1), the same on every machine and with every version of numpy."""
    raw = philox(seed, stream, epoch, sample).random_raw(numbers)
    return (raw >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, n: int, part: int = 0) -> np.ndarray:
    """(n,) the order of n things in one epoch; part: which permutation of several."""
    # numpy may change what its shuffles do with their random numbers; the raw numbers are fixed.
    return np.argsort(philox(seed, ORDER, epoch, part).random_raw(n), kind="stable")


def philox(seed: int, stream: int, epoch: int, sample: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, stream << 60 | epoch << 40 | sample], dtype=np.uint64))
