"""The same with Lightning (pip install lightning): python docs/examples/with_lightning.py shards/train ViT-B-16.pt"""

import sys

import lightning
import torch
import torch.nn.functional as F

import i2v
from i2v.pipelines import build_loader


class Recogniser(lightning.LightningModule):
    def __init__(self, shards, weights, backbone="ViT-B-16", frames=8, size=224, batch_size=8):
        super().__init__()
        self.loader = build_loader(shards, "train", num_frames=frames, size=size, batch_size=batch_size)
        self.model = i2v.create_model("st_adapter", backbone, frames, num_classes=len(self.loader.shards.classes))
        i2v.load_weights(self.model, weights, layout="clip")

    def train_dataloader(self):
        return map(
            vars, self.loader
        )  # Lightning moves tensors of dicts; without a length it asks for a batch more than it uses

    def training_step(self, batch):
        self.seen = batch["samples_seen"]
        clips, labels, weights = batch["pixels"], batch["labels"], batch["weights"]
        return (F.cross_entropy(self.model(clips), labels, reduction="none") * weights).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.model.trainable_parameters().values(), lr=5e-4, weight_decay=0.05)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["data"] = self.loader.state_dict() | {"samples_seen": self.seen}  # of the batch that was trained on last
        checkpoint["random"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint):
        self.loader.load_state_dict(checkpoint["data"])
        torch.set_rng_state(checkpoint["random"])


if __name__ == "__main__":
    lightning.Trainer(max_steps=1000).fit(Recogniser(*sys.argv[1:3]), ckpt_path="last")
