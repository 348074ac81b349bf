"""Find what happens when in long videos: a boundary-matching network on folders of features and a list of segments.

    python -m i2v.localise --config configs/bmn/epic100_vivit.yaml data.features=features/epic out=runs/bmn
    python -m i2v.localise --checkpoint runs/bmn/best.safetensors data.val=lists/test.csv out=runs/bmn/test

The first trains and scores after every train.eval_every epochs; the second finds segments with what was trained. Either
writes detections.json, in the form of the EPIC-KITCHENS challenge, and where the list has segments results.csv, the mean
average precision at each overlap. Features are made by i2v.features --scores; classes are those of its class scores.

Running the same command again continues where the run was, exactly. SIGTERM and SIGUSR1 save it and end with exit code 0,
Ctrl-C with 130.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from i2v.atomic import write_whole
from i2v.average_precision import Precision, mean_average_precision
from i2v.bmn import losses
from i2v.checkpoint import after_divergence, bad_numbers, optimizer_tensors, restore_optimizer, weights_of, write_tensors
from i2v.config import apply_override, build_config, read_config, to_yaml
from i2v.console import as_sentence, begin_command, interrupted
from i2v.continuation import flatten
from i2v.distributed import World, close_world, init_world, told_by_launcher
from i2v.localise_config import FREE_TO_CHANGE, LocaliseConfig, LocaliseTraining
from i2v.localiser import (
    Localiser,
    ahead,
    as_json,
    as_lines,
    check_val,
    find_segments,
    load_into,
    make_localiser,
    open_folders,
    read_localiser,
    table,
    unwrap_weights,
)
from i2v.lock import held
from i2v.long_videos import LongVideos, TrainingWindows, find_classes
from i2v.optim import learning_rate, parameter_groups
from i2v.pipelines.options import OrderOptions
from i2v.pipelines.order import Order
from i2v.pipelines.philox import CELLS, uniforms
from i2v.progress import Progress
from i2v.proposals import Detections
from i2v.runlog import RunLog
from i2v.saving import crosses
from i2v.segments import read_segments
from i2v.session import command
from i2v.stop import StopSignal

NAMES = {"loss": "loss", "grad_norm": "gradient"}  # of the means in a report, what they are of


# ---- training --------------------------------------------------------------------------------------------------------


def run(config: LocaliseConfig, world: World, stop: StopSignal) -> bool:
    """Train in the folder config.out; whether the run came to its end."""
    try:
        with held(Path(config.out), world):
            return train_in(Path(config.out), config, world, stop)
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}: {after_divergence(config.out, config.train.lr)}") from error
    finally:
        stop.close()


@dataclass(frozen=True)
class Run:
    """What the loop works with; see train_in."""

    out: Path
    localiser: Localiser
    windows: TrainingWindows
    val: LongVideos | None
    optimizer: torch.optim.Optimizer
    progress: Progress
    log: RunLog
    stop: StopSignal
    last_step: int

    @property
    def epoch(self) -> float:
        return self.progress.samples / len(self.windows)


def train_in(out: Path, config: LocaliseConfig, world: World, stop: StopSignal) -> bool:
    # ---- data --------------------------------------------------------------------------------------------------------
    train, last = config.train, out / "last.safetensors"
    folders, scores = open_folders(config.data)
    videos = LongVideos(read_segments(config.data.train, "train"), folders, scores, config.data.row_seconds)
    if not videos.kinds:
        raise ValueError(f"{config.data.train} has no labels: nothing can be learnt from it.")
    val = open_val(config, folders, scores)
    classes = find_classes(videos, scores, scores.views or config.data.score_views)
    tensors, header = read_localiser(last) if last.exists() else ({}, None)

    # ---- model -------------------------------------------------------------------------------------------------------
    localiser = make_localiser(config, videos.channels, videos.row_seconds, classes, world.device)
    windows = TrainingWindows(videos, localiser.cut, localiser.labels)
    made = folders[0].about or None if len(folders) == 1 else None
    localiser = replace(localiser, stream=windows.fingerprint(), features=made)
    if header:
        check_same_run(localiser, header, last)
        load_into(localiser.model, weights_of(tensors), str(last))
    elif train.init:
        load_into(localiser.model, unwrap_weights(train.init), train.init)
    check_val(val, localiser)
    groups = parameter_groups(dict(localiser.model.named_parameters()), train)
    optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=tuple(train.betas), eps=1e-8, fused=True)
    restore_optimizer(optimizer, tensors)

    # ---- reports -----------------------------------------------------------------------------------------------------
    progress = Progress(**header["progress"]) if header else Progress()
    samples = max(round(train.epochs * len(windows)), 1)
    last_step = min(-(-samples // train.batch_size), train.max_steps or samples)
    log = RunLog(out, True, progress.step, progress.samples, last_step, world.device, progress.validation_due)
    actions = sum(len(segments) for _, _, segments, _ in windows.windows)
    begun = f"continuing after step {progress.step}" if header else "starting"
    log.say(
        f"{begun}: {len(windows)} windows of {localiser.cut.seconds:.4g} s with {actions} segments, features of "
        f"{localiser.channels} channels every {localiser.cut.row_seconds:.4g} s, on {world.device}"
    )
    write_whole(out / "config.yaml", to_yaml(config))

    # ---- loop --------------------------------------------------------------------------------------------------------
    stop.begin()
    this = Run(out, localiser, windows, val, optimizer, progress, log, stop, last_step)
    try:
        if progress.validation_due and val:
            check(this)
        if not loop(this):
            log.say(f"stopped after step {progress.step}: the same command continues from there")
            return False
        made = ("best.safetensors", "last.safetensors", "results.csv", "detections.json", "log.jsonl")
        log.say(f"done: {out} has {', '.join(name for name in made if (out / name).exists())}")
        return True
    finally:
        log.close()


def loop(run: Run) -> bool:
    """The steps that are left, with what is due after them; whether none is left.

    Nothing in it waits for the device but the log, every log_every steps, and what is saved.
    """
    train, progress, optimizer = run.localiser.config.train, run.progress, run.optimizer
    steps, taken = range(progress.step, run.last_step), torch.ones((), dtype=torch.bool, device=run.localiser.device)
    batches = run.log.waiting_for(ahead(Batches(run.windows, train, run.localiser.device).of, steps))
    try:
        while progress.step < run.last_step:
            if run.stop.wanted:
                save_last(run)
                return False
            before, lr = progress.samples, learning_rate(run.epoch, train)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            progress.advance(train.batch_size, *take_step(run.localiser, optimizer, next(batches)), taken)

            finished = progress.finished = progress.step == run.last_step
            if progress.step % train.log_every == 0 or finished:
                means = progress.take_means()
                check_finite(means, progress.step)
                run.log.train(progress.step, progress.samples, run.epoch, lr, means)
            if run.val and (finished or crosses(before, progress.samples, train.eval_every * len(run.windows))):
                check(run)
            elif finished or progress.step % train.save_every == 0:
                save_last(run)
        return True
    finally:
        batches.close()


class Batches:
    """What each step learns from: a function of the step, so that a continued run goes on with what would have come."""

    def __init__(self, windows: TrainingWindows, train: LocaliseTraining, device: torch.device):
        self.windows, self.train, self.device = windows, train, device
        self.order = Order(np.zeros(len(windows), dtype=np.int64), OrderOptions(), train.seed)

    def of(self, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """features (B, channels, T), the maps of ground_truth, (B, ...) each, and draws (2, B, D, T): which cells count.

        They are on their way to the device; nobody waits for them to be there.
        """
        size = self.train.batch_size
        features, maps = self.windows.batch([self.order[step * size + i].clip for i in range(size)])
        shape = (2, *maps["iou_map"].shape)
        draws = torch.from_numpy(uniforms(self.train.seed, CELLS, 0, step, math.prod(shape))).float().view(shape)
        return self._sent(features), {name: self._sent(value) for name, value in maps.items()}, self._sent(draws)

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


def take_step(localiser: Localiser, optimizer, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of the optimizer -> the loss and the gradient's norm before clipping, () each, on the device."""
    train = localiser.config.train
    features, maps, draws = batch
    output = localiser.model(features)
    kinds = tuple(localiser.labels.classes) if localiser.config.model.class_maps else ()
    parts = losses(output, maps, draws, kinds=kinds)
    weights = dict(zip(("tem", "pem_reg", "pem_cls"), train.loss_weights))
    loss = sum(weights.get(name, train.loss_weights[3]) * part for name, part in parts.items())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(localiser.model.parameters(), train.clip_grad or float("inf"))
    optimizer.step()
    return loss.detach(), norm.detach()


