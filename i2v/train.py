"""Train an adapter on a frozen CLIP image transformer.

    torchrun --nproc-per-node 8 -m i2v.train --config configs/st_adapter/k400_vit-b16_8f.yaml
    python -m i2v.train --config configs/st_adapter/k400_vit-b16_8f.yaml train.lr=1e-3 data.train=/data/k400/train

Running the same command again continues where the run was, exactly: order, frames, crops, dropout and learning rate
are functions of how many samples were seen, and the rest is in the checkpoint. SIGTERM writes a checkpoint and ends
the run with exit code 0.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import sys
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch.nn.parallel import DistributedDataParallel

from i2v.atomic import replacing
from i2v.checkpoint import OPTIMIZER, Meta, load_checkpoint, not_finite, optimizer_tensors, restore_optimizer, save_checkpoint
from i2v.config import Config, load_config, to_dict
from i2v.continuation import check_continuation
from i2v.distributed import StopSignal, World, all_agree, close_world, init_world, share_buffers, sum_over_ranks
from i2v.lock import held
from i2v.metrics import evaluate
from i2v.mixing import mix
from i2v.model import backbone_spec, method_module
from i2v.optim import build_optimizer, learning_rate
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.options import OrderOptions
from i2v.runlog import RunLog
from i2v.session import autocast_for, build_model, choose_precision, compile_blocks, describe_backbone, own_tensors, place
from i2v.weights import load_weights

SAVED = "The state of the run is saved: the same command continues from it."


@dataclass
class Progress:
    """What, besides weights and optimizer, a run needs to go on: it is in every checkpoint."""

    step: int = 0
    samples: int = 0  # seen by all devices together: the state of the data
    best: float = -1.0  # top-1 on data.val
    loss: float | torch.Tensor = 0.0  # summed over the steps that are not in the log yet; on the device, so that none waits
    loss_steps: int = 0
    validation_due: bool = False  # after this step; true in a checkpoint if it was not finished

    def advance(self, clips: int, loss: torch.Tensor) -> None:
        """A step of so many clips is done; loss: their mean."""
        self.step, self.samples = self.step + 1, self.samples + clips
        self.loss, self.loss_steps = self.loss + loss.double(), self.loss_steps + 1

    def take_loss(self) -> float:
        """The mean loss of the steps since it was taken last. Raises FloatingPointError if it is not a number."""
        mean = float(self.loss) / max(self.loss_steps, 1)
        if not math.isfinite(mean):
            raise FloatingPointError(f"The loss is {mean} at step {self.step}")
        self.loss, self.loss_steps = 0.0, 0
        return mean

    def as_dict(self) -> dict:
        return vars(self) | {"loss": float(self.loss)}


def run(config: Config, world: World) -> None:
    """Train in the folder config.out, which no other run may write to at the same time."""
    with held(Path(config.out), world):
        try:
            train_in(Path(config.out), config, world)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}: {after_divergence(config)}") from error


def train_in(out: Path, config: Config, world: World) -> None:
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
    classes, clips_per_epoch = loader.shards.classes, len(loader.plan)

    # ---- model -------------------------------------------------------------------------------------------------------
    # The order matters: load everything on the CPU in float32, compare with the checkpoint, then move and cast what is
    # frozen, then make the optimizer (of the tensors that will be trained), then compile, and DDP last, around it all.
    torch.manual_seed(train.seed)
    model, source = build_model(config.model, classes, saved)
    parameters = model.trainable_parameters()
    if not parameters:
        raise ValueError(f"{config.model.method} with a {config.model.head['type']} head trains nothing: use i2v.evaluate.")
    identity = Meta(
        model=model.config,
        backbone=describe_backbone(model, config.model, source),
        classes=classes,
        stored=how_stored(loader.shards.manifest),
        stream=loader.fingerprint(),
        clips=config.clips,
        config=to_dict(config),
    )
    if meta:
        check_continuation(identity, meta, last)
        load_weights(model, {name: tensor for name, tensor in saved.items() if not name.startswith(OPTIMIZER)}, "i2v")
    dtype = choose_precision(train.precision, world.device)
    autocast = autocast_for(world.device, dtype)
    place(model, world.device, dtype)
    optimizer = build_optimizer(parameters, train, layers_of(model))
    if meta:
        restore_optimizer(optimizer, saved)
    if train.compile:
        compile_blocks(model)
    model, replica = replicate(model, world)

    # ---- reports and checkpoints -------------------------------------------------------------------------------------
    total = math.ceil(train.epochs * clips_per_epoch)  # samples
    last_step = progress.step + math.ceil(max(total - progress.samples, 0) / train.batch_size)
    last_step = min(last_step, train.max_steps or last_step)
    due = progress.validation_due and val_loader is not None
    log = RunLog(out, world.is_main, progress.step, progress.samples, last_step, world.device, due)
    describe(log, config, world, model, meta, source, dtype, f"{micro_batch} clips x {accumulate}", clips_per_epoch)
    if world.is_main:
        with replacing(out / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))

    def save(name: str, tensors: dict, **more) -> None:
        save_state(out / name, tensors, replace(identity, progress=progress.as_dict(), **more), world)

    def save_last() -> None:
        save("last.safetensors", own_tensors(model, identity.backbone) | optimizer_tensors(optimizer))

    def validate() -> None:
        share_buffers(model)  # each rank's BatchNorm saw other clips: all score with, and save, those of rank 0
        with log.pausing():
            scores = evaluate(model, val_loader, len(classes), len(val_loader.plan), world.device, autocast)
        progress.validation_due = False
        log.test(progress.step, progress.samples / clips_per_epoch, scores)
        if scores.top1 > progress.best:
            progress.best = scores.top1
            save("best.safetensors", own_tensors(model, identity.backbone), scores=scores.summary())

    # ---- loop --------------------------------------------------------------------------------------------------------
    # Nothing in it waits for the device but the log, every log_every steps: sums stay on the device, and whether to stop
    # is agreed on between the hosts. A validation is written down as due before it begins, so that it is made up for.
    stop, batches = StopSignal(), iter(loader)
    model.train()
    try:
        if due:
            validate()
            save_last()
        while progress.step < last_step:
            lr = learning_rate(progress.samples / clips_per_epoch, train)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            totals = add_gradients(replica, batches, accumulate, progress.samples, len(classes), train, world, autocast, log)
            sum_over_ranks(totals)
            counted = totals[0].clamp(min=1)
            # Clips in quarantine have weight 0: the mean is over the others. Usually this multiplies by exactly 1.
            torch._foreach_mul_([p.grad for p in parameters.values() if p.grad is not None], train.batch_size / counted)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            before = progress.samples
            progress.advance(train.batch_size, totals[1] / counted)
            stopping, finished = stop(), progress.step == last_step
            if progress.step % train.log_every == 0 or finished:
                log.train(progress.step, progress.samples, progress.samples / clips_per_epoch, progress.take_loss(), lr)
            if val_loader and (finished or crosses(before, progress.samples, train.eval_every * clips_per_epoch)):
                progress.validation_due = True
                save_last()
                validate()
            if stopping or finished or progress.step % train.save_every == 0:
                save_last()
            if stopping:
                log.say(f"stopped after step {progress.step}: the same command continues from there")
                break
        else:
            made = [
                name for name in ("best.safetensors", "last.safetensors", "log.jsonl", "curves.png") if (out / name).exists()
            ]
            log.say(f"done: {out} has {', '.join(made)}")
    except ShardError as error:  # the data failed; what is saved is the state after the last step that was finished
        # A step fails on all ranks together. A validation may fail on one alone, which must not wait for the others:
        # its state was saved before it began.
        if not progress.validation_due:
            save_last()
        raise ShardError(f"{error} {SAVED}" if world.is_main else str(error)) from error
    batches.close()
    stop.close()
    log.close()


def replicate(model, world: World):
    """The model, its batch norms sharing their statistics, and what runs it on all devices at once."""
    if world.size == 1:
        return model, model
    if world.device.type == "cuda":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model, DistributedDataParallel(model, gradient_as_bucket_view=True)


def save_state(path: Path, tensors: dict, meta: Meta, world: World) -> None:
    """Write a checkpoint, once; on all ranks alike it succeeds or raises.

    Raises FloatingPointError, and leaves the file as it was, for a state that is not finite: nothing continues from one.
    """
    step, bad = meta.progress["step"], not_finite(tensors)
    if not math.isfinite(meta.progress["loss"]):
        bad.insert(0, "the loss")
    if not all_agree(not bad):
        what = f"{bad[0]} and {len(bad) - 1} more" if len(bad) > 1 else bad[0] if bad else "the state of another process"
        raise FloatingPointError(f"After step {step} {what} is not finite, so the state is not saved")
    problem = None
    try:
        if world.is_main:
            save_checkpoint(path, tensors, meta)
    except OSError as error:
        problem = error
    if not all_agree(problem is None):
        raise problem or OSError(f"Process 0 could not write {path}.")


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


def add_gradients(replica, batches, passes: int, samples: int, classes: int, train, world: World, autocast, log):
    """Forward and backward of one step, `passes` micro-batches long. Gradients are left in the parameters.

    Returns (2,) sums over this device's clips: of the weights, and of the weighted losses.
    """
    totals = torch.zeros(2, device=world.device)
    # Running statistics are all that a pass changes; they are put back if the step cannot be finished.
    buffers = [buffer.clone() for buffer in replica.buffers()] if passes > 1 else []
    for micro in range(passes):
        with log.waiting():
            batch = next_of_all_ranks(batches)
        if isinstance(batch, ShardError):
            for buffer, before in zip(replica.buffers(), buffers):
                buffer.copy_(before)
            raise batch
        clips, targets, weights = batch.clips, batch.labels, batch.weights
        if train.mixup or train.cutmix:
            draw = random.Random(f"mix {train.seed} {samples} {micro}")
            clips, targets = mix(clips, targets, classes, train.mixup, train.cutmix, draw)
            weights = weights * weights.flip(0)  # a clip that counts for nothing spoils its partner
        torch.manual_seed(step_seed(train.seed, samples, micro, world.rank))  # dropout
        synchronise = micro == passes - 1 or world.size == 1
        with nullcontext() if synchronise else replica.no_sync():
            with autocast():
                logits = replica(clips)
            losses = F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=train.label_smoothing)
            loss = (losses * weights).sum()
            # DDP takes the mean over devices; with this factor it becomes the mean over the batch
            (loss * (world.size / train.batch_size)).backward()
        totals += torch.stack((weights.sum(), loss.detach()))
    return totals


def next_of_all_ranks(batches):
    """The next batch; or, if any rank cannot read its own, a ShardError on all of them: none waits for another in vain."""
    try:
        batch = next(batches)
    except ShardError as error:
        batch = error
    if all_agree(not isinstance(batch, ShardError)) or isinstance(batch, ShardError):
        return batch
    return ShardError("Another process could not read its data.")


def open_loader(config: Config, world: World, split: str, manifest: str | list, batch_size: int, start: int = 0):
    """A loader of one split, for this rank."""
    data = config.data
    known = [field.name for field in fields(OrderOptions)]
    unknown = next((name for name in data.order if name not in known), None)
    if unknown is not None:
        raise ValueError(f"data.order.{unknown} is unknown: known are {', '.join(known)}.")
    misplaced = next((name for name in config.clips if name in known), None)
    if misplaced is not None:
        raise ValueError(
            f"clips.{misplaced} says in which order videos come, not how clips are cut: write data.order.{misplaced}."
        )
    ordered = data.order | {"sample_weights": data.sample_weights} if split == "train" else {}
    return build_loader(
        manifest,
        split,
        config.clips,
        batch_size,
        "gpu" if world.device.type == "cuda" else "cpu",
        world.rank,
        world.size,
        start,
        decode=data.decode,
        seed=config.train.seed,
        threads=data.threads,
        cache=data.cache,
        cache_size=data.cache_size,
        prefetch_bytes=data.prefetch_bytes,
        quarantine=Path(config.out) / f"quarantine-{split}.csv",
        num_frames=config.model.num_frames,
        size=backbone_spec(config.model.backbone).image_size,
        **ordered,
    )


def split_batch(batch_size: int, micro_batch: int | None, devices: int) -> tuple[int, int]:
    """(clips per device and forward pass, passes per step), so that a step is `batch_size` clips on any number of devices."""
    if batch_size % devices:
        raise ValueError(
            f"train.batch_size {batch_size} cannot be shared by {devices} devices: choose a multiple of {devices}."
        )
    per_device = batch_size // devices
    passes = math.ceil(per_device / (micro_batch or per_device))
    while per_device % passes:
        passes += 1
    return per_device // passes, passes


def layers_of(model):
    """The method's layer_of(name) for this model's depth, if it trains layers of the backbone."""
    layer_of = getattr(method_module(model.method), "layer_of", None)
    return layer_of and partial(layer_of, layers=model.spec.layers)


def how_stored(manifest: dict) -> dict:
    """How videos were stored, so that i2v.predict can store others alike."""
    return {key: manifest["made_with"][key] for key in ("codec", "gop", "short_side", "crf", "fps", "max_seconds")}


def check_labels(loader, val_loader) -> None:
    """Raises ValueError unless all videos are labelled, and validation has the same classes in the same order."""
    for each in (loader, val_loader):
        if each is not None and each.shards.clips["label"].min() < 0:
            raise ValueError(f"{each.shards.root} has videos without a label: it can be predicted, not trained or scored on.")
    if val_loader is not None and val_loader.shards.classes != loader.shards.classes:
        raise ValueError(
            f"{loader.shards.root} and {val_loader.shards.root} do not have the same class names in the same order: "
            f"make the second with --classes {loader.shards.root}/manifest.json."
        )


def step_seed(*where: int) -> int:
    """A seed that is a function of where the run is."""
    return int.from_bytes(hashlib.blake2b(repr(where).encode(), digest_size=8).digest(), "little") >> 1


def crosses(before: int, after: int, every: float) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return math.floor(after / every) > math.floor(before / every)


def describe(log: RunLog, config: Config, world: World, model, meta, source, dtype, batch: str, videos: int) -> None:
    trained = sum(p.numel() for p in model.trainable_parameters().values())
    frozen = sum(p.numel() for p in model.frozen_parameters().values())
    begin = f"continuing after step {meta.progress['step']}" if meta else "starting"
    log.say(
        f"{begin}: {config.model.method} in {config.out}, {videos} videos, "
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
    try:
        config = load_config(args.config, args.overrides)
        run(config, init_world(config.data.device))
    except (ValueError, TypeError, OSError, FloatingPointError, ShardError) as error:
        sys.exit(f"i2v.train: {error}")
    except KeyboardInterrupt:
        sys.exit("i2v.train: interrupted; the same command continues from the last checkpoint")
    finally:
        close_world()


if __name__ == "__main__":
    main()
