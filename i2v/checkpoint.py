"""Checkpoints: one safetensors file each, written to a temporary name and renamed, so that it is whole or not there.

A checkpoint holds only what was trained, under the model's own names; and last.safetensors the optimizer's state under
"optimizer/<parameter>/<name>" and the average of the weights, if there is one, under "ema/<name>". Its header is JSON: Meta.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from i2v.atomic import replacing
from i2v.config import with_defaults
from i2v.distributed import World, all_agree

FORMAT = "i2v-checkpoint"
VERSION = 1  # of Meta: its fields are only added to, with defaults that complete older files
MODEL = "model.safetensors"  # of a folder that i2v.push made
PREFERRED = ("best.safetensors", "last.safetensors", MODEL)  # of a folder
OPTIMIZER, EMA = "optimizer/", "ema/"


@dataclass(frozen=True)
class Backbone:
    """Which frozen weights a checkpoint belongs to."""

    name: str | dict  # as configured
    weights: str  # where the run had them
    fingerprint: str | None


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says beside its tensors: what the model is, how it looks at clips, and how it was made."""

    model: dict  # arguments of create_model
    backbone: Backbone
    classes: list[str]
    stored: dict = field(default_factory=lambda: {"codec": "vp9", "gop": 8, "short_side": 256})  # how its videos were encoded
    stream: dict | None = None  # which videos it was trained on (Loader.fingerprint); None: not known
    clips: dict = field(default_factory=dict)  # options of build_loader
    config: dict = field(default_factory=dict)  # of the run, with the defaults of what came later
    progress: dict = field(default_factory=lambda: {"step": 0})  # how far the run was
    scores: dict | None = None  # of the validation after that step
    imported_from: str | None = None  # somebody else's file
    factors: dict = field(default_factory=dict)  # of what the classes are combinations: factor -> names of its classes
    several: bool = False  # whether a video has several of the classes


def save_checkpoint(path: Path, tensors: dict[str, torch.Tensor], meta: Meta) -> None:
    """Write tensors and meta (JSON) atomically. Raises OSError, one sentence, if there is no room or no way to write."""
    said = {name: value for name, value in asdict(meta).items() if value is not None}
    write_tensors(path, tensors, {"format": FORMAT, "version": VERSION} | said)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], header: dict | None = None) -> None:
    """A safetensors file, with a JSON header if there is one, whole or not there. Raises OSError, one sentence."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # what the user's umask says; save_file makes files that only their owner reads
            save_file(tensors, temporary, header and {"i2v": json.dumps(header)})
            temporary.chmod(mode)
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while serializing: ").removeprefix("I/O error: ")
        kept = f"{path.name} is still the one from before" if path.exists() else "there is none yet"
        raise OSError(f"{path} cannot be written ({reason}): free some space or repair the disk; {kept}.") from error


def of_folder(path: str | Path) -> Path:
    """The checkpoint that a run's folder stands for; a path of anything else as it is. Raises ValueError."""
    path = Path(path)
    if not path.is_dir():
        return path
    found = next((path / name for name in PREFERRED if (path / name).exists()), None)
    if found is None:
        raise ValueError(f"{path} has no model: there is none of {', '.join(PREFERRED)} in it.")
    return found


def is_checkpoint(path: str | Path) -> bool:
    """Whether save_checkpoint wrote this file."""
    try:
        with safe_open(path, "pt") as file:
            return "i2v" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], Meta]:
    """(tensors, meta) of a file that save_checkpoint wrote, or of a run's folder. Raises ValueError, one sentence, if it is
    not one."""
    path = of_folder(path)
    tensors, header = read_tensors(path)
    if header.get("format") != FORMAT or not {"model", "backbone", "classes"} <= header.keys():
        raise ValueError(f"{path} was not written by i2v.train: give the best.safetensors or last.safetensors of a run.")
    if (version := header.get("version", 1)) > VERSION:
        raise ValueError(f"{path} is of version {version}, this program reads up to {VERSION}: install a newer i2v.")
    said = {entry.name: header[entry.name] for entry in fields(Meta) if entry.name in header}
    said |= {"backbone": Backbone(**header["backbone"]), "config": with_defaults(header.get("config", {}))}
    return tensors, Meta(**said)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, header) of a file that write_tensors wrote; of another the header is empty. Raises ValueError, one sentence."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        open(path, "rb").close()  # safe_open says of every file that it may not read that it does not exist
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("i2v", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: give a checkpoint that i2v.train wrote.") from None
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): change its permissions, or give a copy.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({error}): copy it again, or give another.") from error
    return tensors, header


def save_state(path: Path, tensors: dict, meta: Meta, world: World) -> None:
    """Write a checkpoint, once; on all ranks alike it succeeds or raises.

    Raises FloatingPointError, and leaves the file as it was, for a state that is not finite: nothing continues from one.
    """
    step, bad = meta.progress["step"], bad_numbers(tensors, meta.progress)
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


def weights_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a checkpoint's tensors the model's own, under its names."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith((OPTIMIZER, EMA))}


def bad_numbers(tensors: dict[str, torch.Tensor], progress: dict) -> list[str]:
    """What keeps a state from being saved: the loss or tensors, by name, that are not finite. progress: as_dict of it."""
    return ([] if math.isfinite(progress["loss"]) else ["the loss"]) + not_finite(tensors)


def after_divergence(out: str, lr: float, precision: str = "float32") -> str:
    """What there is to do when numbers are not finite any more: the same command would come to the same end. lr, precision: of
    the run in the folder `out`."""
    last, kept = Path(out) / "last.safetensors", "nothing was saved yet"
    if last.exists():
        kept = f"{last} is kept as it was after step {read_tensors(last)[1]['progress']['step']}"
    return (
        f"{kept}, but continued it would come to the same end; start again in another folder with a lower learning rate "
        f"(out={out}-2 train.lr={lr / 3:.1g}){'' if precision == 'float32' else ', or with train.precision=float32'}."
    )


def not_finite(tensors: dict[str, torch.Tensor]) -> list[str]:
    """The names of tensors that hold a number that is infinite or none. Waits for the device once."""
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    if not names:
        return []
    fine = [tensors[name].isfinite().all() for name in names]
    fine = torch.stack([flag.to(fine[0].device, non_blocking=True) for flag in fine]).tolist()
    return [name for name, good in zip(names, fine) if not good]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state by parameter name; its groups carry the names (i2v/optim.py)."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"]):
            for key, value in optimizer.state[parameter].items():
                tensors[f"{OPTIMIZER}{name}/{key}"] = value
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what optimizer_tensors gave. Raises ValueError if the parameters are not the same."""
    parameters = {n: p for group in optimizer.param_groups for n, p in zip(group["names"], group["params"])}
    states: dict[str, dict] = {name: {} for name in parameters}
    for key, value in tensors.items():
        if key.startswith(OPTIMIZER):
            name, entry = key[len(OPTIMIZER) :].rsplit("/", 1)
            if name not in states:
                raise ValueError(
                    f"The checkpoint's optimizer knows {name}, which this model does not train: choose another out=..."
                )
            parameter = parameters[name]
            # Element beside element: the fused AdamW goes through parameter and state by their place in memory.
            like = parameter.detach() if value.shape == parameter.shape else value.to(parameter.device)
            states[name][entry] = torch.empty_like(like, dtype=value.dtype).copy_(value)
    for name, state in states.items():
        if state:  # there is none for a parameter that never had a gradient
            optimizer.state[parameters[name]] = state
