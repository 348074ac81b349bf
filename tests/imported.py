"""What programs import, and what libraries import when they are first used: forks of a process that has it begin at once."""

import matplotlib.pyplot  # noqa: F401
import nvidia.dali.fn  # noqa: F401
import torch
import torch._dynamo

import i2v.features
import i2v.train  # noqa: F401

torch.set_num_threads(1)
