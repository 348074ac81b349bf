"""The same with Hugging Face's Trainer (pip install transformers accelerate):
python docs/examples/with_transformers.py shards/train ViT-B-16.pt"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

import i2v
from i2v.pipelines import build_loader


class Recogniser(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels, labels, weights, **_):
        losses = F.cross_entropy(self.model(pixels), labels, reduction="none")
        return {"loss": (losses * weights).mean()}


class VideoTrainer(Trainer):
    def get_train_dataloader(self):
        return map(vars, self.train_dataset)  # a mapping is what the Trainer takes


class KeepPlace(TrainerCallback):
    def __init__(self, loader):
        self.loader = loader

    def on_save(self, args, state, control, **_):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / "data.json").write_text(json.dumps(self.loader.state_dict()))


def train(shards, weights, backbone="ViT-B-16", frames=8, size=224, batch_size=8, resume=None, **arguments):
    loader = build_loader(shards, "train", num_frames=frames, size=size, batch_size=batch_size)
    model = i2v.create_model("st_adapter", backbone, frames, num_classes=len(loader.shards.classes))
    i2v.load_weights(model, weights, layout="clip")
    if resume:
        loader.load_state_dict(json.loads((Path(resume) / "data.json").read_text()))
    arguments = TrainingArguments(learning_rate=5e-4, weight_decay=0.05, ignore_data_skip=True, **arguments)
    trainer = VideoTrainer(Recogniser(model), arguments, train_dataset=loader, callbacks=[KeepPlace(loader)])
    trainer.train(resume_from_checkpoint=resume)
    return model


if __name__ == "__main__":
    train(*sys.argv[1:3], output_dir="transformers", max_steps=1000)
