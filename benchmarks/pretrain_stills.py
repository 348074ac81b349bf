"""Trains a small image transformer on still pictures: the demo's stand-in for CLIP, or DINOv2, made in under a minute.

    python benchmarks/pretrain_stills.py --out data/demo/clip.safetensors
    python benchmarks/pretrain_stills.py --out data/demo/dinov2.safetensors --shape dinov2-like
    python benchmarks/pretrain_stills.py --convnext --out data/demo/convnext.safetensors      # in place of ImageNet's

Like CLIP it has seen many pictures and no motion: it learns to tell where a shape is, how large it is, how it is turned
and which shape it is. The pictures are drawn in memory (benchmarks/moving_shapes.py); the weights have CLIP's names, so
they are read as CLIP's are (model.weights in a configuration, i2v.load_weights with layout="clip"). With --convnext it is a
ConvNeXt under the names of its authors' files, for TAdaConvNeXtV2, which itself is one as long as it sees single frames.
"""

import argparse
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from benchmarks.moving_shapes import KINDS, STILL_POSES, render_stills
from i2v.methods import tadaconvnext
from i2v.vit import VisionTransformer, ViTSpec

SHAPES = {  # what of a ViTSpec is not CLIP's
    "clip": {},
    "dinov2-like": {"registers": 4, "patch_bias": True, "ln_pre": False, "activation": "gelu", "norm_eps": 1e-6}
    | {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "projection": "none"},
}
GEOMETRY = {"image_size": 32, "patch_size": 8, "width": 96, "layers": 4, "heads": 4, "embed_dim": 96}
CONVNEXT = tadaconvnext.Spec(depths=(1, 1, 2, 1), dims=(32, 64, 96, 128), image_size=32)
POSE = ("x", "y", "size", "angle")
HELD_OUT = 1024  # stills that are only for the last line
PER_LOOK = 8


def draw_stills(count, size, seed):
    """images uint8 (N, size, size, 3), poses float (N, 4) scaled to mean 0 and variance 1, kinds (N,); N >= count."""
    rng = np.random.default_rng([seed, 2])  # 0 and 1 are the videos' (benchmarks.moving_shapes.write_videos)
    looks = range(math.ceil(count / PER_LOOK))
    images, poses, kinds = zip(*(render_stills(rng, PER_LOOK, (size, size)) for _ in looks))
    low, high = np.array(STILL_POSES)
    poses = (np.concatenate(poses) - (low + high) / 2) / ((high - low) / 12**0.5)  # of a uniform distribution
    kinds = torch.tensor(kinds).repeat_interleave(PER_LOOK)
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(poses).float(), kinds


def normalise(images, spec):
    """uint8 (N, H, W, 3) -> float (N, 3, H, W), as the model's inputs are."""
    return ((images.float() / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)).permute(0, 3, 1, 2).contiguous()


def convnext():
    """A trunk of TAdaConvNeXtV2 that sees one frame: its routing and its mean over frames stay out of it."""
    model = tadaconvnext.build(CONVNEXT, 1, tubelet_size=1, tubelet_stride=1)
    for block in model.blocks:
        block.dwconv_rf.requires_grad_(False)
        block.norm_avgpool.requires_grad_(False)
        nn.init.ones_(block.gamma)
    return model


def convnext_file(state):
    """The trunk's tensors with the names and in the shapes of an image model's file."""
    state = {name: value for name, value in state.items() if not set(name.split(".")) & set(tadaconvnext.ADDED)}
    fit = {1: lambda v: v, 2: lambda v: v, 3: lambda v: v[0, 0], 5: lambda v: v[:, :, 0], 6: lambda v: v[0, 0]}
    return {name: fit[value.ndim](value).contiguous() for name, value in state.items()}


def predict(model, head, images):
    """Pose and kind as every token sees them: (N, L, 4) and (N, L, kinds); the class token comes first."""
    images = normalise(images, model.spec)
    if isinstance(model, VisionTransformer):
        tokens = model.ln_post(model.encode(model.embed(images)))
    else:
        tokens = model(images[:, :, None])[:, None].expand(-1, 2, -1)  # all that a ConvNeXt has is its pooled features
    return head(tokens).split((len(POSE), len(KINDS)), dim=-1)


def still_loss(model, head, images, poses, kinds):
    """The patch tokens learn the pose too: as in CLIP they know of the whole picture, and adapters see only them."""
    pose, kind = predict(model, head, images)
    every_token = poses[:, None].expand_as(pose)
    loss = F.smooth_l1_loss(pose[:, 0], every_token[:, 0]) + F.smooth_l1_loss(pose[:, 1:], every_token[:, 1:])
    return loss + 0.1 * F.cross_entropy(kind[:, 0], kinds)


def pretrain(spec, stills, steps, batch, lr, seed):
    """Trains on all but the last HELD_OUT of the stills -> model, head."""
    torch.manual_seed(seed)
    model = VisionTransformer(spec) if isinstance(spec, ViTSpec) else convnext()
    head = nn.Linear(model.feature_dim, len(POSE) + len(KINDS))
    parameters = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / (0.1 * steps)) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    with tqdm(total=steps, desc="stills", unit="step", disable=not sys.stderr.isatty()) as bar:
        for step in range(1, steps + 1):
            chosen = torch.randint(len(stills[0]) - HELD_OUT, (batch,))
            loss = still_loss(model, head, *(part[chosen] for part in stills))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            bar.update()
            if step % max(1, steps // 10) == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
                if bar.disable:
                    print(f"stills: step {step}/{steps}, loss {loss.item():.3f}", flush=True)
    return model, head


@torch.no_grad()
def report(model, head, images, poses, kinds):
    """What the class token knows of stills it was not trained on, as one line."""
    pose, kind = predict(model, head, images)
    explained = 1 - (pose[:, 0] - poses).square().mean(0) / poses.var(0)
    known = ", ".join(f"{name} {100 * part:.1f} %" for name, part in zip(POSE, explained.tolist()))
    return f"variance explained: {known}; shape right: {100 * (kind[:, 0].argmax(1) == kinds).float().mean():.1f} %"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help=".safetensors file to write")
    add("--shape", choices=SHAPES, default="clip", help="of which family (default: %(default)s)")
    for name, default in GEOMETRY.items():
        add(f"--{name.replace('_', '-')}", type=int, default=default, help="default: %(default)s")
    add("--convnext", action="store_true", help="a small ConvNeXt, of a fixed geometry, instead")
    add("--stills", type=int, default=16384, help="pictures to train on (default: %(default)s)")
    add("--steps", type=int, default=1000, help="default: %(default)s")
    add("--batch", type=int, default=64, help="default: %(default)s")
    add("--lr", type=float, default=3e-3, help="default: %(default)s")
    add("--threads", type=int, default=2, help="of the CPU (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    return parser.parse_args()


def main():
    args = parse_arguments()
    start = time.perf_counter()
    torch.set_num_threads(args.threads)
    spec = ViTSpec(**{name: getattr(args, name) for name in GEOMETRY}, **SHAPES[args.shape])
    spec = CONVNEXT if args.convnext else spec
    stills = draw_stills(args.stills + HELD_OUT, spec.image_size, args.seed)
    model, head = pretrain(spec, stills, args.steps, args.batch, args.lr, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(convnext_file(model.state_dict()) if args.convnext else model.state_dict(), args.out)
    line = report(model, head, *(part[-HELD_OUT:] for part in stills))
    print(f"{args.out}: {line}; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
