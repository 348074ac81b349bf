"""Teach frozen CLIP image transformers to understand video: five published adapter methods, one trainer.

model = i2v.create_model("st_adapter", backbone="ViT-B-16", num_frames=8, num_classes=400)
i2v.load_weights(model, "ViT-B-16.pt", layout="clip")
logits = model(clips)  # (B, 3, T, H, W) normalised -> (B, num_classes)

i2v.load("runs/mine").predict("video.mp4")  # or "org/name" on the Hugging Face hub
"""

import importlib
import os
from typing import TYPE_CHECKING

from i2v.console import quiet_start

if TYPE_CHECKING:
    from i2v.model import create_model, merge_adapters
    from i2v.predictor import Predictor, load
    from i2v.weights import load_weights

quiet_start()

# Installed, the rooms `pipelines` and `shard_tools` are inside this package; in a checkout they lie beside it.
if not os.path.isdir(os.path.join(__path__[0], "pipelines")):
    __path__.append(os.path.dirname(__path__[0]))

EXPORTS = {
    "create_model": "i2v.model",
    "merge_adapters": "i2v.model",
    "load_weights": "i2v.weights",
    "load": "i2v.predictor",
    "Predictor": "i2v.predictor",
}

__all__ = ["Predictor", "create_model", "load", "load_weights", "merge_adapters"]


def __getattr__(name: str):
    # Imported when asked for: torch takes seconds, and not every program of this package needs it.
    if name in EXPORTS:
        return getattr(importlib.import_module(EXPORTS[name]), name)
    raise AttributeError(f"module 'i2v' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *EXPORTS]
