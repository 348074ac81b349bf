"""Our training step beside the same step written as the papers print it, in turns in one process.

    python benchmarks/step.py                                          # four layers of ViT-B/16, small batch, on a CPU
    python benchmarks/step.py --layers 12 --clips 32 --json ...        # on a GPU

The references use torch's own modules where a reader would: nn.MultiheadAttention, nn.Conv3d on permuted tokens, one kernel
per frame for TAdaConv, all tokens in every layer. They hold the same parameters; first their logits and gradients must agree
with ours, in float32. Then both take steps, one after the other, and the result is the median of the ratios of their times.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from benchmarks.machine import write_result
from benchmarks.measure import shown_command, spread
from i2v.model import create_model
from i2v.placement import autocast_for, compile_blocks, place

METHODS = {  # as in the recipes of Kinetics-400, without what is random; frames
    "st_adapter": (8, {}),
    "aim": (8, {}),
    "zeroi2v": (8, {"adapter_dropout": 0.0}),
    "tada": (8, {"tubelet_stride": 1, "train": "adapters"}),
}


class Attention(nn.MultiheadAttention):
    """CLIP's, with the sequence first as in the released code."""

    def forward(self, x):
        x = x.transpose(0, 1)  # (L, N, C)
        return super().forward(x, x, x, need_weights=False)[0].transpose(0, 1)


def attention(ours) -> Attention:
    """torch's module with the parameters of ours."""
    theirs = Attention(ours.out_proj.in_features, ours.heads, device="meta")
    theirs.in_proj_weight, theirs.in_proj_bias = ours.in_proj_weight, ours.in_proj_bias
    theirs.out_proj.weight, theirs.out_proj.bias = ours.out_proj.weight, ours.out_proj.bias
    return theirs


def st_adapter(block, attn, x, frames):
    def adapter(a, x):
        grid, patches = a.grid, a.fc1(x[:, 1:])
        patches = rearrange(patches, "(b t) (h w) c -> b c t h w", t=frames, h=grid).contiguous()
        patches = rearrange(a.conv(patches), "b c t h w -> (b t) (h w) c").contiguous()
        y = x.clone()
        y[:, 1:] = y[:, 1:] + a.fc2(patches)
        return y

    x = x + attn(block.ln_1(x))
    x = adapter(block.adapter_pre_mlp, x)
    return x + block.mlp(block.ln_2(x))


def aim(block, attn, x, frames):
    time = rearrange(block.ln_1(x), "(b t) l c -> (b l) t c", t=frames)
    time = rearrange(block.T_Adapter(attn(time)), "(b l) t c -> (b t) l c", l=x.shape[1])
    x = x + time
    x = x + block.S_Adapter(attn(block.ln_1(x)))
    y = block.ln_2(x)
    return x + block.mlp(y) + block.scale * block.MLP_Adapter(y)


