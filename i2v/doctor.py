"""What does this machine have, what will therefore be used, and how fast is it?

    python -m i2v.doctor                          # about ten seconds of measuring, on two made-up videos
    python -m i2v.doctor --data shards/train      # on your own
    python -m i2v.doctor --seconds 0              # facts only

Clips are of 8 frames of 224 pixels, the model is ST-Adapter on a ViT-B/16 with random weights, which is as fast as with
CLIP's. What bounds a whole experiment is a question for benchmarks/throughput.py.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

from i2v.console import version
from i2v.rules import at_least
from i2v.session import add_flags, command, parse, real

VIT_B16 = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "heads": 12, "embed_dim": 512}
FRAMES, BATCH = 8, 8
PACKAGES = ("torch", "av", "open_clip_torch", "numpy", "safetensors", "fsspec")


def facts() -> dict:
    """What is here: versions, processors, GPUs with their decoders, codecs."""
    import av
    import torch

    from i2v.shard_tools.encode import LIBRARY

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "i2v": version(),
        "python": platform.python_version(),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus],
        "cuda": torch.version.cuda,
        "dali": dali(),
        "nvdec": loads("libnvcuvid.so.1"),
        "nvjpeg": loads("libnvjpeg.so.13", "libnvjpeg.so.12") or bool(installed("nvidia-nvjpeg")),
        "ffmpeg": av.ffmpeg_version_info,
        "encoders": [codec for codec, library in LIBRARY.items() if library in av.codecs_available],
        "versions": {name: metadata.version(name) for name in PACKAGES if installed(name)},
    }


def processor() -> str:
    """The CPU's name, as the kernel tells it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.machine()


def dali() -> dict | None:
    """{"package", "version", "cuda"} of the installed DALI."""
    for name, cuda in (("nvidia-dali-cuda130", 13), ("nvidia-dali-cuda120", 12)):
        if installed(name):
            return {"package": name, "version": metadata.version(name), "cuda": cuda}
    return None


def installed(prefix: str) -> str | None:
    """The name of an installed package that begins so."""
    names = (found.metadata["Name"] or "" for found in metadata.distributions())
    return next((name for name in names if name.lower().startswith(prefix)), None)


def loads(*libraries: str) -> bool:
    for library in libraries:
        try:
            ctypes.CDLL(library)
            return True
        except OSError:
            continue
    return False


def choices(found: dict) -> dict[str, str]:
    """What `auto` comes to here."""
    import torch

    from i2v.placement import choose_precision

    gpu = bool(found["gpus"])
    dtype = choose_precision("auto", torch.device("cuda" if gpu else "cpu"))
    decoder = "the GPU (NVDEC; MJPEG on the CPU)" if gpu and found["nvdec"] else "the CPU"
    return {
        "the model runs on": f"{'the GPU' if gpu else 'the CPU'}, in {str(dtype).removeprefix('torch.')}",
        "clips are made on": "the GPU" if gpu else "the CPU",
        "videos are decoded on": decoder,
        "shards may be": "any of vp9, h264, hevc, mjpeg",
    }


def problems(found: dict) -> list[str]:
    """What is wrong with this installation, and what to do."""
    wrong = []
    cuda = int(found["cuda"].split(".")[0]) if found["cuda"] else 13
    if found["dali"] is None:
        wrong.append(f"NVIDIA DALI is not installed, so no clips can be made: pip install 'i2v[cuda{cuda}]'.")
    elif found["gpus"] and found["dali"]["cuda"] != cuda:
        wrong.append(
            f"DALI is for CUDA {found['dali']['cuda']} and torch for CUDA {cuda}: pip uninstall {found['dali']['package']}, "
            f"then pip install 'i2v[cuda{cuda}]'."
        )
    if found["gpus"] and not found["nvdec"]:
        wrong.append(
            "There is a GPU and no NVDEC (libnvcuvid.so.1): in a container, add `video` to NVIDIA_DRIVER_CAPABILITIES; until "
            "then videos are decoded on the CPU."
        )
    if "vp9" not in found["encoders"]:
        wrong.append("This FFmpeg cannot encode VP9: make shards with --codec mjpeg, or install av from a wheel.")
    return wrong


