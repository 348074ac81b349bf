"""A training step of the convolutional trunks beside the same network with one kernel per frame, in turns in one process.

    python benchmarks/convolutions.py                     # both at their real size, small clips, one thread of a CPU
    python benchmarks/convolutions.py --size 224 --clips 8 --rounds 20 --json ...     # on a GPU

The references are written as the papers print them: channels first, nn.Conv3d, torch's own average pool, and a grouped
convolution with a kernel of its own for every frame of every clip. They hold the same parameters; first logits and gradients
must agree with ours, in float64. Then both take steps, one after the other. Other processes only ever add time, so that the
figure is the least of several rounds, forward and backward by themselves; on a CPU of the time that this process was given.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from benchmarks.machine import write_result
from benchmarks.measure import shown_command
from i2v.model import create_model

METHODS = {"tada2d": ("resnet50", 8), "tadaconvnext": ("tiny", 16)}  # backbone, frames


def kernel_per_frame(conv, x, alpha, alpha_bias=None):
    """(B, Cin, T, H, W) -> (B, Cout, T, H', W'), as the authors compute it."""
    b, _, t, _, _ = x.shape
    factor = "b c t 1 1 -> b t 1 c 1 1" if conv.cal_dim == "cin" else "b c t 1 1 -> b t c 1 1 1"
    kernels = (rearrange(alpha, factor) * conv.weight).flatten(0, 2)
    bias = None if conv.bias is None else (rearrange(alpha_bias, "b c t 1 1 -> b t c") * conv.bias).flatten()
    geometry = conv.geometry | {"groups": conv.geometry["groups"] * b * t}
    y = F.conv2d(rearrange(x, "b c t h w -> 1 (b t c) h w"), kernels, bias, **geometry)
    return rearrange(y, "1 (b t c) h w -> b c t h w", b=b, t=t)


def mean_of_three(y):
    return F.avg_pool3d(y, (3, 1, 1), 1, (1, 0, 0))


def tada2d(model, clips):
    trunk = model.backbone
    x = F.relu(trunk.conv1.a_bn(trunk.conv1.a(clips)))
    for block in trunk.blocks:
        short = x if block.short_cut is None else block.short_cut_bn(block.short_cut(x))
        branch = block.conv_branch
        y = F.relu(branch.a_bn(branch.a(x)))
        y = kernel_per_frame(branch.b, y, branch.b_rf(y))
        y = F.relu(branch.b_bn(y) + branch.b_avgpool_bn(mean_of_three(y)))
        x = F.relu(short + branch.c_bn(branch.c(y)))
    return model.head(x.mean((2, 3, 4)))


def tadaconvnext(model, clips):
    trunk = model.backbone

    def normed(norm, x):
        return norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)

    stem, norm = trunk.downsample_layers[0]
    x = normed(norm, stem(clips))
    for i, stage in enumerate(trunk.stages):
        if i:
            norm, halve = trunk.downsample_layers[i]
            x = halve(normed(norm, x))
        for block in stage:
            y = kernel_per_frame(block.dwconv, x, *block.dwconv_rf(x))
            y = (normed(block.norm, y) + normed(block.norm_avgpool, mean_of_three(y))).permute(0, 2, 3, 4, 1)
            y = block.pwconv1(y)
            y = block.gamma * block.pwconv2(y * torch.sigmoid(1.702 * y))
            x = x + y.permute(0, 4, 1, 2, 3)
    return model.head(trunk.norm(x.mean((2, 3, 4))))


def make(method, args, device):
    torch.manual_seed(0)
    backbone, frames = METHODS[method]
    model = create_model(method, backbone, frames, 400, {"type": "linear", "dropout": 0}).to(device).train()
    for name, parameter in model.named_parameters():  # nothing hides behind a zero
        if name.endswith(("b.weight", "b_bias.weight", "gamma", "avgpool.weight", "avgpool_bn.weight")) and parameter.ndim != 6:
            nn.init.normal_(parameter, std=0.02)
    clips = torch.randn(args.clips, frames, args.size, args.size, 3, device=device).permute(0, 4, 1, 2, 3)
    return model, clips


def step(forward, model, clips, clock):
    """(logits, gradients, seconds of the forward pass, of the backward pass)."""
    begin = clock()
    logits = forward(model, clips)
    middle = clock()
    F.cross_entropy(logits, torch.zeros(len(clips), dtype=torch.long, device=clips.device)).backward()
    end = clock()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return logits.detach(), gradients, middle - begin, end - middle


def difference(ours, theirs) -> float:
    """The largest of logits and of gradients, relative to the largest of each. Raises ValueError above 1e-9."""
    worst = ((ours[0] - theirs[0]).abs().max() / theirs[0].abs().max()).item()
    largest = max(g.abs().max().item() for g in theirs[1].values())
    worst = max(worst, *((g - theirs[1][name]).abs().max().item() / largest for name, g in ours[1].items()))
    if not worst < 1e-9:
        raise ValueError(f"our step and the reference differ by {worst:.1e}")
    return worst


def compare(method, args, device) -> dict:
    model, clips = make(method, args, device)
    contenders = {"reference": globals()[method], "ours": lambda model, clips: model(clips)}
    first_clips = clips.contiguous()  # as the authors' loader gives them

    def clock():
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() if device.type == "cuda" else time.process_time()

    # In float64: 50 layers of batch norms and ReLUs make more of a rounding error than there is to find.
    small = clips[:, :, :6, :64, :64].double()
    made = [step(forward, model.double(), small, clock) for forward in contenders.values()]
    found = {"difference": difference(*made)}
    model.float()
    for forward in contenders.values():
        step(forward, model, clips, clock)  # warms up
    times = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, forward in contenders.items():
            given = clips if name == "ours" else first_clips
            times[name].append(step(forward, model, given, clock)[2:])
    for i, part in enumerate(("forward", "backward")):
        least = {name: min(each[i] for each in values) for name, values in times.items()}
        found[part] = least | {"times": least["reference"] / least["ours"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--size", type=int, default=128, help="pixels, a multiple of 32, default: %(default)s")
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result, the machine and the command here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, found = torch.device("cuda" if torch.cuda.is_available() else "cpu"), {}
    for method in args.methods:
        found[method] = compare(method, args, device)
        for part in ("forward", "backward"):
            r = found[method][part]
            said = f"one kernel per frame {r['reference']:.3f} s, ours {r['ours']:.3f} s: {r['times']:.2f} times as fast"
            print(f"{method:14} {part:9} {said}", flush=True)
    if args.json:
        shape = {key: getattr(args, key) for key in ("size", "clips", "rounds", "threads")}
        write_result(args.json, shown_command("convolutions.py"), shape | {"methods": found})


if __name__ == "__main__":
    main()
