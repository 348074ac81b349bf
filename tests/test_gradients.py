"""What a step's gradient is: of two ranks that of one with the whole batch, and which numbers have which dtype."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from i2v.batchnorm import share_batchnorms
from i2v.config import TrainConfig
from i2v.distributed import World
from i2v.ema import Average
from i2v.finite import Guard
from i2v.model import create_model
from i2v.optim import build_optimizer, parameter_groups
from i2v.placement import autocast_for, place
from i2v.progress import Progress
from i2v.step import Passes, take_step
from tests.test_precision import GEOMETRY, METHODS, model_of

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)
RECIPES = {
    "plain": {},
    "one pass": {},
    "mixup": {"mixup": 0.8, "clip_grad": 0.05, "label_smoothing": 0.1},
    "cutmix": {"cutmix": 1.0, "clip_grad": 0.05},
}
QUARANTINED = (1, 6)


def fresh(method, recipe):
    """Without what is drawn per rank; batch norms do not look at a batch of which they would see a part at a time."""
    model = model_of(method, **({"adapter_dropout": 0.0} if method == "zeroi2v" else {})).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(recipe == "one pass")
    return model


def step(method, recipe, world, passes, folder):
    """One step on 8 clips -> gradients as the optimizer gets them, the average after it, loss and norm."""
    train = TrainConfig(epochs=1, batch_size=8, lr=1e-3, no_decay=[], ema=0.5, **RECIPES[recipe])
    generator = torch.Generator().manual_seed(3)
    clips, labels = torch.randn(8, 3, 4, 32, 32, generator=generator), torch.arange(8)
    weights = torch.ones(8)
    weights[list(QUARANTINED)] = 0
    clips[list(QUARANTINED)] = 100.0  # whatever is in them counts for nothing
    size, batches = 8 // (passes * world.size), []
    for number in range(passes):
        at = torch.arange(size) + (number * world.size + world.rank) * size  # as the loader deals them out
        batches.append(SimpleNamespace(clips=clips[at], labels=labels[at], weights=weights[at], ids=at, positions=at))
    model = fresh(method, recipe)
    if world.size > 1:
        share_batchnorms(model)
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True) if world.size > 1 else model
    parameters, found = model.trainable_parameters(), {}
    # Not AdamW, whose first step is as long where a gradient is zero but for rounding.
    optimizer, average = torch.optim.SGD(parameter_groups(parameters, train), lr=0.1, fused=True), Average(model, train.ema)
    optimizer.register_step_pre_hook(lambda *_: found.update({n: p.grad.clone() for n, p in parameters.items()}))
    guard = Guard(folder / f"bad{world.rank}.csv", 3, Progress(), CPU, str, print)
    how = Passes(passes, 8, train, world, autocast_for(CPU, torch.float32), NO_SCALER)
    taken = take_step(replica, iter(batches), how, optimizer, guard, average, 0)
    assert taken.taken
    return found | average.tensors() | {"loss": taken.loss, "norm": taken.norm}


def on_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world, passes = World(rank, 2, CPU), {"one pass": 1}
    found = {(m, recipe): step(m, recipe, world, passes.get(recipe, 2), folder) for m in METHODS for recipe in RECIPES}
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What both ranks found, for every method and recipe."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(on_rank, (folder,), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.process
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_step_as_one_with_the_whole_batch(two_ranks, tmp_path, method, recipe):
    """With accumulation or batch norms that train, mixing, clipping, an average, and clips in quarantine."""
    expected = step(method, recipe, World(0, 1, CPU), 1, tmp_path)
    for found in two_ranks:
        assert found[method, recipe].keys() == expected.keys()
        for name, tensor in found[method, recipe].items():
            # atol: what is zero but for rounding, such as the gradient of a bias that a norm takes out again
            torch.testing.assert_close(tensor, expected[name], rtol=2e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")


# ---- dtypes ----------------------------------------------------------------------------------------------------------


def dtypes(method, precision):
    """What -> the dtypes it has in a step under autocast, on the CPU."""
    torch.manual_seed(0)
    model = create_model(method, GEOMETRY, 4, 8, {"type": "linear", "dropout": 0}, **METHODS[method]).train()
    place(model, CPU, precision)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == torch.float16)
    train = TrainConfig(epochs=1, batch_size=2, lr=1e-3, no_decay=[], ema=0.9)
    parameters = model.trainable_parameters()
    optimizer, average, found = build_optimizer(parameters, train), Average(model, train.ema), {}

    def note(what, tensors):
        found.setdefault(what, set()).update(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)

    norms = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)
    for module in model.modules():
        if isinstance(module, norms):
            note("weights and statistics of norms", [*module.parameters(), *module.buffers(recurse=False)][:4])
    for block in model.trunk.transformer.resblocks:
        block.register_forward_hook(lambda module, given, out: note("residual stream", [given[0], out]))
        block.attn.out_proj.register_forward_hook(lambda module, given, out: note("products of frozen matrices", [out]))
    frozen = {p for block in model.trunk.transformer.resblocks for p in block.attn.parameters() if not p.requires_grad}
    note("frozen matrices", frozen)
    note("trained weights", parameters.values())
    optimizer.register_step_pre_hook(lambda *_: note("gradients", [p.grad for p in parameters.values() if p.grad is not None]))
    clips = torch.randn(2, 3, 4, 32, 32)
    at = torch.arange(2)
    batch = SimpleNamespace(clips=clips, labels=at, weights=torch.ones(2), ids=at, positions=at)
    passes = Passes(1, 8, train, World(0, 1, CPU), autocast_for(CPU, precision), scaler)
    model.head.register_forward_hook(lambda module, given, out: note("features that enter the head", [given[0]]))
    guard = Guard(Path("unused"), 3, Progress(), CPU, str, print)
    taken = take_step(model, iter([batch]), passes, optimizer, guard, average, 0)
    note("loss, and the norm of the gradient", [taken.loss, taken.norm])
    note("state of the optimizer", [t for state in optimizer.state.values() for t in state.values()])
    note("average of the weights (ema)", average.tensors().values())
    return found


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_table_of_dtypes_is_what_a_step_has(precision):
    """Row by row, over all methods: docs/performance.md."""
    page = (ROOT / "docs" / "performance.md").read_text()
    table = page.split("<!-- dtypes -->")[1].split("<!-- /dtypes -->")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.strip().splitlines()[2:]]
    column = {"bfloat16": 1, "float16": 2}[precision]
    said = {row[0]: {each.strip("` ") for each in row[column].split(",")} for row in rows}
    found = {}
    for method in METHODS:
        for what, kinds in dtypes(method, getattr(torch, precision)).items():
            found.setdefault(what, set()).update(kinds)
    assert found == said
