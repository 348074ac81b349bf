"""A trained model for programs that do not have i2v: torch.export, ONNX, or compiled by AOTInductor.

    python -m i2v.export --checkpoint runs/mine/best.safetensors --out model.pt2         # torch.export.load(path).module()
    python -m i2v.export --checkpoint runs/mine/best.safetensors --out model.onnx        # pip install 'i2v[export]'
    python -m i2v.export --checkpoint runs/mine/best.safetensors --out model.pt2 --format aoti
                                        # torch._inductor.aoti_load_package(path), from C++ as well; this device only

In: clips (B, 3, T, H, W) float32, RGB from 0 to 255 less "mean", divided by "std" of i2v.json; with --preprocess frames
(B, T, H, W, 3) uint8, RGB, upright, cut and resized to the model's size. Out: logits (B, classes), float32. Any B; T, H
and W are the model's. docs/tutorial.md, "Using it", has a program that reads a video for it without i2v.
With --merge ZeroI2V leaves as a plain transformer.

What was made is loaded and compared with the model it was made from, on random clips of several batch sizes and on
clips of --data (default: the run's data.val), in onnxruntime if it is ONNX; only what agrees is written. Class names go
with it, and which frames the run's evaluation takes ("clips", see docs/keys.md, out of videos with the short side that
"stored" says): extra file i2v.json in torch.export, metadata "i2v" in ONNX and AOTInductor. Every method goes through all.
Weights stay float32: rounded to int8, a scale per channel, they alone move logits by more than the comparison allows.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from i2v.atomic import replacing
from i2v.console import as_sentence, version
from i2v.model import merge_adapters
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.options import ClipOptions
from i2v.session import Session, add_flags, command, open_session, parse
from i2v.vit import ViTSpec

TOLERANCE = 1e-4  # of the logits; of the largest, where that is more than 1
CUTTING = ("sampling", "stride", "fps", "variant", "clips", "crops", "test_short_side")


class Frames(nn.Module):
    """frames (B, T, H, W, 3) uint8 -> logits: a classifier that normalises for itself."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        mean, scale = mean_and_scale(model.spec)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        clips = frames.permute(0, 4, 1, 2, 3).float()  # (B, 3, T, H, W)
        return self.model((clips - self.mean) * self.scale)


def mean_and_scale(spec: ViTSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """In grey levels, each (3, 1, 1, 1)."""
    mean, std = (255 * torch.tensor(values, dtype=torch.float64).view(3, 1, 1, 1) for values in (spec.mean, spec.std))
    return mean.float(), 1 / std.float()


def inputs_for(session: Session, data: str | None, preprocess: bool) -> tuple[list[torch.Tensor], int]:
    """Batches to compare on, random ones of several sizes and then real ones, and how many clips are real."""
    model, views = session.model, session.views(["dtype=uint8"])
    size, generator = session.size, torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 256, (n, 3, model.num_frames, size, size), generator=generator) for n in (2, 1, 3)]
    batches = [batch.to(torch.uint8) for batch in batches]
    if data is not None:
        loader = build_loader(data, "val", views["options"], 2, "cpu")
        batches += [batch.pixels.clone() for batch, _ in zip(loader, range(2))]
    real = sum(map(len, batches[3:]))
    if not preprocess:
        mean, scale = mean_and_scale(model.spec)
        return [(batch.float() - mean) * scale for batch in batches], real
    return [batch.permute(0, 2, 3, 4, 1).contiguous() for batch in batches], real


def make(kind: str, model: nn.Module, example: torch.Tensor, path: Path, about: dict):
    """Write `model` to path as `kind`; returns the function that the file is. Raises ValueError, one sentence."""
    batch = {0: torch.export.Dim("batch", min=1, max=4096)}
    try:
        with torch.no_grad():
            # strict: the lengths of tensors that a method takes stay symbols, so that any batch size fits
            program = torch.export.export(model, (example,), dynamic_shapes=(batch,), strict=True)
        return {"pt2": write_program, "onnx": write_onnx, "aoti": write_package}[kind](program, example, path, about)
    except OSError:
        raise
    except Exception as error:  # what these raise is of many kinds, and none of them is public
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"This model cannot be made into {kind} with torch {torch.__version__}: {reason:.300}") from error


def write_program(program, example, path: Path, about: dict):
    made = io.BytesIO()  # not to the file itself: where a disk is full, torch's own writer ends the process
    torch.export.save(program, made, extra_files={"i2v.json": json.dumps(about)})
    path.write_bytes(made.getbuffer())
    return torch.export.load(path).module()


def write_onnx(program, example, path: Path, about: dict):
    import onnxruntime

    batch = {0: torch.export.Dim("batch", min=1, max=4096)}
    made = torch.onnx.export(
        program, (example,), dynamo=True, dynamic_shapes=(batch,), input_names=["clips"], output_names=["logits"], verbose=False
    )
    made.model.metadata_props["i2v"] = json.dumps(about)
    made.save(path, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(None, {"clips": clips.cpu().numpy()})[0])


def write_package(program, example, path: Path, about: dict):
    options = {"aot_inductor.metadata": {"i2v": json.dumps(about)}}
    made = io.BytesIO()
    torch._inductor.aoti_compile_and_package(program, package_path=made, inductor_configs=options)
    path.write_bytes(made.getbuffer())
    return torch._inductor.aoti_load_package(str(path))


