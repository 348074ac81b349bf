"""Random numbers as a pure function of (seed, stream, epoch, sample): the same on every machine, in any order."""

from __future__ import annotations

import threading

import numpy as np

# Independent streams: adding a draw to one does not change the others.
ORDER, FRAMES, CROP, FLIP, SHUFFLE, AUGMENT, COLOR, ERASE, MOTION = range(9)
CELLS = 15  # the last there can be, of i2v.localise: which segments of a window count
# Of the 64 bits of a key, a stream takes 4, an epoch 20 and a sample 40.


def uniforms(seed: int, stream: int, epoch: int, sample: int, numbers: int) -> np.ndarray:
    """(numbers,) float64 in [0, 1), the same on every machine and with every version of numpy."""
    return (_raw(seed, stream, epoch, sample, numbers) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, n: int, part: int = 0) -> np.ndarray:
    """(n,) the order of n things in one epoch; part: which permutation of several."""
    # numpy may change what its shuffles do with their random numbers; the raw numbers are fixed.
    return np.argsort(_raw(seed, ORDER, epoch, part, n), kind="stable")


def _raw(seed: int, stream: int, epoch: int, sample: int, numbers: int) -> np.ndarray:
    """(numbers,) uint64: the first ones of the generator with this key."""
    key = np.array([seed, stream << 60 | epoch << 40 | sample], dtype=np.uint64)
    # To make a generator takes longer than to draw a clip's numbers, so each thread has one and sets its key.
    if not hasattr(_thread, "generator"):
        _thread.generator = np.random.Philox(key=0)
    state = {"counter": _ZEROS, "key": key}
    _thread.generator.state = {
        "bit_generator": "Philox",
        "state": state,
        "buffer": _ZEROS,
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    return _thread.generator.random_raw(numbers)


_thread = threading.local()
_ZEROS = np.zeros(4, dtype=np.uint64)
