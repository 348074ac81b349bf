"""What one training step of a configuration does, counted and not timed: without memory or arithmetic, alike everywhere.

    python benchmarks/anatomy.py configs/st_adapter/k400_vit-b16_8f.yaml configs/aim
    python benchmarks/anatomy.py --json benchmarks/results/anatomy.json       # the recipes below

Per clip: multiply-accumulates of the forward pass and of the step, bytes kept for the backward pass. Per step of
`--clips` clips in bf16: kernels started. Twice: operators one by one, and with compiled blocks as the trainer has them.

The model lives on fake tensors: torch's dispatcher, autocast, autograd and compiler do what they always do, but no kernel
is built or run. Where torch sees a CUDA device the compiler writes for that device and says how many bytes each kernel moves;
then there is a roofline too: FLOP over RATES["products"], bytes over RATES["memory"], and the time to start each kernel.
Its `blocks` are what is compiled, `rest` is the stem, the head and the loss; the optimizer's step is in neither. There the
step is also planned as `train.compile: autotune` could have it at best: every product written by the compiler, at the
library's rate, with all that it can fuse into it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository

import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch._inductor import compile_fx, config, graph, select_algorithm
from torch._inductor.scheduler import NopKernelSchedulerNode
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.measure import shown_command
from i2v.complexity import files
from i2v.config import ModelConfig, load_config
from i2v.model import VideoClassifier, create_model
from i2v.placement import autocast_for, compile_blocks, place

CONFIGS = (
    "configs/st_adapter/k400_vit-b16_8f.yaml",
    "configs/st_adapter/ssv2_vit-b16_8f.yaml",
    "configs/aim/k400_vit-b16_8f.yaml",
    "configs/zeroi2v/k400_vit-b16_8f.yaml",
    "configs/dist/k400_vit-b16_8+16f.yaml",
    "configs/tada/k400_vit-b16_16f.yaml",
)
RATES = {  # what an H100 is taken to reach
    "products": 650e12,  # FLOP/s of bf16 matrix products
    "convolutions": 325e12,
    "attention": 350e12,
    "attention backward": 280e12,
    "memory": 2.76e12,  # bytes/s of a kernel that only reads and writes: 92 % of a measured copy
    "start": 3e-6,  # seconds until a kernel does anything
    "start of a product": 4e-6,
    "start of attention": 6e-6,  # or of a convolution
}
WAYS = ("eager", "compiled", "autotuned")
KINDS = ("products", "attention", "convolutions", "element-wise")
aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}
FLOP = flop_registry | {  # torch does not know a CPU's attention
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[aten._scaled_dot_product_flash_attention_backward],
}
NO_KERNEL = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
    "detach",
    "scalar_tensor",
}


class Counter(TorchDispatchMode):
    """Collects the kernels of what runs under it: (kind, seconds on the device of RATES). What a compiled graph does is said
    by the graph itself, by `compiled`."""

    def __init__(self):
        super().__init__()
        self.rest, self.blocks, self.flop, self.paused = [], [], 0, False

    @classmethod
    def is_infra_mode(cls):  # or nothing would be compiled under it
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self.paused and starts_a_kernel(func):
            self.rest.append(kernel(func, args, kwargs or {}, out))
            count = FLOP.get(func._overloadpacket, lambda *args, **more: 0)
            self.flop += count(*args, **kwargs or {}, out_val=out)
        return out

    def compiled(self, kernels: list, run):
        def call(*args):
            was, self.paused = self.paused, True
            try:
                return run(*args)
            finally:
                self.paused = was
                if not was:
                    self.blocks += kernels

        return call


def starts_a_kernel(func) -> bool:
    """Whether an operator computes; one that gives a view of its input does not."""
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    return not views and func._schema.name.split("::")[1] not in NO_KERNEL and func.namespace == "aten"


def kernel(func, args, kwargs, out) -> tuple[str, float]:
    """(kind, seconds) of an operator on tensors, real, fake or of a traced graph."""
    tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
    moved = sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
    name = func._schema.name
    if func in PRODUCTS:
        flop = 2 * out.numel() * args[-2].shape[-1]
        return "products", max(flop / RATES["products"], moved / RATES["memory"]) + RATES["start of a product"]
    if "scaled_dot_product" in name or "flash_attention" in name or "efficient_attention" in name:
        backward = "backward" in name
        (*batch, length, dim), keys = args[backward].shape, args[backward + 1].shape[-2]
        flop = 4 * math.prod(batch) * length * keys * dim * (2.5 if backward else 1)
        rate = RATES["attention backward" if backward else "attention"]
        return "attention", max(flop / rate, moved / RATES["memory"]) + RATES["start of attention"]
    if name == "aten::convolution":
        flop = 2 * out.numel() * math.prod(args[1].shape[1:])
        return "convolutions", max(flop / RATES["convolutions"], moved / RATES["memory"]) + RATES["start of attention"]
    if name == "aten::convolution_backward":
        flop = 2 * args[0].numel() * math.prod(args[2].shape[1:]) * sum(map(bool, args[-1][:2]))
        return "convolutions", max(flop / RATES["convolutions"], moved / RATES["memory"]) + RATES["start of attention"]
    return "element-wise", moved / RATES["memory"] + RATES["start"]


class Planned(Exception):
    """The compiler has said which kernels it would write, which is all that is wanted of it."""


def backend(counter: Counter):
    """A backend for torch.compile that decides all that its own decides, and then writes and builds no code."""

    def inner(gm, inputs, **options):
        written = []

        def stop(self):
            self._update_scheduler()
            nodes = [node for node in self.scheduler.nodes if not node.is_extern() and node.get_device() is not None]
            written.extend(planned(node) for node in nodes if not isinstance(node, NopKernelSchedulerNode))
            raise Planned

        with mock.patch.object(graph.GraphLowering, "codegen", stop):
            try:
                compile_fx.compile_fx_inner(gm, inputs, **options)
            except Exception as error:
                if "Planned" not in f"{error!r} {error.__cause__!r}":
                    raise
        own = {product for product, *_ in written}
        calls = [n for n in gm.graph.nodes if n.op == "call_function" and is_library_call(n.target) and n.name not in own]
        kernels = [call(n) for n in calls] + [(kind, seconds) for _, kind, seconds in written]
        return make_boxed_func(counter.compiled(kernels, gm.forward))

    return lambda gm, inputs: compile_fx.compile_fx(gm, inputs, inner_compile=inner)


def planned(node) -> tuple[str, str, float]:
    """(name of the library call that it replaces or "", kind, seconds) of a kernel that the compiler would write."""
    moved = node.get_read_write_buffers_sizes() / RATES["memory"]
    if not node.is_template():
        return "", "element-wise", moved + RATES["start"]
    product = next(n for n in node.get_template_node().get_origins() if is_library_call(n.target))
    kind, seconds = call(product)
    return product.name, kind, max(seconds, moved + RATES["start of a product"])


def call(node) -> tuple[str, float]:
    """(kind, seconds) of a library's kernel in a traced graph."""
    return kernel(node.target, *values((node.args, node.kwargs)), node.meta["val"])


