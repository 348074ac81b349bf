"""Train an adapter on a frozen CLIP image transformer.

    torchrun --nproc-per-node 8 -m i2v.train --config configs/st_adapter/k400_vit-b16_8f.yaml
    python -m i2v.train --config configs/st_adapter/k400_vit-b16_8f.yaml train.lr=1e-3 data.train=/data/k400/train

Running the same command again continues where the run was, exactly: order, frames, crops, dropout and learning rate
are functions of how many samples were seen, and the rest is in the checkpoint. SIGTERM and SIGUSR1 write a checkpoint
and end the run with exit code 0, Ctrl-C with 130.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch.nn.parallel import DistributedDataParallel

from i2v.atomic import write_whole
from i2v.checkpoint import Meta, after_divergence, load_checkpoint
from i2v.config import Config, load_config, to_yaml, with_best, with_epochs
from i2v.console import as_sentence, begin_command, interrupted
from i2v.distributed import World, close_world, end_of_another, init_world
from i2v.feed import check_labels, class_weights, labels_of, open_loader, split_batch, together
from i2v.finite import Guard, TooManyBadSteps
from i2v.lock import held
from i2v.memory import is_out_of_memory, out_of_memory, too_little_memory
from i2v.metrics import evaluate
from i2v.mirror import Mirror, restore
from i2v.mixing import check_pass, mixed_together
from i2v.optim import learning_rate
from i2v.outlook import few_steps, length_in_samples, one_class, short_videos, small_videos
from i2v.pipelines import ShardError
from i2v.pipelines.loader import Loader
from i2v.pipelines.plan import Plan
from i2v.placement import autocast_for
from i2v.progress import Progress
from i2v.runlog import RunLog
from i2v.saving import AVERAGED, Saver, crosses, kept_epochs
from i2v.session import command
from i2v.stall import Watch
from i2v.step import Passes, take_step
from i2v.stop import Stopped, StopSignal
from i2v.trainee import Trainee, open_trainee
from i2v.transfer import HEAD
from i2v.trunks import not_known

HURRY = 20.0  # seconds that a run which was told to stop waits for its mirror
SAVED = "The state of the run is saved: the same command continues from it."


def run(config: Config, world: World, stop: StopSignal | None = None) -> bool:
    """Train in the folder config.out, which no other run may write to at the same time; whether it came to its end."""
    stop = stop or StopSignal()
    try:
        with held(Path(config.out), world):
            restore(Path(config.out), config.train.mirror, world)
            return train_in(Path(config.out), config, world, stop)
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}: {after_divergence(config.out, config.train.lr, config.train.precision)}") from error
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, ShardError) or not is_out_of_memory(error):
            raise
        micro_batch, _ = split_batch(config.train.batch_size, config.train.micro_batch, world.size)
        group = mixed_together(config.train, config.data.repeats)
        raise MemoryError(out_of_memory(config.train, micro_batch, group)) from error
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
    trainee: Trainee
    guard: Guard
    save: Saver
    log: RunLog
    stop: StopSignal
    watch: Watch
    last_step: int

    @property
    def epoch(self) -> float:
        return self.progress.samples / len(self.loader.plan)


def train_in(out: Path, config: Config, world: World, stop: StopSignal) -> bool:
    # ---- where were we? ----------------------------------------------------------------------------------------------
    train, last = config.train, out / "last.safetensors"
    saved, meta = load_checkpoint(last) if last.exists() else ({}, None)
    progress = Progress(**meta.progress) if meta else Progress()

    # ---- data --------------------------------------------------------------------------------------------------------
    # A step is batch_size clips on any number of devices; what does not fit at once is accumulated. The loader's only
    # state is how many samples were seen, so that a continued run sees what an uninterrupted one would have seen.
    micro_batch, accumulate = split_batch(train.batch_size, train.micro_batch, world.size)
    loader = open_loader(config, world, "train", config.data.train, micro_batch, progress.samples)
    check_pass(micro_batch, mixed_together(train, config.data.repeats))
    samples = length_in_samples(config, len(loader.plan), progress.step, progress.samples)
    config = with_best(with_epochs(config, samples / len(loader.plan)), loader.shards.label_sets is not None)
    train = config.train
    val_loader = None
    if config.data.val:
        val_loader = open_loader(config, world, "val", config.data.val, train.eval_batch or micro_batch)
    check_labels(loader, val_loader)

    # ---- model -------------------------------------------------------------------------------------------------------
    trainee = open_trainee(config, world, loader, saved, meta)
    passes = Passes(
        accumulate,
        len(loader.shards.classes),
        train,
        world,
        autocast_for(world.device, trainee.dtype),
        trainee.scaler,
        config.data.repeats,
        class_weights(loader, train.class_weights, world.device),
    )

    # ---- reports and checkpoints -------------------------------------------------------------------------------------
    last_step = progress.step + math.ceil(max(samples - progress.samples, 0) / train.batch_size)
    last_step = min(last_step, train.max_steps or last_step)
    due = progress.validation_due and val_loader is not None
    log = RunLog(out, world.is_main, progress.step, progress.samples, last_step, world.device, due)
    describe(log, config, world, trainee, meta, f"{micro_batch} clips x {accumulate}", len(loader.plan))
    if world.is_main:
        warn(log, config, world, micro_batch, trainee, loader.plan)
        write_whole(out / "config.yaml", to_yaml(config))
    if val_loader is not None and progress.compare_on(val_loader.fingerprint()):
        log.say("WARNING: data.val has other videos than before: best.safetensors is chosen anew, by validations from here on.")
    guard = Guard(out / "nonfinite.csv", train.skip_nonfinite, progress, world.device, loader.shards.key, log.say)
    mirror = Mirror(out, train.mirror, log.say) if train.mirror and world.is_main else None
    save = Saver(out, trainee, guard, progress, train.batch_size, world, mirror)
    watch = Watch(world, train.stall_after, partial(print, file=sys.stderr, flush=True))
    run = Run(config, world, progress, loader, val_loader, passes, trainee, guard, save, log, stop, watch, last_step)

    # ---- loop --------------------------------------------------------------------------------------------------------
    stop.begin()
    try:
        if due:
            validate(run)
            save.last()
        loop(run)
        made = [name for name in ("best.safetensors", "last.safetensors", "log.jsonl", "curves.png") if (out / name).exists()]
        say_quarantined(run)
        log.say(f"done: {out} has {', '.join(made)}")
        return True
    except Stopped:
        # In a validation there is nothing to save: that was done before it began.
        if not progress.validation_due:
            save.last()
        say_quarantined(run)
        log.say(f"stopped after step {progress.step}: the same command continues from there")
        return False
    except ShardError as error:  # the data failed; what is saved is the state after the last step that was finished
        if not progress.validation_due:
            save.last()
        raise ShardError(f"{error} {SAVED}" if world.is_main else str(error)) from error
    except TooManyBadSteps:  # none of them has changed anything
        save.last()
        raise
    finally:
        watch.close()
        if mirror is not None:
            mirror.close(HURRY if stop.wanted else None)
        log.close()


def loop(run: Run) -> None:
    """All steps that are left, with what is due after them.

    Nothing in it waits for the device but the log, every log_every steps: sums stay on the device, which also decides
    whether a step is taken. A validation is written down as due before it begins, so that it is made up for.
    """
    train, progress, trainee, epoch_clips = run.config.train, run.progress, run.trainee, len(run.loader.plan)
    model, optimizer = trainee.model, trainee.optimizer
    replica = model if run.world.size == 1 else DistributedDataParallel(model, gradient_as_bucket_view=True)
    batches = run.log.waiting_for(together(run.loader, run.stop, run.watch))
    model.train()
    while progress.step < run.last_step:
        before, lr = progress.samples, learning_rate(run.epoch, train)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        only = HEAD if run.epoch < train.head_epochs else ""
        step = take_step(replica, batches, run.passes, optimizer, run.guard, trainee.average, before, only)
        progress.advance(train.batch_size, step.loss, step.norm, step.taken)
        run.guard.look(train.batch_size)

        progress.finished = finished = progress.step == run.last_step
        if progress.step % train.log_every == 0 or finished:
            means = progress.take_means()
            if means:
                run.log.train(progress.step, progress.samples, run.epoch, lr, means)
        for epoch in kept_epochs(train.keep, before, progress.samples, epoch_clips):
            run.save.epoch(epoch)
        if run.val_loader and (finished or crosses(before, progress.samples, train.eval_every * epoch_clips)):
            progress.validation_due = True
            run.save.last()
            validate(run)
        if finished or progress.step % train.save_every == 0:
            run.save.last()
    batches.close()


def validate(run: Run) -> None:
    """Score the weights, and their average if there is one, on data.val."""
    model, average, passes, loader = run.trainee.model, run.trainee.average, run.passes, run.val_loader
    found = {}
    with run.log.pausing():
        for name in ("", AVERAGED) if average else ("",):
            with average.in_place() if name else nullcontext():
                batches = together(loader, run.stop, run.watch)
                labels = labels_of(loader.shards)
                found[name] = evaluate(model, batches, labels, len(loader.plan), run.world.device, passes.autocast)
    run.progress.validation_due = False
    run.log.test(run.progress.step, run.epoch, found)
    run.save.best(found, run.config.train.best)


def say_quarantined(run: Run) -> None:
    """How many clips did not count, and where they are listed."""
    for loader in (run.loader, run.val_loader):
        bad = loader.quarantine.refreshed() if loader is not None else {}
        if bad:
            run.log.say(
                f"WARNING: {len(bad)} of {len(loader.quarantine.shards)} clips of {loader.shards.root} could not be used and "
                f"counted for nothing: they are listed with reasons in {loader.quarantine.path}"
            )


def describe(log: RunLog, config: Config, world: World, trainee: Trainee, meta: Meta | None, batch: str, videos: int) -> None:
    trained = sum(p.numel() for p in trainee.model.trainable_parameters().values())
    frozen = sum(p.numel() for p in trainee.model.frozen_parameters().values())
    log.say(
        f"{trainee.begun}: {config.model.method} in {config.out}, {videos} videos, "
        f"{trained / 1e6:.3f} M parameters train, {frozen / 1e6:.3f} M are frozen ({trainee.source})"
    )
    log.say(
        f"{world.size} x {world.device}, {str(trainee.dtype).removeprefix('torch.')}, batch {config.train.batch_size} = "
        f"{world.size} devices x {batch} passes"
    )
    before = meta.config["train"]["batch_size"] if meta else config.train.batch_size
    if before != config.train.batch_size:
        log.say(
            f"WARNING: the steps before were of {before} clips: with train.batch_size {config.train.batch_size} the run goes "
            "on as another optimisation, at the learning rate of the old one."
        )
    if trainee.note:
        log.say(trainee.note)
    if trainee.source == "random" and trainee.model.frozen_parameters():
        log.say("WARNING: model.weights is random: a frozen random backbone does not learn.")


def warn(log: RunLog, config: Config, world: World, micro_batch: int, trainee: Trainee, plan: Plan) -> None:
    """What can go wrong with this run, as far as that can be counted before its first step."""
    identity = trainee.identity
    lines = [few_steps(config, len(plan)), one_class(identity.classes, identity.several)]
    lines += [short_videos(plan), small_videos(plan)]
    lines.append(not_known(config.model.backbone, config.model.weights))
    if world.device.type == "cpu":
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        group = mixed_together(config.train, config.data.repeats)
        lines.append(too_little_memory(config.train, micro_batch, group, identity.model, processes))
    for line in filter(None, lines):
        log.say(line)


def main() -> None:
    parser = command("i2v.train", __doc__)
    parser.add_argument("--config", required=True, help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace values of the file")
    args = parser.parse_args()
    begin_command()
    try:
        config = load_config(args.config, args.overrides)
        # Until the processes have met, a signal ends this one there and then, as is its default: one that waits for others
        # in the middle of it could not answer, and after a restart the launchers would lose each other over it.
        world = init_world(config.data.device)
        stop = StopSignal()
        if not run(config, world, stop) and stop.interrupted and world.size == 1:  # torchrun has a code of its own
            sys.exit(130)
    except (ValueError, TypeError, OSError, FloatingPointError, MemoryError, ShardError) as error:
        sys.exit(f"i2v.train: {as_sentence(error)}")
    except KeyboardInterrupt:
        interrupted("i2v.train: interrupted; the same command continues from the last checkpoint")
    except RuntimeError as error:
        if not end_of_another(error):
            raise
        sys.exit("i2v.train: another process of this run has ended; the same command continues from the last checkpoint")
    finally:
        close_world()


if __name__ == "__main__":
    main()
