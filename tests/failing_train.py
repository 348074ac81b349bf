"""i2v.train with something that goes wrong: python failing_train.py WHAT ... --config ...

die RANK STEP FILE    rank RANK kills itself at the beginning of step STEP, once: FILE says that it has
hang RANK STEP FILE   rank RANK hangs while it reads the clips of step STEP, until it is told to stop: FILE says that it does
signal start|evaluate every rank is sent SIGTERM when it builds its model, or SIGUSR1 in the middle of its first evaluation
fail RANK             rank RANK cannot read its clips in an evaluation
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

import i2v.feed as feed
import i2v.train as program
import i2v.trainee as trainee
from i2v.pipelines import ShardError

torch.set_num_threads(1)
at = sys.argv.index("--config")
what, *how = sys.argv[1:at]
sys.argv[1:at] = []
rank = int(os.environ["RANK"])
learning_rate, build_model, build_loader = program.learning_rate, trainee.build_model, feed.build_loader
StopSignal, stops = program.StopSignal, []


def dying(*args):
    if rank == int(how[0]) and (step := round(args[0] * 3)) == int(how[1]) and not Path(how[2]).exists():
        Path(how[2]).write_text(str(step))
        os.kill(os.getpid(), signal.SIGKILL)
    return learning_rate(*args)


def stopped(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    return build_model(*args)


def each(change):
    """build_loader whose batches go through change(split, number)."""

    def build(manifest, split, *args, **kwargs):
        loader = build_loader(manifest, split, *args, **kwargs)
        kind = type(loader)

        class Changed(kind):
            def __iter__(self):
                for number, batch in enumerate(kind.__iter__(self)):
                    change(split, number)
                    yield batch

        loader.__class__ = Changed
        return loader

    return build


def hanging(split, number):
    if split == "train" and rank == int(how[0]) and number == int(how[1]):
        Path(how[2]).touch()
        while not stops[0].wanted:
            time.sleep(0.02)


def noted(*args):
    stops.append(StopSignal(*args))
    return stops[-1]


def signalled(split, number):
    if split == "val" and number == 1:
        os.kill(os.getpid(), signal.SIGUSR1)


def failing(split, number):
    if split == "val" and number == 1 and rank == int(how[0]):
        raise ShardError("the store does not answer.")


if what == "die":
    program.learning_rate = dying
elif what == "hang":
    feed.build_loader, program.StopSignal = each(hanging), noted
elif what == "signal" and how == ["start"]:
    trainee.build_model = stopped
elif what == "signal":
    feed.build_loader = each(signalled)
elif what == "fail":
    feed.build_loader = each(failing)
program.main()