def measure(seconds: float, data: str | None = None, backbone: dict = VIT_B16) -> dict[str, float]:
    """Clips per second of the loader and of the model alone, each for half the time, at least one batch."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        loading = loader_rate(data or made_up_shards(Path(folder)), backbone["image_size"], seconds / 2)
    return {"loader": loading, "model": model_rate(device, backbone, seconds / 2)}


def made_up_shards(folder: Path, videos: int = 2, frames: int = 60) -> str:
    """Shards of moving noise, in the size of Kinetics."""
    import av

    from i2v.shard_tools.dataset import make_shards
    from i2v.shard_tools.encode import EncodeSettings
    from i2v.shard_tools.sources import Video

    texture = np.random.default_rng(0).integers(0, 256, (32, 42, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)[:, :336]
    made = []
    for number in range(videos):
        made.append(folder / f"{number}.mp4")
        with av.open(str(made[-1]), "w") as file:
            stream = file.add_stream("mpeg4", rate=30, options={"qscale": "4"})
            stream.width, stream.height, stream.pix_fmt = 336, 256, "yuv420p"
            for i in range(frames):
                picture = np.roll(texture, (number + 1) * 3 * i, axis=1)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            file.mux(stream.encode())
    make_shards([Video(str(path), label=0, source=path.name) for path in made], ["noise"], folder / "shards", EncodeSettings())
    return str(folder / "shards")


def loader_rate(data: str, size: int, seconds: float) -> float:
    """Training clips per second."""
    from i2v.pipelines import build_loader

    batches = iter(build_loader(data, "train", {"num_frames": FRAMES, "size": size}, BATCH))
    next(batches)  # starts threads, fills queues
    count, begin = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - begin < seconds:
        next(batches)
        count += BATCH
    spent = time.perf_counter() - begin
    batches.close()
    return count / spent


def model_rate(device, backbone: dict, seconds: float) -> float:
    """Clips per second that the model recognises; training takes about three times as long."""
    import torch

    from i2v.model import create_model
    from i2v.placement import autocast_for, choose_precision, place

    dtype = choose_precision("auto", device)
    model = create_model("st_adapter", backbone, FRAMES, 400).eval()
    place(model, device, dtype)
    clips = torch.zeros(BATCH if device.type == "cuda" else 1, 3, FRAMES, *[backbone["image_size"]] * 2, device=device)
    with torch.no_grad(), autocast_for(device, dtype)():
        if device.type == "cuda":  # which picks its kernels first
            model(clips)
            torch.cuda.synchronize()
        count, begin = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - begin < seconds:
            model(clips)
            if device.type == "cuda":
                torch.cuda.synchronize()
            count += len(clips)
    return count / (time.perf_counter() - begin)


def text(found: dict, chosen: dict[str, str], rates: dict[str, float]) -> str:
    """All of it for people."""
    dali = found["dali"]
    lines = [
        f"i2v {found['i2v']}, Python {found['python']}, {found['cores']} cores of {found['cpu']}",
        f"GPU           {'; '.join(found['gpus']) or 'none'}",
        f"torch's CUDA  {found['cuda'] or 'none'}",
        f"DALI          {dali['version'] + ' for CUDA ' + str(dali['cuda']) if dali else 'not installed'}",
        f"NVDEC         {'yes' if found['nvdec'] else 'no'}",
        f"nvJPEG        {'yes' if found['nvjpeg'] else 'no'}",
        f"FFmpeg        {found['ffmpeg']}, encodes {', '.join(found['encoders'])}",
        "versions      " + ", ".join(f"{name} {number}" for name, number in found["versions"].items()),
        "",
        *(f"{name:22} {value}" for name, value in chosen.items()),
    ]
    if rates:
        lines += [
            "",
            f"the loader makes       {rates['loader']:.1f} clips/s ({FRAMES} frames of 224 pixels, augmented)",
            f"ViT-B/16 recognises    {rates['model']:.2f} clips/s (ST-Adapter; training takes about three times as long)",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = command("i2v.doctor", __doc__)
    parser.add_argument("--seconds", type=real(at_least(0)), default=10, help="to measure (default: %(default)g); 0: do not")
    parser.add_argument("--data", help="shards to measure on (default: two made-up videos)")
    add_flags(parser, "--json", json="write all of it here as well")
    args = parse(parser)
    found = facts()
    chosen, wrong, rates = choices(found), problems(found), {}
    try:
        if args.seconds > 0 and found["dali"]:
            rates = measure(args.seconds, args.data)
        if args.json:
            content = {"found": found, "used": chosen, "clips_per_s": rates, "problems": wrong}
            args.json.write_text(json.dumps(content, indent=1))
    except (ValueError, OSError, RuntimeError) as error:  # a ShardError is a RuntimeError
        sys.exit(f"{text(found, chosen, {})}\n\ni2v.doctor: {error}")
    print(text(found, chosen, rates))
    if wrong:
        sys.exit("\n" + "\n".join(f"i2v.doctor: {each}" for each in wrong))


if __name__ == "__main__":
    main()
