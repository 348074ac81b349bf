"""Teach frozen CLIP image transformers to understand video: five published adapter methods, one trainer.

    model = i2v.create_model("st_adapter", backbone="ViT-B-16", num_frames=8, num_classes=400)
    i2v.load_weights(model, "ViT-B-16.pt", layout="clip")
    logits = model(clips)  # (B, 3, T, H, W) normalised -> (B, num_classes)
"""

from i2v.model import create_model, merge_adapters
from i2v.weights import load_weights

__all__ = ["create_model", "load_weights", "merge_adapters"]
