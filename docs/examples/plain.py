"""A loop of one's own that goes on where it was, to the bit: python docs/examples/plain.py shards/train ViT-B-16.pt"""

import os
import sys

import torch
import torch.nn.functional as F

import i2v
from i2v.pipelines import build_loader


def train(
    shards, weights, checkpoint="plain.pt", steps=1000, backbone="ViT-B-16", frames=8, size=224, batch_size=8, save_every=100
):
    loader = build_loader(shards, "train", num_frames=frames, size=size, batch_size=batch_size)
    model = i2v.create_model("st_adapter", backbone, frames, num_classes=len(loader.shards.classes))
    i2v.load_weights(model, weights, layout="clip")
    model.to("cuda" if loader.device == "gpu" else "cpu")
    trained = model.trainable_parameters()  # adapters and head; CLIP is frozen
    optimizer, done = torch.optim.AdamW(trained.values(), lr=5e-4, weight_decay=0.05), 0
    if os.path.exists(checkpoint):
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["data"])
        done = state["step"]
        torch.set_rng_state(state["random"])  # the head's dropout
    for step, batch in zip(range(done + 1, steps + 1), loader):
        losses = F.cross_entropy(model(batch.clips), batch.labels, reduction="none")
        (losses * batch.weights).mean().backward()  # a video that cannot be read has weight 0
        optimizer.step()
        optimizer.zero_grad()
        if step % save_every == 0 or step == steps:
            state = {"model": trained, "optimizer": optimizer.state_dict(), "data": loader.state_dict(), "step": step}
            torch.save(state | {"random": torch.get_rng_state()}, checkpoint)
    return model


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2])
