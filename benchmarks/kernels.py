"""What the device does with the shapes of the five methods: memory, products, attention by each of torch's kernels.

The rooflines of docs/performance.md assume rates; these are the measured ones. Needs no DALI and no data.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

CLIPS, FRAMES, TOKENS, HEADS, WIDTH = 64, 8, 197, 12, 768  # of a step: ViT-B/16 at 224 pixels
BACKENDS = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


def memory(device: str, clips: int = CLIPS) -> dict:
    """A copy of the residual stream, times 16: bytes read and written."""
    here = torch.empty(16 * clips * FRAMES * TOKENS * WIDTH, dtype=torch.bfloat16, device=device)
    there = torch.empty_like(here)
    seconds = timed(lambda: there.copy_(here), device)
    return {"ms": 1e3 * seconds, "tb_per_s": 2 * here.nbytes / seconds / 1e12}


def product(device: str, dtype: torch.dtype, clips: int = CLIPS) -> dict:
    """The MLP's first product, in bf16 or float8_e4m3fn (with one scale for each side)."""
    rows = clips * FRAMES * TOKENS // 16 * 16
    x, w = (torch.randn(n, WIDTH, device=device).to(dtype) for n in (rows, 4 * WIDTH))
    if dtype == torch.bfloat16:
        seconds = timed(lambda: x @ w.t(), device)
    else:
        one = torch.ones((), device=device)
        seconds = timed(lambda: torch._scaled_mm(x, w.t(), one, one, out_dtype=torch.bfloat16), device)
    return {"ms": 1e3 * seconds, "tflop_per_s": 2 * rows * WIDTH * 4 * WIDTH / seconds / 1e12}


def qkv(device: str, products: int, clips: int = CLIPS) -> dict:
    """Queries, keys and values of a frozen attention and the gradient through them: as one product, whose gradients are
    copied together, or as three."""
    x = torch.randn(clips * FRAMES * TOKENS, WIDTH, device=device, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(3 * WIDTH, WIDTH, device=device, dtype=torch.bfloat16).chunk(products)
    gradients = [torch.randn_like(x) for _ in range(3)]

    def both():
        made = [part for weight in weights for part in F.linear(x, weight).chunk(3 // products, dim=-1)]
        return torch.autograd.grad(made, x, gradients)

    return {"ms": 1e3 * timed(both, device)}


def attention(device: str, backend: str | None, sequences: int, length: int, together: int = 1) -> dict:
    """Forward and backward; together: so many sequences are read as one, with a block-diagonal mask. backend: None is torch's
    own choice. difference: of the output from float32's, at most, in the first sequences."""
    shape = (sequences // together, HEADS, length * together, WIDTH // HEADS)
    q, k, v, grad = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(4))
    own = torch.arange(shape[2], device=device) // length
    mask = own[:, None] == own if together > 1 else None
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def both():
        return torch.autograd.grad(F.scaled_dot_product_attention(*inputs, attn_mask=mask), inputs, grad)

    with sdpa_kernel([getattr(SDPBackend, name) for name in ([backend] if backend else BACKENDS)]):
        seconds = timed(both, device)
        made = F.scaled_dot_product_attention(q[:2], k[:2], v[:2], attn_mask=mask)
    with sdpa_kernel([SDPBackend.MATH]):
        exact = F.scaled_dot_product_attention(*(x[:2].float() for x in (q, k, v)), attn_mask=mask)
    return {"ms": 1e3 * seconds, "difference": (made - exact).abs().max().item()}


def questions(device: str, clips: int = CLIPS) -> dict[str, Callable[[], dict]]:
    """What is asked, by name; each may end in an error of its own."""
    frames, positions = clips * FRAMES, clips * TOKENS
    together = next(n for n in (16, 8, 4, 2, 1) if positions % n == 0)
    asked = {
        "memory": lambda: memory(device, clips),
        "product bf16": lambda: product(device, torch.bfloat16, clips),
        "product fp8": lambda: product(device, torch.float8_e4m3fn, clips),
    }
    for products in (1, 3):
        asked[f"q, k, v as products: {products}"] = lambda n=products: qkv(device, n, clips)
    for backend in (None, *BACKENDS):
        name = backend.split("_")[0].lower() if backend else "default"
        asked[f"attention over tokens, {name}"] = lambda b=backend: attention(device, b, frames, TOKENS)
        if backend != "MATH":  # whose 12,608 x 12 small products say nothing
            asked[f"attention over frames, {name}"] = lambda b=backend: attention(device, b, positions, FRAMES)
            asked[f"the same, {together} in one, {name}"] = lambda b=backend: attention(device, b, positions, FRAMES, together)
    return asked


def timed(work: Callable, device: str, rounds: int = 5) -> float:
    """Seconds that it takes: the median of rounds of four calls, after two."""

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(2):
        work()
    taken = []
    for _ in range(rounds):
        wait()
        begin = time.perf_counter()
        for _ in range(4):
            work()
        wait()
        taken.append((time.perf_counter() - begin) / 4)
    return statistics.median(taken)
