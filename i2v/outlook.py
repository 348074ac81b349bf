"""What can be said of a run before its first step: too few steps or classes to learn anything, clips that repeat frames,
pictures that are larger than the videos."""

from __future__ import annotations

import math

import numpy as np

from i2v.config import Config

FEW_STEPS, ENOUGH_STEPS = 100, 500  # an adapter moves little in the first, and is of use after the second on small data
LARGE_SHARE = 0.1  # of clips
LOOKED_AT = 1000  # clips, from the start of the stream


def length_in_samples(config: Config, clips: int, step: int = 0, samples: int = 0) -> int:
    """Clips that the whole run sees; clips: in an epoch. step, samples: where it is, as steps before may have been of another
    size."""
    train = config.train
    return samples + (train.steps - step) * train.batch_size if train.steps else math.ceil(train.epochs * clips)


def few_steps(config: Config, clips: int) -> str | None:
    """A line if the schedule is too short to learn from; clips: in an epoch."""
    train = config.train
    steps = math.ceil(length_in_samples(config, clips) / train.batch_size)
    if steps >= FEW_STEPS:
        return None
    return (
        f"WARNING: this run is {steps} optimiser step{'s' * (steps > 1)} in all ({clips} clips x {train.epochs:g} epochs, "
        f"{train.batch_size} a step), too few to learn much: set train.steps={ENOUGH_STEPS}, raise train.epochs or lower "
        "train.batch_size."
    )


def short_videos(plan) -> str | None:
    """A line if in a large share of the first epoch's clips a frame comes twice, or the video a second time.

    plan: of the training clips.
    """
    options = plan.options
    if options.fps is not None or options.shuffle_frames or plan.stills:
        return None  # at a high rate frames are meant to repeat, as in a clip of a still; shuffled: a control
    specs = [plan[position] for position in range(min(len(plan), LOOKED_AT))]
    different = np.array([len(np.unique(spec.frames)) for spec in specs])
    lengths = np.array([plan.frames[spec.id] for spec in specs])
    repeats = np.array([(np.diff(spec.frames) <= 0).any() for spec in specs])
    if options.sampling != "stride":  # where a video is long enough, two parts may share a frame at their border
        repeats &= lengths < options.num_frames
    if repeats.mean() < LARGE_SHARE:
        return None
    stills, median = float((different == 1).mean()), int(np.median(lengths))
    stride = (median - 1) // max(options.num_frames - 1, 1)
    still = f", {100 * stills:.0f} % are one frame" if stills else ""
    if options.sampling == "stride" and stride:
        remedy = f"set clips.stride={stride} or clips.sampling=segments, which spreads a clip over its whole video"
    else:
        remedy = "lower model.num_frames, or shard videos that are longer"
    return (
        f"WARNING: {100 * repeats.mean():.0f} % of clips repeat frames or begin again{still}: a clip is {options.num_frames} "
        f"frames{f' at stride {options.stride}' if options.sampling == 'stride' else ''}, half of the videos have at most "
        f"{median}: {remedy}."
    )


def one_class(classes: list[str], several: bool) -> str | None:
    """A line if every answer is right. several: classes a video, of which it may have none."""
    if len(classes) != 1 or several:
        return None
    return (
        f"WARNING: {classes[0]!r} is the only class, so that there is nothing to learn: make shards of the folder that holds "
        "a folder for each class."
    )


def small_videos(plan) -> str | None:
    """A line if most videos are stored smaller than the pictures that the model sees. plan: of the training clips."""
    stored, size = int(np.median(np.minimum(plan.widths, plan.heights))), plan.options.size
    if plan.stills or stored >= size:
        return None
    short_side = math.ceil(size * 8 / 7 / 16) * 16  # as 256 for 224
    return (
        f"WARNING: the model sees pictures of {size} pixels, but most videos are stored with a short side of {stored}: they "
        f"are enlarged, which costs time and shows no more. Make shards with --short-side {short_side}, or take a backbone "
        f"with image_size {stored} or less."
    )
