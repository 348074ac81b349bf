"""What a figure was measured on, and how it is kept: JSON under benchmarks/results."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import torch

from i2v.doctor import processor


def describe_machine() -> dict:
    """GPU, CPU, cores and versions."""
    import nvidia.dali

    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "dali": nvidia.dali.__version__,
        "python": platform.python_version(),
    }


def write_result(path: Path, command: str, result: dict) -> None:
    """Write a result with the command that made it and the machine it ran on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": command, "machine": describe_machine()} | result, indent=1) + "\n")
