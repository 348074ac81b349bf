"""From a configuration or a checkpoint to a model that looks at clips, on a device and in the right precision."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NoReturn

import torch

from i2v.checkpoint import Backbone, Meta, is_checkpoint, load_checkpoint, weights_of
from i2v.config import Config, ModelConfig, load_config, parse_option, to_dict
from i2v.console import begin_command, refuse_place
from i2v.model import VideoClassifier, create_model, head_kind, pictures, spec_of
from i2v.placement import autocast_for, choose_precision, place
from i2v.rules import Rule, broken
from i2v.text import text_features
from i2v.trunks import backbone_file, is_path, not_known, plain
from i2v.weights import COUNTER, TEXT_FEATURES, fingerprint, image_layout, load_weights

INCLUDED = "included"  # where a backbone is that no other file holds: in the checkpoint


@dataclass
class Session:
    """A model in eval mode, and what its checkpoint says about it; on the CPU in float32 until it is placed."""

    model: VideoClassifier
    meta: Meta
    device: torch.device = torch.device("cpu")
    precision: str = "float32"
    autocast: Callable = nullcontext  # gives the context in which the model runs

    def place(self, device: torch.device, precision: str) -> None:
        """Move the model to where it will run; precision: auto, bf16, fp16 or float32."""
        dtype = choose_precision(precision, device)
        place(self.model, device, dtype)
        self.device, self.precision, self.autocast = device, str(dtype).removeprefix("torch."), autocast_for(device, dtype)

    def fingerprint(self) -> str:
        """Of all that makes features, which is everything but the head. Call it before the model is placed."""
        return fingerprint({name: value for name, value in self.model.state_dict().items() if not name.startswith("head.")})

    @property
    def size(self) -> int:
        """Pixels along a side of the pictures that it evaluates."""
        return self.meta.clips.get("test_size") or self.model.spec.image_size

    def views(self, overrides: Iterable[str] = (), window=None, hop=None, pretext: bool = False) -> dict:
        """The arguments split, options and device of build_loader that show a video as the run's evaluation did.

        overrides: name=value that the user wants otherwise. window, hop: seconds, or frames as "64f"; windows that slide
        over the video instead, each seen from its centre if `overrides` do not say otherwise. pretext: moving stills, where the
        run was trained on those; else the clips of a video, since what it shows is not seen in one frame.
        """
        options = self.meta.clips | {"num_frames": self.model.num_frames} | pictures(self.model.spec)
        if not pretext:
            options.pop("pretext", None)
        given = dict(map(parse_option, overrides))
        options |= given
        split = "test"
        if window is not None:
            split, options = "windows", options | {"window": window, "hop": hop, "crops": given.get("crops", 1)}
        return {"split": split, "options": options, "device": "gpu" if self.device.type == "cuda" else "cpu"}


def open_session(args, classes_of: Callable[[Config], list[str]] | None = None) -> Session:
    """What --checkpoint or --config and --weights name. A configuration must be of a model that needs no training.

    classes_of: the class names of a configuration's data; None: its head will not be used. Raises ValueError or OSError.
    """
    if args.checkpoint:
        tensors, meta = load_checkpoint(args.checkpoint)
        return Session(restore_model(tensors, meta, args.weights).eval(), meta)
    config = load_config(args.config, [f"model.weights={args.weights}"] if args.weights else [])
    return session_of(config, args.config, "give its run's --checkpoint", classes_of)


def open_classifier(args) -> Session:
    """As open_session, for who will be told the classes of videos. Raises ValueError for a model that knows none."""
    session = open_session(args)
    if session.meta.clips.get("pretext"):
        raise ValueError(
            f"{args.checkpoint} tells how a crop moves over a still (clips.pretext), not what videos show: train on videos "
            "first, from there (model.init)."
        )
    return session


def session_of(config: Config, name: str, instead: str, classes_of: Callable[[Config], list[str]] | None = None) -> Session:
    """The model of an experiment that needs no training; see open_session. instead: what to do about one that does."""
    if config.clips.get("pretext"):
        raise ValueError(f"{name} has clips.pretext, which is for i2v.train: leave it out.")
    classes, described = ["none"], replace(config.model, head={"type": "linear"})
    if classes_of:
        classes, described = classes_of(config), config.model
    if note := not_known(config.model.backbone, config.model.weights):
        print(note, file=sys.stderr)
    model, source = build_model(described, classes)
    trained = [name for name in model.trainable_parameters() if classes_of or not name.startswith("head.")]
    if trained:
        which = "" if classes_of else f" ({trained[0]})"
        raise ValueError(f"{name} is a model that must be trained first{which}: {instead}.")
    backbone = Backbone(config.model.backbone, source, None)
    return Session(model.eval(), Meta(model.config, backbone, classes, clips=config.clips, config=to_dict(config)))


# ---- from weights to a model and back --------------------------------------------------------------------------------


def build_model(config: ModelConfig, classes: list[str], saved: Mapping[str, torch.Tensor] = {}) -> tuple[VideoClassifier, str]:
    """The model of an experiment with CLIP's weights, adapters fresh, and where the weights came from.

    A text head gets its class names, and their embeddings from the text tower of the same CLIP, unless they are given.
    saved: tensors that will be loaded afterwards; where they leave nothing to CLIP, its file is not needed, and embeddings of
    class names that are among them are not made again, which for many names takes long.
    """
    head = dict(config.head)
    is_text = head_kind(head) == "text"
    if is_text:
        names = head.setdefault("class_names", classes)
        if names != classes and set(names) == set(classes):
            raise ValueError("model.head.class_names has the classes of the data in another order: leave it out.")
    backbone = plain(spec_of(config.method, config.backbone, config.weights))
    model = create_model(config.method, backbone, config.num_frames, len(classes), head, **config.options)
    if is_complete(saved, model):
        return model, INCLUDED
    source = load_backbone(model, config.backbone, config.weights)
    if is_text and TEXT_FEATURES not in saved:
        if source == "random":
            raise ValueError("model.weights is random, but a text head needs CLIP's text tower: give CLIP's weights.")
        # What the tag says of the activation the file's path does not.
        how = model.config["head"]["templates"], getattr(model.spec, "activation", None)
        model.head.set_text_features(text_features(head["class_names"], config.backbone, source, *how))
    return model, source


def is_complete(tensors: Mapping[str, torch.Tensor], model: VideoClassifier) -> bool:
    """Whether a checkpoint's tensors fill the whole model: then no other file is asked for."""
    return all(name in tensors or name.endswith(COUNTER) for name in model.state_dict())


