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
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import yaml

from i2v.atomic import replacing
from i2v.average_precision import Precision, mean_average_precision
from i2v.bmn import losses
from i2v.checkpoint import not_finite, optimizer_tensors, restore_optimizer, weights_of, write_tensors
from i2v.config import apply_override, build_config, read_config
from i2v.console import as_sentence, begin_command, interrupted
from i2v.continuation import flatten
from i2v.distributed import World, close_world, init_world, told_by_launcher
from i2v.localise_config import FREE_TO_CHANGE, LocaliseConfig
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
from i2v.pipelines.philox import uniforms
from i2v.progress import Progress
from i2v.runlog import RunLog
from i2v.saving import crosses
from i2v.segments import read_segments
from i2v.session import command
from i2v.stop import StopSignal

DRAWS = 15  # of the streams of random numbers, one that makes no clips


# ---- training --------------------------------------------------------------------------------------------------------


def run(config: LocaliseConfig, world: World, stop: StopSignal) -> bool:
    """Train in the folder config.out; whether the run came to its end."""
    try:
        with held(Path(config.out), world):
            return train_in(Path(config.out), config, world, stop)
    finally:
        stop.close()


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
    its = make_localiser(config, videos.channels, videos.row_seconds, classes, world.device)
    windows = TrainingWindows(videos, its.cut, its.labels)
    its = replace(its, stream=windows.fingerprint(), features=folders[0].about or None if len(folders) == 1 else None)
    if header:
        check_same_run(its, header, last)
        load_into(its.model, weights_of(tensors), str(last))
    elif train.init:
        load_into(its.model, unwrap_weights(train.init), train.init)
    check_val(val, its)
    groups = parameter_groups(dict(its.model.named_parameters()), train)
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
        f"{begun}: {len(windows)} windows of {its.cut.seconds:.4g} s with "
        f"{actions} segments, features of {its.channels} channels every {its.cut.row_seconds:.4g} s, on {world.device}"
    )
    write_text(out / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))

    def save():
        save_last(out, its, optimizer, progress)

    def check():
        """Save, for the case that what follows is interrupted; score; and save what came of it."""
        progress.validation_due = True
        save()
        validate(out, its, val, progress, progress.samples / len(windows), log)
        save()

    # ---- loop --------------------------------------------------------------------------------------------------------
    stop.begin()
    order = Order(np.zeros(len(windows), dtype=np.int64), OrderOptions(), train.seed)
    places = (
        [order[step * train.batch_size + i].clip for i in range(train.batch_size)] for step in range(progress.step, last_step)
    )
    batches = log.waiting_for(ahead(windows.batch, places))
    try:
        if progress.validation_due and val:
            check()
        while progress.step < last_step:
            if stop.wanted:
                save()
                log.say(f"stopped after step {progress.step}: the same command continues from there")
                return False
            before, epoch = progress.samples, progress.samples / len(windows)
            lr = learning_rate(epoch, train)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            loss, norm = take_step(its, optimizer, next(batches), progress.step)
            progress.advance(train.batch_size, loss, norm, torch.ones((), dtype=torch.bool, device=world.device))
            finished = progress.finished = progress.step == last_step
            if progress.step % train.log_every == 0 or finished:
                log.train(progress.step, progress.samples, progress.samples / len(windows), lr, progress.take_means())
            if val and (finished or crosses(before, progress.samples, train.eval_every * len(windows))):
                check()
            elif finished or progress.step % train.save_every == 0:
                save()
        made = ("best.safetensors", "last.safetensors", "results.csv", "detections.json", "log.jsonl")
        log.say(f"done: {out} has {', '.join(name for name in made if (out / name).exists())}")
        return True
    finally:
        batches.close()
        log.close()


