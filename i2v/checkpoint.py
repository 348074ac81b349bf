"""Checkpoints: one safetensors file each, written to a temporary name and renamed, so that it is whole or not there.

A checkpoint holds only what was trained, under the model's own names, and (last.safetensors) the optimizer's state
under "optimizer/<parameter>/<name>". Its header is JSON: how to rebuild the model, which backbone it belongs to, class
names, how clips were cut, and where in the data the run is.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from i2v.atomic import replacing

FORMAT = "i2v-checkpoint"
VERSION = 1  # of the header; a key that a later version adds has a default, with which older files are completed
OPTIMIZER = "optimizer/"


def save_checkpoint(path: Path, tensors: dict[str, torch.Tensor], meta: dict) -> None:
    """Write tensors and meta (JSON) atomically. Raises OSError, one sentence, if there is no room or no way to write."""
    header = {"format": FORMAT, "version": VERSION} | meta
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # what the user's umask says; save_file makes files that only their owner reads
            save_file(tensors, temporary, {"i2v": json.dumps(header)})
            temporary.chmod(mode)
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while serializing: ").removeprefix("I/O error: ")
        kept = f"{path.name} is still the one from before" if path.exists() else "there is none yet"
        raise OSError(f"{path} cannot be written ({reason}): make room or mend the disk; {kept}.") from error


def load_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, meta) of a file that save_checkpoint wrote. Raises ValueError with one sentence if it is not one."""
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {}).get("i2v", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: give a checkpoint that i2v.train wrote.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}.") from error
    if meta.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by i2v.train.")
    if meta["version"] > VERSION:
        raise ValueError(f"{path} is of version {meta['version']}, this program reads up to {VERSION}: install a newer i2v.")
    return tensors, meta


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
                raise ValueError(f"The checkpoint's optimizer knows {name}, which this model does not train.")
            # AdamW counts its steps on the CPU, unless it is fused
            on_cpu = entry == "step" and not optimizer.defaults.get("fused")
            states[name][entry] = value.clone() if on_cpu else value.to(parameters[name].device, copy=True)
    for name, state in states.items():
        if state:  # there is none for a parameter that never had a gradient
            optimizer.state[parameters[name]] = state
