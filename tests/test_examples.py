"""docs/examples: loops of other people with our loader, interrupted and continued, come to the same weights."""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from i2v.vit import VisionTransformer, ViTSpec

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
GEOMETRY = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "heads": 2, "embed_dim": 16}
SMALL = {"backbone": GEOMETRY, "frames": 4, "size": 32, "batch_size": 2}
STEPS, HALF = 4, 2


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    torch.manual_seed(0)
    save_file(VisionTransformer(ViTSpec(**GEOMETRY)).state_dict(), path)
    return path


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def seeded(train, *given, **more):
    torch.manual_seed(1)
    return {name: tensor.clone() for name, tensor in train(*given, **more).state_dict().items()}


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_plain_loop(shapes, clip, tmp_path):
    train, data = example("plain")["train"], shapes / "vp9"
    whole = seeded(train, data, clip, tmp_path / "whole.pt", STEPS, **SMALL)
    half = seeded(train, data, clip, tmp_path / "half.pt", HALF, **SMALL)
    assert not same(whole, half) and same(whole, seeded(train, data, clip, tmp_path / "half.pt", STEPS, **SMALL))


def test_lightning(shapes, clip, tmp_path):
    lightning = pytest.importorskip("lightning", reason="pip install lightning")
    Recogniser = example("with_lightning")["Recogniser"]

    def train(folder, steps, ckpt_path=None):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        keep = lightning.pytorch.callbacks.ModelCheckpoint(folder, "kept", every_n_train_steps=HALF, save_top_k=-1)
        trainer = lightning.Trainer(max_steps=steps, callbacks=[keep], default_root_dir=folder, **quiet)
        module = Recogniser(shapes / "vp9", clip, **SMALL)
        trainer.fit(module, ckpt_path=ckpt_path, weights_only=False) if ckpt_path else trainer.fit(module)
        return module.model

    whole = seeded(train, tmp_path / "whole", STEPS)
    half = seeded(train, tmp_path / "half", HALF)
    assert not same(whole, half)
    assert same(whole, seeded(train, tmp_path / "rest", STEPS, str(tmp_path / "half" / "kept.ckpt")))


def test_hugging_faces_trainer(shapes, clip, tmp_path):
    pytest.importorskip("transformers", reason="pip install transformers accelerate")
    pytest.importorskip("accelerate", reason="pip install transformers accelerate")
    train = example("with_transformers")["train"]
    quiet = {
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_steps": HALF,
        "seed": 1,
        "lr_scheduler_type": "constant",
    }

    def go(folder, steps, resume=None):
        return train(shapes / "vp9", clip, **SMALL, resume=resume, output_dir=str(folder), max_steps=steps, **quiet)

    whole = seeded(go, tmp_path / "whole", STEPS)
    half = seeded(go, tmp_path / "half", HALF)
    assert not same(whole, half)
    assert same(whole, seeded(go, tmp_path / "half", STEPS, str(tmp_path / "half" / f"checkpoint-{HALF}")))