def load_backbone(model: VideoClassifier, name: str | dict, weights: str) -> str:
    """Fill the trunk with its image model's weights; returns where they came from.

    name: the backbone as configured. weights: a file or folder, a tag such as "openai", or "random".
    Raises ValueError or OSError with one sentence.
    """
    if weights == "random":
        return "random"
    path = weights if is_path(weights) else backbone_file(name, weights, getattr(model.spec, "activation", None))
    try:
        load_weights(model, path, image_layout(model))
    except ValueError as error:
        if not is_checkpoint(path):
            raise
        raise ValueError(
            f"{path} is the checkpoint of a run, not the weights of an image model: give those here. Training starts from a "
            "run's checkpoint by model.init, and the run's own command continues it."
        ) from error
    return str(path)


def describe_backbone(model: VideoClassifier, config: ModelConfig, source: str) -> Backbone:
    """Which frozen weights a checkpoint belongs to. It includes a random trunk, which is in no file, and one that trains.

    Call it before the model is placed.
    """
    where = INCLUDED if source == "random" or not model.frozen_parameters() else source
    return Backbone(config.backbone, where, fingerprint(model.frozen_parameters()))


def restore_model(tensors: dict[str, torch.Tensor], meta: Meta, weights: str | None = None) -> VideoClassifier:
    """The model of a checkpoint, complete: its own weights and those of its backbone.

    weights: where the backbone is, if not where the run had it. Raises ValueError if it is another backbone.
    """
    model, backbone = create_model(**meta.model), meta.backbone
    own = weights_of(tensors)
    where = weights or backbone.weights
    if where != INCLUDED and not is_complete(own, model):
        if weights is None and is_path(where) and not Path(where).exists():
            raise ValueError(
                f"The run had its backbone's weights at {where}, seen from the folder in which it was started, and seen from "
                "here there is no such file: say with --weights where it is (in a program: weights=)."
            )
        load_backbone(model, backbone.name, where)
        found = fingerprint(model.frozen_parameters())
        if found != backbone.fingerprint:
            raise ValueError(
                f"This checkpoint was trained on another backbone than {where} "
                f"(fingerprint {backbone.fingerprint}, found {found}): give the one it was trained on."
            )
    load_weights(model, own, layout="i2v")
    return model