@torch.no_grad()
def difference(expected: nn.Module, found, batches: list[torch.Tensor]) -> float:
    """The largest difference of the logits, relative to the largest logit where that is more than 1."""
    worst = 0.0
    for batch in batches:
        a, b = expected(batch).cpu(), found(batch).cpu()
        worst = max(worst, ((a - b).abs().max() / a.abs().max().clamp(min=1)).item())
    return worst


def export(args) -> str:
    """Make, compare and write. Returns a sentence about it."""
    session = open_session(args)
    model, meta = session.model.requires_grad_(False), session.meta
    data = args.data or find_data(meta.config)
    batches, real = inputs_for(session, data, args.preprocess)
    wrap = Frames if args.preprocess else nn.Sequential
    device = torch.device("cuda" if args.device == "gpu" else "cpu")
    leaving = wrap(merge_adapters(model).eval() if args.merge else model).eval().to(device)
    staying, batches = wrap(model).eval().to(device), [batch.to(device) for batch in batches]
    about = {
        "i2v": version(),
        "model": meta.model,
        "classes": meta.classes,
        "several": meta.several,  # classes a video: then it is the sigmoid of a logit that is a probability
        "clips": {name: meta.clips.get(name, getattr(ClipOptions(), name)) for name in CUTTING},
        "stored": meta.stored,
        "input": ["batch", *batches[0].shape[1:]],
        "preprocess": args.preprocess,
        "mean": [255 * value for value in model.spec.mean],
        "std": [255 * value for value in model.spec.std],
    }
    try:
        found, megabytes = write_if_equal(args, leaving, staying, batches, about)
    except OSError as error:
        raise OSError(f"{args.out} cannot be written ({error.strerror or error}): make room or give another --out.") from error
    on = f"{sum(map(len, batches)) - real} random and {real} real clips"
    shape = f"{', '.join(map(str, about['input']))}"
    return f"wrote {args.out}, {megabytes:.1f} MB: ({shape}) -> logits; largest difference on {on}: {found:.1e}"


def write_if_equal(args, leaving, staying, batches: list[torch.Tensor], about: dict) -> tuple[float, float]:
    """(difference, megabytes) of the file --out. Raises ValueError if the file does not give what `staying` gives."""
    # Beside --out, so that what was found good can be moved there at once; under a name that torch knows.
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=".i2v-export-") as folder:
        path = Path(folder, f"model{args.out.suffix}")
        found = difference(staying, make(args.format, leaving, batches[0], path, about), batches)
        if not found <= TOLERANCE:
            raise ValueError(
                f"The {args.format} file's logits differ by {found:.1e} from the model's, more than {TOLERANCE:.0e}: "
                "nothing is written."
            )
        megabytes = path.stat().st_size / 1e6
        with replacing(args.out) as temporary:
            os.replace(path, temporary)
    return found, megabytes


def find_data(config: dict) -> str | None:
    """The run's validation data, if it can be reached."""
    data = config["data"]["val"]
    if data is not None and ("://" in data or Path(data, "manifest.json").exists()):
        return data
    print("note: the run's data.val is not here, so only random clips are compared: --data SHARDS gives real ones")
    return None


def check_arguments(args) -> None:
    """Raises ValueError."""
    kinds = {".pt2": "pt2", ".onnx": "onnx"}
    if args.out.suffix not in kinds:
        raise ValueError(f"{args.out} ends in neither .pt2 nor .onnx: --out says by its ending what to make.")
    args.format = args.format or kinds[args.out.suffix]
    if (args.format == "onnx") != (args.out.suffix == ".onnx"):
        raise ValueError(f"--format {args.format} does not go with {args.out}: .onnx is for onnx, .pt2 for the others.")
    if not args.out.parent.is_dir():
        raise ValueError(f"{args.out.parent} does not exist: --out needs a folder that does.")
    if args.device == "gpu" and not torch.cuda.is_available():
        raise ValueError("--device is gpu, but torch finds no CUDA device here: use cpu.")
    if args.format == "onnx":
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"ONNX needs {', '.join(missing)}, not installed here: pip install 'i2v[export]'.")


def main() -> None:
    parser = command("i2v.export", __doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, help="best.safetensors or last.safetensors, or their folder")
    parser.add_argument("--out", required=True, type=Path, help="model.pt2 or model.onnx")
    parser.add_argument("--format", choices=("pt2", "onnx", "aoti"), help="default: by the ending of --out")
    parser.add_argument("--preprocess", action="store_true", help="take uint8 frames and normalise them inside")
    parser.add_argument("--merge", action="store_true", help="fold the adapters away first (ZeroI2V)")
    parser.add_argument("--data", help="shards, for real clips to compare on (default: data.val of the run)")
    add_flags(parser, "--weights")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"), help="that the model will run on (default: cpu)")
    args = parse(parser)
    try:
        check_arguments(args)
        print(export(args))
    except (ValueError, TypeError, OSError, ShardError) as error:
        sys.exit(f"i2v.export: {as_sentence(error)}")


if __name__ == "__main__":
    main()
