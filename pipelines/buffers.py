"""Memory for large tensors that is used again: fresh pages for each batch would cost as much as normalising it."""

from __future__ import annotations

import math
import weakref

import numpy as np
import torch


class Buffers:
    """Lends tensors on the CPU; what was lent comes back by itself when nobody holds it, or a view of it, any more."""

    def __init__(self):
        self._free: list[np.ndarray] = []

    def lend(self, shape) -> torch.Tensor:
        """A float32 tensor of this shape, with whatever was in it. All of one Buffers should have about one size."""
        size = math.prod(shape)
        memory = self._free.pop() if self._free else None
        if memory is None or memory.size < size:
            memory = np.empty(size, np.float32)
        lent = memory[:size]  # torch holds this array as long as it holds the memory
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return torch.from_numpy(lent).view(shape)