def is_library_call(target) -> bool:
    return target in PRODUCTS or "scaled_dot_product" in str(target) or "aten.convolution" in str(target)


def values(nodes):
    return torch.utils._pytree.tree_map(lambda n: n.meta["val"] if isinstance(n, torch.fx.Node) else n, nodes)


@contextmanager
def products_written():
    """The compiler writes every product itself: the first of the ways it knows, not the fastest, as none is run."""
    choose = select_algorithm.AlgorithmSelectorCache.__call__

    def first(self, name, choices, *args, **options):
        own = [choice for choice in choices if isinstance(choice, select_algorithm.TritonTemplateCaller)]
        return choose(self, name, own[:1] or choices[:1], *args, **options)

    with (
        config.patch(max_autotune_gemm=True, max_autotune_gemm_backends="TRITON", max_autotune_conv_backends="ATEN"),
        mock.patch.object(select_algorithm.AlgorithmSelectorCache, "__call__", first),
    ):
        yield


@contextmanager
def compiler_at_rest():
    """Settings with which the compiler runs nothing on a device, and forgets."""
    with (
        torch._functorch.config.patch(enable_autograd_cache=False),
        config.patch(fx_graph_cache=False, compile_threads=1, shape_padding=False, joint_graph_constant_folding=False),
    ):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()


def fake_model(model: ModelConfig, device: torch.device, classes: int = 400) -> VideoClassifier:
    """The model of an experiment as the trainer has it in bf16, on fake tensors. Its head is linear: as cheap as any."""
    with unset_fake_temporarily(), torch.device("meta"):
        built = create_model(model.method, model.backbone, model.num_frames, classes, {"type": "linear"}, **model.options)
        place(built, torch.device("meta"), torch.bfloat16)
    for module in built.modules():
        for owned in (module._parameters, module._buffers):
            for name, t in owned.items():
                if t is not None:
                    fake = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)
                    owned[name] = torch.nn.Parameter(fake, t.requires_grad) if owned is module._parameters else fake
    return built.train()


