"""A small experiment as its YAML file: 24 videos to train on, 16 to validate on, a CLIP of random weights, batches of 8."""

from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from i2v.vit import VisionTransformer, ViTSpec

GEOMETRY = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "heads": 2, "embed_dim": 16}


def write_experiment(folder: Path, shapes: Path, model: dict, train: dict, **sections) -> Path:
    """model, train: what is added to the small model and its training; sections: others; shapes: see conftest."""
    if "weights" not in model:
        torch.manual_seed(0)
        trunk = VisionTransformer(ViTSpec(**model.get("backbone", GEOMETRY)))
        save_file(trunk.state_dict(), folder / "clip.safetensors")
    values = {
        "model": {"backbone": GEOMETRY, "weights": str(folder / "clip.safetensors"), "num_frames": 2} | model,
        "data": {"train": str(shapes / "vp9"), "val": str(shapes / "vp9-val"), "device": "cpu", "threads": 1},
        "train": {"batch_size": 8, "compile": False, "log_every": 2} | train,
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(values | sections))
    return path


ST_ADAPTER = {"method": "st_adapter", "options": {"adapter_width": 8}}
