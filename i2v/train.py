"""Train an adapter on a frozen CLIP image transformer.

    torchrun --nproc-per-node 8 -m i2v.train --config configs/st_adapter/k400_vit-b16_8f.yaml
    python -m i2v.train --config configs/st_adapter/k400_vit-b16_8f.yaml train.lr=1e-3 data.train=/data/k400/train

Running the same command again continues where the run was, exactly: order, frames, crops, dropout and learning rate
are functions of how many samples were seen, and the rest is in the checkpoint. SIGTERM and SIGUSR1 write a checkpoint
and end the run with exit code 0.
"""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import yaml
from torch.nn.parallel import DistributedDataParallel

from i2v.atomic import replacing
from i2v.checkpoint import Meta, load_checkpoint, restore_optimizer, weights_of
from i2v.config import Config, load_config, to_dict
from i2v.continuation import check_continuation
from i2v.distributed import World, close_world, end_of_another, init_world, share_batchnorms, share_buffers
from i2v.ema import Average
from i2v.feed import check_labels, class_weights, how_stored, open_loader, split_batch, together
from i2v.finite import Guard, TooManyBadSteps
from i2v.lock import held
from i2v.metrics import evaluate
from i2v.model import VideoClassifier
from i2v.optim import build_optimizer, layers_of, learning_rate
from i2v.pipelines import ShardError
from i2v.pipelines.loader import Loader
from i2v.placement import autocast_for, choose_precision, compile_blocks, place, recompute_blocks
from i2v.progress import Progress
from i2v.runlog import RunLog
from i2v.saving import AVERAGED, Saver, crosses, kept_epoch
from i2v.session import build_model, describe_backbone
from i2v.stall import Watch
from i2v.step import Passes, take_step
from i2v.stop import Stopped, StopSignal
from i2v.transfer import HEAD, start_from
from i2v.weights import load_weights

SAVED = "The state of the run is saved: the same command continues from it."


def run(config: Config, world: World, stop: StopSignal | None = None) -> None:
    """Train in the folder config.out, which no other run may write to at the same time."""
    stop = stop or StopSignal()
    try:
        with held(Path(config.out), world):
            train_in(Path(config.out), config, world, stop)
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}: {after_divergence(config)}") from error
    finally:
        stop.close()


@dataclass(frozen=True)
class Run:
    """What the loop works with; see train_in."""

    config: Config
    world: World
    progress: Progress
    loader: Loader
    val_loader: Loader | None
    passes: Passes
    model: VideoClassifier
    replica: torch.nn.Module  # the model on all devices at once
    optimizer: torch.optim.Optimizer
    average: Average | None
    guard: Guard
    save: Saver
    log: RunLog
    stop: StopSignal
    watch: Watch
    last_step: int

    @property
    def epoch(self) -> float:
        return self.progress.samples / len(self.loader.plan)