def zeroi2v(block, attn, x, frames):
    def adapter(a, x):
        return x + a.scale * a.D_fc2(a.D_fc1(x))

    def shifted(x):
        x = rearrange(x, "(b t) l c -> b t l c", t=frames)
        y, start = x.clone(), 0
        for channels, by in block.shifts:
            for t in range(frames):
                source = t + by if 0 <= t + by < frames else t
                y[:, t, :, start : start + channels] = x[:, source, :, start : start + channels]
            start += channels
        return rearrange(y, "b t l c -> (b t) l c")

    q, k, v = F.linear(adapter(block.T_Adapter_in, block.ln_1(x)), attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
    q, k, v = (rearrange(y, "n l (h d) -> n h l d", h=attn.num_heads) for y in (q, shifted(k), shifted(v)))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    x = x + adapter(block.S_Adapter, attn.out_proj(rearrange(weights @ v, "n h l d -> n l (h d)")))
    return x + adapter(block.MLP_Adapter_out, block.mlp(adapter(block.MLP_Adapter, block.ln_2(x))))


def tada(block, attn, x, frames):
    a = block.tada
    y = rearrange(a.tada_pre_proj(x[:, 1:]), "(b t) (h w) c -> b c t h w", t=frames, h=a.grid).contiguous()
    conv = a.tadaconv
    alpha, alpha_bias = conv.rf_func(y)  # (B, C, T, 1, 1)
    kernels = rearrange(alpha, "b c t 1 1 -> (b t c) 1 1 1") * conv.weight[0, 0].repeat(len(y) * frames, 1, 1, 1)
    biases = rearrange(alpha_bias, "b c t 1 1 -> (b t c)") * conv.bias[0, 0].repeat(len(y) * frames)
    per_frame = rearrange(y, "b c t h w -> 1 (b t c) h w")
    z = F.conv2d(per_frame, kernels.to(y.dtype), biases.to(y.dtype), padding=1, groups=kernels.shape[0])
    z = rearrange(z, "1 (b t c) h w -> b c t h w", b=len(y), t=frames)
    z = conv.bn_a(z) + conv.bn_b(F.avg_pool3d(z, (3, 1, 1), 1, (1, 0, 0)))
    z = rearrange(a.gelu(z), "b c t h w -> (b t) (h w) c").contiguous()
    x = torch.cat((x[:, :1], x[:, 1:] + a.tada_proj(z)), dim=1)
    x = x + attn(block.ln_1(x))
    return x + block.mlp(block.ln_2(x))


def reference(model, method: str):
    """(B, 3, T, H, W) -> logits with the parameters of ours: every layer as printed, on all tokens."""
    trunk, layer = model.trunk, {"st_adapter": st_adapter, "aim": aim, "zeroi2v": zeroi2v, "tada": tada}[method]
    attentions = [attention(block.attn) for block in trunk.transformer.resblocks]

    def forward(clips):
        frames = clips.shape[2]
        images = rearrange(clips, "b c t h w -> (b t) c h w")
        if method == "tada":
            patches = rearrange(trunk.conv1(clips), "b c t h w -> (b t) (h w) c")
        else:
            patches = rearrange(trunk.conv1(images), "n c h w -> n (h w) c")
        first = trunk.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        x = torch.cat((first, patches), dim=1) + trunk.positional_embedding
        if method in ("aim", "zeroi2v"):
            x = rearrange(
                rearrange(x, "(b t) l c -> b t l c", t=frames) + trunk.temporal_embedding[:, :, None], "b t l c -> (b t) l c"
            )
        x = trunk.ln_pre(x)
        for block, attn in zip(trunk.transformer.resblocks, attentions):
            x = layer(block, attn, x, frames)
        if method in ("aim", "zeroi2v"):
            x = rearrange(trunk.ln_post(x[:, 0]), "(b t) c -> b t c", t=frames).mean(1)
        else:
            x = trunk.ln_post(rearrange(x[:, 0], "(b t) c -> b t c", t=frames).mean(1))
        return model.head(x)

    return forward


def make(method: str, args, device: torch.device, dtype: torch.dtype):
    torch.manual_seed(0)
    frames, options = METHODS[method]
    heads = args.width // 64
    backbone = dict(image_size=args.size, patch_size=16, width=args.width, layers=args.layers, heads=heads, embed_dim=64)
    model = create_model(method, backbone, frames, 400, {"type": "linear", "dropout": 0}, **options)
    for parameter in model.trainable_parameters().values():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    place(model, device, dtype)
    clips = torch.randn(args.clips, frames, args.size, args.size, 3, device=device).permute(0, 4, 1, 2, 3)
    return model.train(), clips


def step(forward, model, clips, autocast):
    with autocast():
        logits = forward(clips)
    F.cross_entropy(logits.float(), torch.zeros(len(clips), dtype=torch.long, device=clips.device)).backward()
    gradients = {name: p.grad for name, p in model.trainable_parameters().items()}
    model.zero_grad(set_to_none=True)
    return logits.detach(), gradients


def check(method: str, args, device: torch.device) -> float:
    """The largest difference of logits and of gradients relative to the largest gradient. Raises ValueError above 1e-3."""
    model, clips = make(method, args, device, torch.float32)
    autocast = autocast_for(device, torch.float32)
    logits, gradients = step(model, model, clips, autocast)
    expected, wanted = step(reference(model, method), model, clips, autocast)
    worst = (logits - expected).abs().max().item()
    largest = max(g.abs().max().item() for g in gradients.values())
    for name, gradient in gradients.items():
        other = torch.zeros_like(gradient) if wanted[name] is None else wanted[name]
        worst = max(worst, (gradient - other).abs().max().item() / largest)
    if not worst < 1e-3:
        raise ValueError(f"{method}: our step and the reference differ by {worst:.1e}")
    return worst


def compare(method: str, args, device: torch.device, dtype: torch.dtype, compiled: bool) -> dict:
    """Seconds of a step, theirs and ours in turns, and the ratio of each pair."""
    model, clips = make(method, args, device, dtype)
    theirs, autocast = reference(model, method), autocast_for(device, dtype)
    ours, _ = make(method, args, device, dtype)
    if compiled:
        compile_blocks(ours)
    times = {"reference": [], "ours": []}
    for round in range(args.rounds + 2):
        for name, forward, owner in (("reference", theirs, model), ("ours", ours, ours)):
            begin = time.perf_counter()
            step(forward, owner, clips, autocast)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round > 1:  # the first ones compile and warm up
                times[name].append(time.perf_counter() - begin)
    ratios = [a / b for a, b in zip(times["reference"], times["ours"])]
    return {name: spread(values) for name, values in times.items()} | {"times": statistics.median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--size", type=int, default=224, help="pixels, default: %(default)s")
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="our blocks compiled, as the trainer has them")
    parser.add_argument("--json", type=Path, help="write the result, the machine and the command here")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    for method in args.methods:
        found[method] = {"difference": check(method, args, device)}
        for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
            found[method][name] = compare(method, args, device, dtype, args.compile)
            r = found[method][name]
            print(
                f"{method:12} {name:8} reference {r['reference']['median']:.3f} s, ours {r['ours']['median']:.3f} s: "
                f"{r['times']:.2f} times as fast",
                flush=True,
            )
    if args.json:
        shape = {key: getattr(args, key) for key in ("layers", "width", "size", "clips", "rounds", "compile")}
        write_result(args.json, shown_command("step.py"), shape | {"methods": found})


if __name__ == "__main__":
    main()
