"""Clips per second of an experiment, and what bounds it.

    python benchmarks/throughput.py --config configs/st_adapter/k400_vit-b16_8f.yaml
    python benchmarks/throughput.py --config ... --data /data/k400/train train.micro_batch=64 --json result.json
    python benchmarks/throughput.py --preset tiny          # no data, no GPU: under a minute

Three figures, each the median of its rounds: `loader` makes clips and throws them away, `model` trains on one synthetic
batch over and over, `end to end` trains on the loader's clips. The smaller of the first two is the ceiling of the third.
A model that trains nothing, such as zero-shot CLIP, only looks at the clips.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file: import from the repository

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import write_result
from benchmarks.measure import spread
from benchmarks.moving_shapes import write_videos
from i2v.config import ConfigError, ModelConfig, load_config, to_dict
from i2v.console import begin_command
from i2v.distributed import World, close_world, init_world, sum_over_ranks
from i2v.heads import TextHead
from i2v.model import VideoClassifier, create_model, head_kind, pictures, spec_of
from i2v.optim import build_optimizer, layers_of
from i2v.pipelines import Batch, ShardError, build_loader
from i2v.placement import autocast_for, choose_precision, compile_blocks, may_compile, place
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.sources import load_sources

TINY = Path(__file__).parent / "tiny.yaml"
CLASSES = 400  # as many as Kinetics', or as the data have if that is more


def measure(config, data: str, world: World, rounds: int, seconds: float) -> dict:
    """All figures of one experiment, on every rank."""
    batch_size = config.train.micro_batch or max(1, config.train.batch_size // world.size)
    loader = build_loader(
        data,
        "train",
        config.clips,
        batch_size,
        "gpu" if world.device.type == "cuda" else "cpu",
        world.rank,
        world.size,
        decode=config.data.decode,
        seed=config.train.seed,
        threads=config.data.threads,
        num_frames=config.model.num_frames,
        **pictures(spec_of(config.model.method, config.model.backbone, config.model.weights)),
    )
    if np.min(loader.shards.clips["label"]) < 0:
        raise ValueError(f"{loader.shards.root} has videos without a label, on which nothing can train: give labelled shards.")
    model = fresh_model(config.model, max(CLASSES, len(loader.shards.classes)))
    dtype = choose_precision(config.train.precision, world.device)
    autocast = autocast_for(world.device, dtype)
    place(model, world.device, dtype)
    trained = model.trainable_parameters()
    optimizer = build_optimizer(trained, config.train, layers_of(model)) if trained else None
    synthetic = synthetic_batch(model, batch_size, world.device)
    flop = flop_per_clip(model, synthetic, autocast)
    if may_compile(config.train.compile, world.device)[0]:
        compile_blocks(model, config.train.compile)
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True) if world.size > 1 and trained else model

    def train_on(batch: Batch) -> None:
        with autocast():
            logits = replica(batch.clips)
        if optimizer is None:
            return
        F.cross_entropy(logits.float(), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    train_on(synthetic)
    wait_for(world.device)
    first_step = time.perf_counter() - begin

    batches = iter(loader)
    rates = {
        "loader": rate(lambda: next(batches), batch_size, world, rounds, seconds),
        "model": rate(lambda: train_on(synthetic), batch_size, world, rounds, seconds),
        "end_to_end": rate(lambda: train_on(next(batches)), batch_size, world, rounds, seconds),
    }
    batches.close()
    matmul = matrix_rate(world.device, dtype)
    ceiling = min(rates["loader"]["median"], rates["model"]["median"])
    return {
        "clips_per_s": rates,
        "bound_by": "loader" if rates["loader"]["median"] < rates["model"]["median"] else "model",
        "end_to_end_of_ceiling": rates["end_to_end"]["median"] / ceiling,
        "batch_per_device": batch_size,
        "decode": loader.decode,
        "precision": str(dtype).removeprefix("torch."),
        "first_step_s": first_step,  # with compilation
        "training_gflop_per_clip": flop / 1e9,
        "matrix_tflop_per_s": matmul / 1e12,
        "model_of_matrix_rate": rates["model"]["median"] / world.size * flop / matmul,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if world.device.type == "cuda" else None,
    }


def rate(step, clips: int, world: World, rounds: int, seconds: float) -> dict:
    """Clips per second of all devices together: median, minimum and maximum over rounds of about `seconds` each."""
    for _ in range(3):
        step()
    wait_for(world.device)
    begin = time.perf_counter()
    step()
    wait_for(world.device)
    once = torch.tensor(time.perf_counter() - begin, device=world.device)
    steps = max(2, round(seconds / (sum_over_ranks(once).item() / world.size)))  # the same on every rank
    measured = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        wait_for(world.device)
        elapsed = torch.tensor(time.perf_counter() - begin, device=world.device)
        measured.append(world.size * clips * steps / (sum_over_ranks(elapsed).item() / world.size))
    return spread(measured) | {"steps": steps * rounds}


def fresh_model(config: ModelConfig, classes: int) -> VideoClassifier:
    """The model of an experiment with random weights, and random class embeddings under a text head: as fast as any."""
    head = {key: value for key, value in config.head.items() if key != "class_names"}  # of the experiment's data, not of these
    classes = None if head_kind(head) == "factors" else classes
    model = create_model(config.method, config.backbone, config.num_frames, classes, head, **config.options)
    if isinstance(model.head, TextHead):
        model.head.set_text_features(torch.randn(model.head.text_features.shape))
    return model


def synthetic_batch(model, batch_size: int, device: torch.device) -> Batch:
    """Noise, in the memory layout of the loader."""
    size = model.spec.image_size
    clips = torch.randn(batch_size, model.num_frames, size, size, 3, device=device).permute(0, 4, 1, 2, 3)
    if device.type == "cuda":
        clips = clips.half()
    labels = torch.randint(min(CLASSES, model.config["num_classes"]), (batch_size,), device=device)
    return Batch(clips, labels, torch.ones(batch_size, device=device), torch.arange(batch_size), batch_size)


def flop_per_clip(model, batch: Batch, autocast) -> float:
    """Floating-point operations of one step per clip, as executed: matrix products, convolutions, attention."""
    one = batch.clips[:1]
    with FlopCounterMode(display=False) as counter, autocast():
        logits = model(one)
        if logits.requires_grad:
            logits.sum().backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    wait_for(device)
    begin, repeats = time.perf_counter(), 20
    for _ in range(repeats):
        a @ b
    wait_for(device)
    return 2 * n**3 * repeats / (time.perf_counter() - begin)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def table(result: dict) -> str:
    """The result as text."""
    lines = [f"{'':12} {'clips/s':>10} {'min':>10} {'max':>10}"]
    for name, r in result["clips_per_s"].items():
        lines.append(f"{name.replace('_', ' '):12} {r['median']:10.1f} {r['min']:10.1f} {r['max']:10.1f}")
    lines += [
        "",
        f"bound by the {result['bound_by']}; end to end reaches {100 * result['end_to_end_of_ceiling']:.0f} % of its ceiling",
        f"{result['training_gflop_per_clip']:.1f} GFLOP per clip and training step: the model runs at "
        f"{100 * result['model_of_matrix_rate']:.0f} % of this machine's {result['matrix_tflop_per_s']:.2f} TFLOP/s "
        f"({result['precision']} matrix products)",
        f"first step, with compilation: {result['first_step_s']:.1f} s",
    ]
    if result["peak_memory_gib"]:
        lines.append(f"peak GPU memory of torch: {result['peak_memory_gib']:.1f} GiB")
    return "\n".join(lines)


def make_tiny_data(folder: Path) -> str:
    """A few small videos of moving shapes, sharded."""
    write_videos(folder / "videos", 4, frames=32, size=(96, 128))
    videos, classes = load_sources(folder / "videos" / "train")
    make_shards(videos, classes, folder / "shards", EncodeSettings(short_side=96))
    return str(folder / "shards")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="an experiment; its weights are not needed")
    what.add_argument("--preset", choices=["tiny"], help="a small model on small videos that are made on the spot")
    parser.add_argument("--data", help="shards to read (default: data.train of the config)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s (tiny: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long a round takes (tiny: 1)")
    parser.add_argument("--json", type=Path, help="write the result, the machine and the command here")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args()
    begin_command()
    try:
        config = load_config(args.config or TINY, args.overrides)
        world = init_world(config.data.device)
        with tempfile.TemporaryDirectory() as folder:
            data = args.data or (make_tiny_data(Path(folder)) if args.preset else config.data.train)
            rounds, seconds = (min(args.rounds, 3), min(args.seconds, 1.0)) if args.preset else (args.rounds, args.seconds)
            result = measure(config, data, world, rounds, seconds)
    except torch.OutOfMemoryError as error:
        sys.exit(f"throughput: the GPU's memory is too small ({str(error)[:200]}): set train.micro_batch=N, smaller.")
    except (ConfigError, ShardError, ValueError, TypeError, OSError) as error:
        sys.exit(f"throughput: {error}")
    finally:
        close_world()
    if not world.is_main:
        return
    print(table(result))
    if args.json:
        command = "python benchmarks/throughput.py " + " ".join(sys.argv[1:])
        write_result(args.json, command, {"devices": world.size} | result | {"config": to_dict(config)})


if __name__ == "__main__":
    main()