def take_step(its: Localiser, optimizer, batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of the optimizer -> the loss and the gradient's norm, (). Raises FloatingPointError if they are not finite."""
    train = its.config.train
    features, maps = batch[0].to(its.device), {name: value.to(its.device) for name, value in batch[1].items()}
    shape = maps["iou_map"].shape
    draws = torch.from_numpy(uniforms(train.seed, DRAWS, 0, step, 2 * maps["iou_map"].numel())).float().view(2, *shape)
    output = its.model(features)
    kinds = tuple(its.labels.classes) if its.config.model.class_maps else ()
    parts = losses(output, maps, draws.to(its.device), kinds=kinds)
    weights = dict(zip(("tem", "pem_reg", "pem_cls"), train.loss_weights))
    loss = sum(weights.get(name, train.loss_weights[3]) * part for name, part in parts.items())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(its.model.parameters(), train.clip_grad or float("inf"))
    if not norm.isfinite():
        raise FloatingPointError(f"The gradient of step {step + 1} is not finite: start again with a lower train.lr.")
    optimizer.step()
    return loss.detach(), norm.detach()


def open_val(config: LocaliseConfig, folders, scores) -> LongVideos | None:
    if not config.data.val:
        return None
    return LongVideos(read_segments(config.data.val, "val"), folders, scores, config.data.row_seconds)


def check_same_run(its: Localiser, header: dict, path: Path) -> None:
    """Raises ValueError if a checkpoint belongs to another run than the one that is about to continue from it."""
    new, old = (flatten(json.loads(json.dumps(each))) for each in (asdict(its.config), header["config"]))
    for key in sorted(new.keys() | old.keys()):
        if key not in FREE_TO_CHANGE and new.get(key) != old.get(key):
            raise ValueError(
                f"{path} belongs to a run with {key} = {old.get(key)!r}, this one has {new.get(key)!r}: restore the value, or "
                "choose another folder with out=..."
            )
    about = its.header(Progress())
    others = {"row_seconds": "another distance of rows", "classes": "other classes", "stream": "other segments"}
    for key, what in {"channels": "features of another width", **others}.items():
        if about[key] != header[key]:
            raise ValueError(f"{path} belongs to a run with {what}: choose another folder with out=...")


def save_last(out: Path, its: Localiser, optimizer, progress: Progress) -> None:
    tensors = dict(its.model.state_dict()) | optimizer_tensors(optimizer)
    bad = not_finite(tensors)
    if bad:
        raise FloatingPointError(
            f"After step {progress.step} {bad[0]} is not finite, so the state is not saved: lower train.lr."
        )
    write_tensors(out / "last.safetensors", tensors, its.header(progress))


# ---- scoring ---------------------------------------------------------------------------------------------------------


def validate(out: Path, its: Localiser, val: LongVideos, progress: Progress, epoch: float, log: RunLog) -> None:
    """Find the segments of data.val, and score them where the list has some; best.safetensors keeps the best weights."""
    with log.pausing():
        results = score(out, its, val)
    progress.validation_due = False
    if results is None:
        return
    kind, mean = next(iter(results)), {kind: float(its.mean.mean()) for kind, its in results.items()}
    figures = {"mAP": mean[kind]} | ({f"mAP_{other}": value for other, value in mean.items()} if len(mean) > 1 else {})
    figures |= {f"mAP@{level:g}": float(value) for level, value in zip(its.config.detect.thresholds, results[kind].mean)}
    words = ", ".join(f"{other} {100 * value:.2f} %" for other, value in mean.items())
    log.figures(progress.step, epoch, figures, f"mean average precision: {words}")
    if progress.best is None or mean[kind] > progress.best:
        progress.best = mean[kind]
        write_tensors(out / "best.safetensors", its.model.state_dict(), its.header(progress, scores=figures))


def score(out: Path, its: Localiser, videos: LongVideos) -> dict[str, Precision] | None:
    """Write detections.json, and results.csv if the list has segments; returns the precision of each kind."""
    found = find_segments(its, videos)
    write_text(out / "detections.json", json.dumps(as_json(found, its.labels, bool(videos.kinds)), indent=1) + "\n")
    if not any(len(video.actions.segments) for video in videos.videos):
        return None
    thresholds = its.config.detect.thresholds
    results = mean_average_precision(its.labels.truth(videos), found, tuple(its.labels.classes), thresholds)
    write_text(out / "results.csv", table(results, thresholds))
    return results


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def one_process(device: str) -> World:
    if told_by_launcher()[1] > 1:
        raise ValueError("it runs in one process: start it without torchrun.")
    return init_world(device)


def score_checkpoint(path: str, overrides: list[str]) -> dict[str, Precision] | None:
    """What a trained network finds in data.val; results where its list has segments."""
    tensors, header = read_localiser(path)
    values = header["config"]
    for override in overrides:
        apply_override(values, override)
    config = build_config(LocaliseConfig, values, path)
    world = one_process(config.data.device)
    if not config.data.val:
        raise ValueError(f"{path} has no data.val, the list of videos to look at: set data.val=...")
    videos = open_val(config, *open_folders(config.data))
    its = make_localiser(config, header["channels"], header["row_seconds"], header["classes"], world.device)
    load_into(its.model, weights_of(tensors), str(path))
    check_val(videos, its)
    with held(Path(config.out), world):
        return score(Path(config.out), its, videos)


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