def check_finite(means: dict[str, float], step: int) -> None:
    """Raises FloatingPointError if one of the means since the last report is infinite or no number."""
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    if bad:
        raise FloatingPointError(f"The {NAMES[bad[0]]} of the steps up to step {step} is not finite")


def open_val(config: LocaliseConfig, folders, scores) -> LongVideos | None:
    if not config.data.val:
        return None
    return LongVideos(read_segments(config.data.val, "val"), folders, scores, config.data.row_seconds)


def check_same_run(localiser: Localiser, header: dict, path: Path) -> None:
    """Raises ValueError if a checkpoint belongs to another run than the one that is about to continue from it."""
    new, old = (flatten(json.loads(json.dumps(each))) for each in (asdict(localiser.config), header["config"]))
    for key in sorted(new.keys() | old.keys()):
        if key not in FREE_TO_CHANGE and new.get(key) != old.get(key):
            raise ValueError(
                f"{path} belongs to a run with {key} = {old.get(key)!r}, this one has {new.get(key)!r}: restore the value, or "
                "choose another folder with out=..."
            )
    about = localiser.header(Progress())
    others = {"row_seconds": "another distance of rows", "classes": "other classes", "stream": "other segments"}
    for key, what in {"channels": "features of another width", **others}.items():
        if about[key] != header[key]:
            raise ValueError(f"{path} belongs to a run with {what}: choose another folder with out=...")


