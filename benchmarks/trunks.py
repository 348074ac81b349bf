"""Every method on a trunk of every family: equal to the image model, trains, merges, exports, and what it costs.

    python benchmarks/trunks.py --json benchmarks/results/trunks.json

Equality, training, merging and export on a small model of each family's shape, made by timm with random weights: fresh, each
method is the image model with pooled frames, within 1e-4; five steps on the demo's videos lower the loss; merged and exported
models have the same logits. Multiply-accumulates are those of the family's own model at 224 pixels or its own size, 8 frames.
And of all pairs of name and tag that open_clip has: which build, and why the others do not.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file: import from the repository

import numpy as np
import timm
import torch
import torch.nn.functional as F
from tqdm import tqdm

import i2v
from benchmarks.machine import write_result
from benchmarks.measure import shown_command
from benchmarks.moving_shapes import CLASSES, draw_look, draw_poses, render
from i2v.complexity import count_macs
from i2v.export import make as export
from i2v.timm_towers import spec_of
from i2v.trunks import TIMM, backbone_spec, plain
from i2v.vit import VisionTransformer

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8}
FAMILIES = {  # a timm model of each, and what is another size there than in SMALL
    "CLIP": ("vit_base_patch16_clip_224", {}),
    "SigLIP, SigLIP 2": ("vit_base_patch16_siglip_224", {}),
    "SigLIP 2 SO400M": ("vit_so400m_patch16_siglip_256", {}),
    "DINOv2": ("vit_base_patch14_dinov2", {}),
    "DINOv2 with registers": ("vit_base_patch14_reg4_dinov2", {}),
    "DINOv2 giant": ("vit_giant_patch14_dinov2", {"mlp_ratio": 5.0}),
    "DINOv3": ("vit_base_patch16_dinov3", {}),
    "DINOv3 plus": ("vit_small_plus_patch16_dinov3", {}),
    "PE-Core": ("vit_pe_core_base_patch16_224", {"attn_pool_num_heads": 2}),
    "PE-Core giant": ("vit_pe_core_gigantic_patch14_448", {}),
    "EVA-01": ("eva_giant_patch14_224", {}),
    "EVA-02": ("eva02_base_patch14_224", {}),
    "EVA-02 CLIP": ("eva02_base_patch16_clip_224", {}),
}
METHODS = {
    "clip": {},
    "st_adapter": {"adapter_width": 8},
    "aim": {},
    "zeroi2v": {"shift_div": 8, "adapter_dropout": 0.0},
    "dist": {"integration_dim": 64, "temporal_dim": 16},
    "tada": {"route_head_dim": 8, "tubelet_stride": 1, "train": "adapters"},
    "lora": {"rank": 4, "targets": ["q", "v", "out", "fc1", "fc2"]},
    "attentive": {"depth": 2, "heads": 4},
}
FRESH = ("clip", "st_adapter", "aim", "zeroi2v", "tada", "lora")  # are the image model with pooled frames
FRAMES, SIDE, STEPS = 4, 32, 5


def small_model(family: str, num_classes: int = 0):
    """timm's model, small, with random weights everywhere: norms, biases, scales and registers too."""
    torch.manual_seed(0)
    name, size = FAMILIES[family]
    model = timm.create_model(name, num_classes=num_classes, **{**SMALL, **size}).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def on_trunk(method: str, theirs) -> i2v.model.VideoClassifier:
    """A fresh model of the method, with timm's weights in its trunk."""
    torch.manual_seed(1)
    head = {"type": "linear", "dropout": 0}
    model = i2v.create_model(method, plain(spec_of(theirs)), FRAMES, len(CLASSES), head, **METHODS[method])
    i2v.load_weights(model, theirs.state_dict(), "clip")
    return model


def distance_when_fresh(model, theirs, clips: torch.Tensor) -> float:
    """Of a still clip's features to those of its picture, relative to the largest of them where that is more than 1."""
    still = clips[:, :, :1].expand(-1, -1, FRAMES, -1, -1)
    with torch.no_grad():
        wanted = theirs(still[:, :, 0])
        found = model.eval().forward_features(still)
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1))


def losses(model, clips: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Of a few steps on one batch."""
    model.train()
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=3e-3)
    found = []
    for _ in range(STEPS):
        loss = F.cross_entropy(model(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def moving_clips() -> tuple[torch.Tensor, torch.Tensor]:
    """One of the demo's videos for each class: (8, 3, T, H, W), normalised roughly, and labels."""
    rng = np.random.default_rng(0)
    videos = [render(draw_look(rng), draw_poses(rng, name, FRAMES), (SIDE, SIDE), rng) for name in CLASSES]
    clips = torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3).float() / 64 - 1
    return clips.contiguous(), torch.arange(len(CLASSES))


def try_method(family: str, method: str) -> dict:
    theirs, (clips, labels) = small_model(family), moving_clips()
    model = on_trunk(method, theirs)
    found = {"fresh": distance_when_fresh(model, theirs, clips) if method in FRESH else None}
    first, *_, last = losses(model, clips, labels)
    found |= {"first_loss": first, "last_loss": last}
    model.eval().requires_grad_(False)
    logits = model(clips)
    if hasattr(i2v.model.method_module(method), "merge"):
        found["merged"] = float((i2v.merge_adapters(model)(clips) - logits).abs().max())
    with tempfile.TemporaryDirectory() as folder:
        program = export("pt2", model, clips[:2], Path(folder) / "model.pt2", {})
        found["exported"] = float((program(clips) - logits).abs().max())
    return found


def gmacs(family: str, method: str) -> float:
    name = FAMILIES[family][0]
    options = {name: value for name, value in METHODS[method].items() if name in ("targets", "train", "tubelet_stride")}
    spec = backbone_spec(TIMM + name)
    size = 224 if 224 % spec.patch_size == 0 and spec.patch_size in (14, 16) else spec.image_size
    spec = backbone_spec({"name": TIMM + name, "image_size": size})
    if method == "attentive":
        options["heads"] = spec.heads
    if method == "tada":
        options["route_head_dim"] = math.gcd(64, spec.width // 4)  # 64, or what divides the width that is routed
    with torch.device("meta"):
        model = i2v.create_model(method, plain(spec), 8, 400, **options)
    return sum(count_macs(model).values()) / 1e9


def try_pairs() -> dict:
    """Every name and tag of open_clip: how many build, and the reasons of the others by name."""
    import open_clip

    built, refused = Counter(), {}
    for name, tag in tqdm(open_clip.list_pretrained(), "pairs of open_clip"):
        try:
            with torch.device("meta"):
                VisionTransformer(backbone_spec(name, tag), project=True)
            built[name] += 1
        except ValueError as error:
            refused.setdefault(name, {"tags": 0, "reason": str(error)})["tags"] += 1
    return {"built": dict(built), "refused": refused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result and the machine here")
    args = parser.parse_args()
    rows = {}
    for family in tqdm(FAMILIES, "families"):
        rows[family] = {method: try_method(family, method) | {"gmacs": gmacs(family, method)} for method in METHODS}
    result = {"families": rows, "names": {family: name for family, (name, _) in FAMILIES.items()}, "pairs": try_pairs()}
    print(f"{sum(result['pairs']['built'].values())} pairs build")
    if args.json:
        write_result(args.json, shown_command("trunks.py"), result)


if __name__ == "__main__":
    main()
