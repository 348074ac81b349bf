"""Training that starts from what another training ended with: SSv2 from Kinetics, Kinetics-400 from Kinetics-710."""

from __future__ import annotations

from pathlib import Path

from i2v.checkpoint import Meta, is_checkpoint, load_checkpoint, of_folder, weights_of
from i2v.model import VideoClassifier, create_model, spec_of
from i2v.session import INCLUDED, load_backbone
from i2v.trunks import plain
from i2v.weights import fingerprint, load_weights

HEAD = "head."


def start_from(model: VideoClassifier, path: str, classes: list[str], source: str) -> tuple[str, str]:
    """Load a checkpoint of the same method, ours or its authors', into a model that has its backbone, but for a head of
    other classes.

    source: where the backbone came from. Returns where it is now, and a sentence: what was loaded and what is fresh.
    Raises ValueError if anything but the head does not fit.
    """
    before, path, why = fingerprint(model.frozen_parameters()), str(of_folder(path)), "its classes are others"
    if is_checkpoint(path):
        tensors, meta = load_checkpoint(path)
        _check(meta, model, path, before, source)
        state, same_kind = weights_of(tensors), _kind(meta.model) == _kind(model.config)
        if meta.classes == classes and not same_kind:
            why = "it is another head"
        if meta.classes != classes or not same_kind:
            state = {name: tensor for name, tensor in state.items() if not name.startswith(HEAD)}
        report = load_weights(model, state, "i2v", HEAD)
    else:
        if not Path(path).exists():
            raise ValueError(f"model.init {path} does not exist: give a checkpoint of {model.method}.")
        report = load_weights(model, path, "auto", HEAD)
    fresh = [name for name in report.missing if name in model.trainable_parameters()]
    if any(not name.startswith(HEAD) for name in fresh):
        raise ValueError(f"model.init {path} has a backbone and nothing that {model.method} trains: give it as model.weights.")
    head = [name for name in report.loaded if name.startswith(HEAD)]
    said = f"{len(report.loaded)} tensors are those of {path}, " + (
        f"fresh are {', '.join(fresh)}: {why}"
        if fresh
        else f"none is fresh{': its head has the same classes' if head else ', as nothing of a text head trains'}"
    )
    # A trunk that came along is in no file of CLIP's, so the run's checkpoints must hold it.
    return source if fingerprint(model.frozen_parameters()) == before else INCLUDED, said


def _kind(model: dict) -> list:
    """What makes a head, beside its classes: of another kind, or with other prompts, nothing of it can be taken. model: as
    create_model has it."""
    return [model["head"].get(name) for name in ("type", "class_names", "templates")]


def _check(meta: Meta, model: VideoClassifier, path: str, found: str, source: str) -> None:
    """found: the fingerprint of the model's frozen parameters, which are those at `source`."""
    if meta.model["method"] != model.method:
        raise ValueError(f"model.init {path} was trained with {meta.model['method']}, this is {model.method}.")
    theirs, ours = (plain(spec_of(model.method, backbone)) for backbone in (meta.model["backbone"], model.config["backbone"]))
    if theirs["image_size"] != ours["image_size"]:
        theirs, ours = _of_any_size(theirs), _of_any_size(ours)
    other = next((name for name in ours if theirs[name] != ours[name]), None)
    if other is not None:  # the same tensors would mean something else
        raise ValueError(
            f"model.init {path} was trained on a backbone with {other} {theirs[other]!r}, this one has {ours[other]!r}: set "
            "model.backbone as it was, or start from another file."
        )
    fits = meta.backbone.weights == INCLUDED or meta.backbone.fingerprint == found
    if fits or meta.backbone.fingerprint == _found_by(meta, source):
        return
    raise ValueError(
        f"model.init {path} was trained on another backbone, or other parts of it, than model.weights gives: "
        f"it was {meta.backbone.name} from {meta.backbone.weights}."
    )


def _of_any_size(spec: dict) -> dict:
    """Without the size of the pictures and where rotary positions lie in them; learned ones are resampled."""
    rotary = spec.get("rotary") and {name: value for name, value in spec["rotary"].items() if name not in ("first", "step")}
    return spec | {"image_size": None, "rotary": rotary}


def _found_by(meta: Meta, source: str) -> str | None:
    """The fingerprint that the checkpoint's own model finds at `source`: with a text head it has frozen tensors that one with a
    linear head lacks, and for pictures of another size other positions."""
    if source == "random":
        return None
    theirs = create_model(**meta.model)
    load_backbone(theirs, meta.backbone.name, source)
    return fingerprint(theirs.frozen_parameters())