def check(run: Run) -> None:
    """Save, for the case that what follows is interrupted; score; and save what came of it."""
    run.progress.validation_due = True
    save_last(run)
    validate(run)
    save_last(run)


def save_last(run: Run) -> None:
    save(run, "last.safetensors", optimizer_tensors(run.optimizer))


def save(run: Run, name: str, more: dict[str, torch.Tensor], **header) -> None:
    """Raises FloatingPointError, and leaves the file as it was, for a state that is not finite: nothing continues from one."""
    tensors, header = run.localiser.model.state_dict() | more, run.localiser.header(run.progress, **header)
    bad = bad_numbers(tensors, header["progress"])
    if bad:
        raise FloatingPointError(f"After step {run.progress.step} {bad[0]} is not finite, so the state is not saved")
    write_tensors(run.out / name, tensors, header)


# ---- scoring ---------------------------------------------------------------------------------------------------------


def validate(run: Run) -> None:
    """Find the segments of data.val, and score them where the list has some; best.safetensors keeps the best weights."""
    with run.log.pausing():
        found, results = score(run.localiser, run.val)
    run.progress.validation_due = False
    if results is None:
        write_findings(run.out, run.localiser, run.val, found)
        return
    kind, means = next(iter(results)), {kind: float(found.mean.mean()) for kind, found in results.items()}
    figures = {"map": means[kind]} | {f"map_{other}": value for other, value in means.items() if other != kind}
    thresholds = run.localiser.config.detect.thresholds
    figures |= {f"map@{level:g}": float(value) for level, value in zip(thresholds, results[kind].mean)}
    words = ", ".join(f"{other} {100 * value:.2f} %" for other, value in means.items())
    run.log.figures(run.progress.step, run.epoch, figures, f"mean average precision: {words}")
    if run.progress.best is None or means[kind] > run.progress.best:
        run.progress.best = means[kind]
        write_findings(run.out, run.localiser, run.val, found, results)
        save(run, "best.safetensors", {}, scores=figures)


def score(localiser: Localiser, videos: LongVideos) -> tuple[dict[str, Detections], dict[str, Precision] | None]:
    """What is found in every video; and the precision of each kind, if the list has segments."""
    found = find_segments(localiser, videos)
    if not any(len(video.actions.segments) for video in videos.videos):
        return found, None
    thresholds, kinds = localiser.config.detect.thresholds, tuple(localiser.labels.classes)
    return found, mean_average_precision(localiser.labels.truth(videos), found, kinds, thresholds)


def write_findings(out: Path, localiser: Localiser, videos: LongVideos, found: dict, results: dict | None = None) -> None:
    """detections.json, and results.csv if there are results: of a run those of best.safetensors."""
    if results is not None:
        write_whole(out / "results.csv", table(results, localiser.config.detect.thresholds))
    write_whole(out / "detections.json", json.dumps(as_json(found, localiser.labels, bool(videos.kinds)), indent=1) + "\n")


def one_process(device: str) -> World:
    if told_by_launcher()[1] > 1:
        raise ValueError("it runs in one process: start it without torchrun.")
    return init_world(device)


def score_checkpoint(path: str, overrides: list[str]) -> dict[str, Precision] | None:
    """What a trained network finds in data.val; results where its list has segments."""
    tensors, header = read_localiser(path)
    values, before = header["config"], header["config"]["data"]["val"]
    for override in overrides:
        apply_override(values, override)
    config = build_config(LocaliseConfig, values, path)
    if before not in (None, config.data.val) and not any(override.startswith("out=") for override in overrides):
        raise ValueError(
            f"{config.out} has what the run found in {before}: say with out=... where to write what is in {config.data.val}."
        )
    world = one_process(config.data.device)
    if not config.data.val:
        raise ValueError(f"{path} has no data.val, the list of videos to look at: set data.val=...")
    videos = open_val(config, *open_folders(config.data))
    localiser = make_localiser(config, header["channels"], header["row_seconds"], header["classes"], world.device)
    load_into(localiser.model, weights_of(tensors), str(path))
    check_val(videos, localiser)
    with held(Path(config.out), world):
        found, results = score(localiser, videos)
        write_findings(Path(config.out), localiser, videos, found, results)
        return results


def main() -> None:
    parser = command("i2v.localise", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="train: a YAML file, see configs/bmn")
    what.add_argument("--checkpoint", help="only look: best.safetensors or last.safetensors of a run, or its folder")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace values of the file")
    args = parser.parse_args()
    begin_command()
    try:
        config = read_config(LocaliseConfig, args.config, args.overrides) if args.config else None
        if config is None:
            results = score_checkpoint(args.checkpoint, args.overrides)
            if results:
                print(as_lines(results, list(next(iter(results.values())).thresholds)))
            return
        world, stop = one_process(config.data.device), StopSignal()
        if not run(config, world, stop) and stop.interrupted:
            sys.exit(130)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        sys.exit(f"i2v.localise: {as_sentence(error)}")
    except KeyboardInterrupt:
        interrupted("i2v.localise: interrupted; the same command continues from the last checkpoint")
    finally:
        close_world()


if __name__ == "__main__":
    main()
