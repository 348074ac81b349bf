"""i2v.train, that sends itself a signal at the beginning of a step: python killed_train.py SIGNAL STEP ARGUMENTS..."""

import os
import signal
import sys

import torch

import i2v.train as program

torch.set_num_threads(1)
number, step = getattr(signal, sys.argv[1]), int(sys.argv[2])
calls = 0
learning_rate = program.learning_rate


def learning_rate_or_death(*args, **kwargs):
    global calls
    if calls == step:
        os.kill(os.getpid(), number)
    calls += 1
    return learning_rate(*args, **kwargs)


program.learning_rate = learning_rate_or_death
sys.argv[1:] = sys.argv[3:]
program.main()