def train_in(out: Path, config: Config, world: World, stop: StopSignal) -> None:
    # ---- where were we? ----------------------------------------------------------------------------------------------
    train, last = config.train, out / "last.safetensors"
    saved, meta = load_checkpoint(last) if last.exists() else ({}, None)
    progress = Progress(**meta.progress) if meta else Progress()

    # ---- data --------------------------------------------------------------------------------------------------------
    # A step is batch_size clips on any number of devices; what does not fit at once is accumulated. The loader's only
    # state is how many samples were seen, so that a continued run sees what an uninterrupted one would have seen.
    micro_batch, accumulate = split_batch(train.batch_size, train.micro_batch, world.size)
    loader = open_loader(config, world, "train", config.data.train, micro_batch, progress.samples)
    val_loader = None
    if config.data.val:
        val_loader = open_loader(config, world, "val", config.data.val, train.eval_batch or micro_batch)
    check_labels(loader, val_loader)
    classes, epoch_clips = loader.shards.classes, len(loader.plan)

    # ---- model -------------------------------------------------------------------------------------------------------
    # The order matters: load everything on the CPU in float32, compare with the checkpoint, then move and cast what is
    # frozen, then make the optimizer (of the tensors that will be trained), then compile, and DDP last, around it all.
    torch.manual_seed(train.seed)
    model, source = build_model(config.model, classes, saved)
    check_trained(config, model.trainable_parameters())
    begun = f"continuing after step {progress.step}" if meta else "starting"
    if config.model.init and not meta:
        source, loaded = start_from(model, config.model.init, classes, source)
        begun = f"starting, {loaded}"
    identity = identify(config, model, source, loader)
    if meta:
        check_continuation(identity, meta, last)
        load_weights(model, weights_of(saved), "i2v")
    dtype = choose_precision(train.precision, world.device)
    scaler = torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16)
    place(model, world.device, dtype)
    share_batchnorms(model, world)
    optimizer = build_optimizer(model.trainable_parameters(), train, layers_of(model))
    average = Average(model, train.ema) if train.ema else None
    if meta:
        restore_optimizer(optimizer, saved)
        scaler.load_state_dict(progress.scaler or scaler.state_dict())
        if average is not None:
            average.restore(saved)
    if train.compile:
        compile_blocks(model)
    recompute_blocks(model, train.recompute)
    replica = model if world.size == 1 else DistributedDataParallel(model, gradient_as_bucket_view=True)
    passes = Passes(
        accumulate,
        len(classes),
        train,
        world,
        autocast_for(world.device, dtype),
        scaler,
        config.data.order.get("repeats", 1),
        class_weights(loader, train.class_weights, world.device),
    )

    # ---- reports and checkpoints -------------------------------------------------------------------------------------
    samples = math.ceil(train.epochs * epoch_clips)
    last_step = progress.step + math.ceil(max(samples - progress.samples, 0) / train.batch_size)
    last_step = min(last_step, train.max_steps or last_step)
    due = progress.validation_due and val_loader is not None
    log = RunLog(out, world.is_main, progress.step, progress.samples, last_step, world.device, due)
    describe(log, config, world, model, meta, source, begun, dtype, f"{micro_batch} clips x {accumulate}", epoch_clips)
    if world.is_main:
        with replacing(out / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    guard = Guard(out / "nonfinite.csv", train.skip_nonfinite, progress, world.device, loader.shards.key, log.say)
    save = Saver(out, model, optimizer, scaler, average, guard, progress, identity, train.batch_size, world)
    watch = Watch(world, train.stall_after, partial(print, file=sys.stderr, flush=True))
    run = Run(
        config=config,
        world=world,
        progress=progress,
        loader=loader,
        val_loader=val_loader,
        passes=passes,
        model=model,
        replica=replica,
        optimizer=optimizer,
        average=average,
        guard=guard,
        save=save,
        log=log,
        stop=stop,
        watch=watch,
        last_step=last_step,
    )

    # ---- loop --------------------------------------------------------------------------------------------------------
    stop.begin()
    try:
        if due:
            validate(run)
            save.last()
        loop(run)
        made = [name for name in ("best.safetensors", "last.safetensors", "log.jsonl", "curves.png") if (out / name).exists()]
        log.say(f"done: {out} has {', '.join(made)}")
    except Stopped:
        # In a validation there is nothing to save: that was done before it began.
        if not progress.validation_due:
            save.last()
        log.say(f"stopped after step {progress.step}: the same command continues from there")
    except ShardError as error:  # the data failed; what is saved is the state after the last step that was finished
        if not progress.validation_due:
            save.last()
        raise ShardError(f"{error} {SAVED}" if world.is_main else str(error)) from error
    except TooManyBadSteps:  # none of them has changed anything
        save.last()
        raise
    finally:
        watch.close()
        log.close()


def loop(run: Run) -> None:
    """All steps that are left, with what is due after them.

    Nothing in it waits for the device but the log, every log_every steps: sums stay on the device, which also decides
    whether a step is taken. A validation is written down as due before it begins, so that it is made up for.
    """
    train, progress, epoch_clips = run.config.train, run.progress, len(run.loader.plan)
    batches = run.log.waiting_for(together(run.loader, run.stop, run.watch))
    run.model.train()
    while progress.step < run.last_step:
        before, lr = progress.samples, learning_rate(run.epoch, train)
        for group in run.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        only = HEAD if run.epoch < train.head_epochs else ""
        step = take_step(run.replica, batches, run.passes, run.optimizer, run.guard, run.average, before, only)
        progress.advance(train.batch_size, step.loss, step.norm, step.taken)
        run.guard.look(train.batch_size)

        finished = progress.step == run.last_step
        if progress.step % train.log_every == 0 or finished:
            means = progress.take_means()
            if means:
                run.log.train(progress.step, progress.samples, run.epoch, lr, means)
        kept = kept_epoch(train.keep, before, progress.samples, epoch_clips)
        if kept:
            run.save.epoch(kept)
        if run.val_loader and (finished or crosses(before, progress.samples, train.eval_every * epoch_clips)):
            progress.validation_due = True
            run.save.last()
            validate(run)
        if finished or progress.step % train.save_every == 0:
            run.save.last()
    batches.close()


def validate(run: Run) -> None:
    """Score the weights, and their average if there is one, on data.val."""
    share_buffers(run.model)  # each rank's BatchNorm saw other clips: all score with, and save, those of rank 0
    found, loader = {}, run.val_loader
    with run.log.pausing():
        for name in ("", AVERAGED) if run.average else ("",):
            with run.average.in_place() if name else nullcontext():
                batches = together(loader, run.stop, run.watch)
                classes = run.passes.classes
                found[name] = evaluate(run.model, batches, classes, len(loader.plan), run.world.device, run.passes.autocast)
    run.progress.validation_due = False
    run.log.test(run.progress.step, run.epoch, found)
    run.save.best(found, run.config.train.best)


def identify(config: Config, model: VideoClassifier, source: str, loader: Loader) -> Meta:
    """What every checkpoint says about its run, and its continuation is compared with."""
    return Meta(
        model=model.config,
        backbone=describe_backbone(model, config.model, source),
        classes=loader.shards.classes,
        stored=how_stored(loader.shards.manifest),
        stream=loader.fingerprint(),
        clips=config.clips,
        config=to_dict(config),
    )


def check_trained(config: Config, parameters: dict) -> None:
    """Raises ValueError unless something trains, and so does the head if it is to train alone at first."""
    method, head, train = config.model.method, config.model.head.get("type", "linear"), config.train
    if not parameters:
        raise ValueError(f"{method} with a {head} head trains nothing: use i2v.evaluate.")
    if train.head_epochs and not any(name.startswith(HEAD) for name in parameters):
        raise ValueError(f"train.head_epochs is {train.head_epochs:g}, but nothing of a {head} head trains: remove it.")


def after_divergence(config: Config) -> str:
    """What there is to do when numbers are not finite any more: the same command would come to the same end."""
    last, lower = Path(config.out) / "last.safetensors", f"out={config.out}-2 train.lr={config.train.lr / 3:.1g}"
    precision = "" if config.train.precision == "float32" else ", or with train.precision=float32"
    kept = "nothing was saved yet"
    if last.exists():
        kept = f"{last} is kept as it was after step {load_checkpoint(last)[1].progress['step']}"
    return (
        f"{kept}, but continued it would come to the same end; begin anew in another folder with a lower learning rate "
        f"({lower}){precision}."
    )


def describe(
    log: RunLog, config: Config, world: World, model: VideoClassifier, meta, source, begun: str, dtype, batch: str, videos: int
) -> None:
    trained = sum(p.numel() for p in model.trainable_parameters().values())
    frozen = sum(p.numel() for p in model.frozen_parameters().values())
    log.say(
        f"{begun}: {config.model.method} in {config.out}, {videos} videos, "
        f"{trained / 1e6:.3f} M parameters train, {frozen / 1e6:.3f} M are frozen ({source})"
    )
    log.say(
        f"{world.size} x {world.device}, {str(dtype).removeprefix('torch.')}, batch {config.train.batch_size} = "
        f"{world.size} devices x {batch} passes"
    )
    before = meta.config["train"]["batch_size"] if meta else config.train.batch_size
    if before != config.train.batch_size:
        log.say(
            f"WARNING: the steps before were of {before} clips: with train.batch_size {config.train.batch_size} the run goes "
            "on as another optimisation, at the learning rate of the old one."
        )
    if source == "random":
        log.say("WARNING: model.weights is random: a frozen random backbone does not learn.")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="i2v.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace values of the file")
    args = parser.parse_args()
    stop = StopSignal()
    try:
        config = load_config(args.config, args.overrides)
        run(config, init_world(config.data.device), stop)
    except (ValueError, TypeError, OSError, FloatingPointError, ShardError) as error:
        sys.exit(f"i2v.train: {error}")
    except KeyboardInterrupt:
        sys.exit("i2v.train: interrupted; the same command continues from the last checkpoint")
    except RuntimeError as error:
        if not end_of_another(error):
            raise
        sys.exit("i2v.train: another process of this run has ended; the same command continues from the last checkpoint")
    finally:
        close_world()


if __name__ == "__main__":
    main()