def scores(model: VideoClassifier, clips: int, device: torch.device) -> torch.Tensor:
    size = model.spec.image_size
    batch = torch.empty(clips, model.num_frames, size, size, 3, device=device).permute(0, 4, 1, 2, 3)
    with autocast_for(device, torch.bfloat16)():
        return model(batch).float()


def step(model: VideoClassifier, clips: int, device: torch.device) -> None:
    """Forward, loss and backward of a step."""
    F.cross_entropy(scores(model, clips, device), torch.zeros(clips, dtype=torch.long, device=device)).backward()
    model.zero_grad(set_to_none=True)


def macs(model: VideoClassifier, clips: int, device: torch.device) -> tuple[float, float]:
    """(forward, step) multiply-accumulates of matrix products, convolutions and attention, per clip."""
    with Counter() as whole:
        step(model, clips, device)
    with Counter() as forward, torch.no_grad():
        scores(model, clips, device)
    return forward.flop / 2 / clips, whole.flop / 2 / clips


def kept(model: VideoClassifier, clips: int, device: torch.device) -> tuple[float, float]:
    """(bytes, share in float32) that a step keeps for its backward pass, per clip, without the model's own tensors."""
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found.setdefault(storage._cdata, (storage.nbytes(), tensor.dtype, tensor))  # kept alive: its address is its name
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(model, clips, device)
    total = sum(size for size, *_ in found.values())
    return total / clips, sum(size for size, dtype, _ in found.values() if dtype == torch.float32) / max(total, 1)


def anatomy(model: ModelConfig, clips: int, device: torch.device) -> dict:
    """All figures of one experiment."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        built = fake_model(model, device)
        forward, whole = macs(built, clips, device)
        found = {"forward_gmacs": forward / 1e9, "step_gmacs": whole / 1e9}
        for name in WAYS if device.type == "cuda" else WAYS[:2]:
            with compiler_at_rest(), products_written() if name == "autotuned" else nullcontext():
                counter = Counter()
                if name != "eager":
                    compile_blocks(built, backend=backend(counter))
                    step(built, clips, device)  # compiles
                size, in_float32 = kept(built, clips, device)
                counter.rest, counter.blocks = [], []
                with counter:
                    step(built, clips, device)
            kernels = counter.rest + counter.blocks
            found[name] = {"kept_mb": size / 1e6, "kept_float32": in_float32, "kernels": len(kernels)}
            if device.type == "cuda":
                found[name]["roofline_ms"] = roofline(counter)
                found[name]["clips_per_s"] = clips / sum(seconds for _, seconds in kernels)
    return found


def roofline(counter: Counter) -> dict:
    """Milliseconds of each kind of kernel, in the compiled blocks and in the rest."""
    return {
        part: {kind: 1e3 * sum(seconds for k, seconds in kernels if k == kind) for kind in KINDS}
        for part, kernels in (("blocks", counter.blocks), ("rest", counter.rest))
    }


def line(name: str, found: dict) -> str:
    parts = [f"{name:32} {found['forward_gmacs']:7.1f} {found['step_gmacs']:7.1f} GMACs"]
    for way in (way for way in WAYS if way in found):
        f = found[way]
        parts.append(f"{way}: {f['kept_mb']:4.0f} MB kept ({100 * f['kept_float32']:.0f} % float32), {f['kernels']:5} kernels")
        if "clips_per_s" in f:
            sums = {kind: sum(part[kind] for part in f["roofline_ms"].values()) for kind in KINDS}
            parts.append(", ".join(f"{kind} {ms:.1f}" for kind, ms in sums.items()) + f" ms: {f['clips_per_s']:.0f} clips/s")
    return "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=CONFIGS, metavar="CONFIG", help="YAML files, or folders of them")
    parser.add_argument("--clips", type=int, default=64, help="of a step, default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the results and the command here")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = {}
    for path in files(args.configs):
        name = "/".join(Path(path).with_suffix("").parts[-2:])
        results[name] = anatomy(load_config(path).model, args.clips, device)
        print(line(name, results[name]), flush=True)
    if args.json:
        on = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        made = {"command": shown_command("anatomy.py"), "on_paper": on, "torch": torch.__version__, "clips": args.clips}
        args.json.write_text(json.dumps(made | {"rates": RATES, "configs": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