def own_tensors(model: VideoClassifier, backbone: Backbone) -> dict[str, torch.Tensor]:
    """What a checkpoint holds: all that the backbone's file does not tell (backbone: see describe_backbone)."""
    frozen = {} if backbone.weights == INCLUDED else model.frozen_parameters()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


# ---- what commands share ---------------------------------------------------------------------------------------------


def seconds_or_frames(text: str) -> float | str:
    """ "1.5" -> 1.5; "64f" stays what it is: frames."""
    try:
        return text if text[:-1].isdecimal() and text.endswith("f") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither seconds, such as 1.5, nor frames, such as 64f.") from None


def count(text: str) -> int:
    """A whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1.")
    return int(text)


def real(rule: Rule) -> Callable[[str], float]:
    """What reads a finite number that the rule allows."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = None
        if wanted := broken(Annotated[float, rule], value):
            raise argparse.ArgumentTypeError(f"{text!r} must be {wanted}.")
        return value

    return read


PLACES = ("auto", "cpu", "gpu")
FLAGS = {
    "--checkpoint": {"type": Path, "help": "best.safetensors or last.safetensors of a run, or its folder"},
    "--weights": {"help": "the backbone's file or tag, if it is not where the run had it"},
    "--window": {"type": seconds_or_frames, "metavar": "S"},
    "--hop": {
        "type": seconds_or_frames,
        "metavar": "S",
        "help": "seconds from window to window, or frames: 8f (default: --window)",
    },
    "--batch-size": {"type": count, "metavar": "N"},
    "--device": {"default": "auto", "choices": PLACES},
    "--decode": {"default": "auto", "choices": PLACES},
    "--precision": {"default": "auto", "choices": ("auto", "bf16", "fp16", "float32")},
    "--cache": {"help": "where shards of a URL are staged"},
    "--cache-size": {"help": "how much of it they may fill, such as 200GB"},
    "--json": {"type": Path},
    "options": {"nargs": "*", "metavar": "name=value"},
}


def add_flags(to, *names: str, **own: str) -> None:
    """Add some of FLAGS to a parser or a group of it; own: what a flag is for in this command."""
    for name in names:
        about = own.get(name.lstrip("-").replace("-", "_"))
        to.add_argument(name, **FLAGS[name] | ({"help": about} if about else {}))


class Parser(argparse.ArgumentParser):
    """Of flags that it does not know, it says which are values of a configuration."""

    def error(self, message: str) -> NoReturn:
        if value := re.match(r"unrecognized arguments:.* --?(\w+\.[\w.]+)", message):
            message += f": a value of the configuration has no dashes, write {value[1]}=VALUE"
        super().error(message)


def command(name: str, about: str | None) -> argparse.ArgumentParser:
    return Parser(prog=name, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of a command, in which what flags mean together is right; else it ends with one sentence."""
    args = parser.parse_args()
    begin_command()
    if getattr(args, "hop", None) is not None and args.window is None:
        sys.exit(f"{parser.prog}: --hop says how far windows are apart: give --window as well.")
    try:
        refuse_place("--json", getattr(args, "json", None))
    except ValueError as error:
        sys.exit(f"{parser.prog}: {error}")
    return args
