"""The DALI graph: decode, crop and resize, mirror, normalise. The only file that builds DALI nodes.

One graph for every machine. Its forks: `device`, where clips are made and delivered, and `decode`, where videos are
decoded. There is no random operator in it; every random number comes in with the clip (pipelines/plan.py).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

# OpenAI CLIP's, in units of 0..255
MEAN = [255 * m for m in (0.48145466, 0.4578275, 0.40821073)]
STD = [255 * s for s in (0.26862954, 0.26130258, 0.27577711)]

CPU_CODECS = ("vp8", "vp9", "mjpeg")  # what DALI 2.4 decodes without a GPU


@dataclass(frozen=True)
class GraphOptions:
    """How pixels are computed."""

    size: int = 224
    crops: int = 1
    interpolation: str = "cubic"  # cubic or linear
    antialias: bool = True  # filter when shrinking; the original recipes resize without
    dtype: str = "float32"  # of the clips: float32 or float16

    def __post_init__(self):
        if self.interpolation not in ("cubic", "linear"):
            raise ValueError(f"interpolation is {self.interpolation!r}: it must be cubic or linear.")
        if not isinstance(self.antialias, bool):
            raise ValueError(f"antialias is {self.antialias!r}: it must be true or false.")
        if self.dtype not in ("float32", "float16"):
            raise ValueError(f"dtype is {self.dtype!r}: it must be float32 or float16.")


def choose_decoder(codec: str, device: str, decode: str) -> str:
    """Where to decode: "cpu" or "gpu". Raises ValueError, with the remedy, where neither can."""
    if decode not in ("auto", "cpu", "gpu"):
        raise ValueError(f"decode is {decode!r}: it must be auto, cpu or gpu.")
    gpu_can = device == "gpu" and _nvdec_is_here()
    if decode == "gpu" or (decode == "auto" and gpu_can and codec != "mjpeg"):
        if not gpu_can:
            raise ValueError(
                "decode is gpu, but " + ("this machine has no NVDEC (libnvcuvid)" if device == "gpu" else "device is cpu")
                + ": set decode to cpu or auto."
            )
        return "gpu"
    if codec not in CPU_CODECS:
        raise ValueError(
            f"The shards are {codec}, which DALI cannot decode without NVDEC: "
            "run make_shards again with --codec vp9, or use a machine with a GPU."
        )
    return "cpu"


def build_pipeline(source, options: GraphOptions, batch_size: int, device: str, decode: str, device_id: int, threads: int):
    """A DALI pipeline, not built yet, that turns source() into one output.

    source() returns, for one batch, lists of: encoded video (bytes,) uint8; frames (T,) int32; boxes (crops, 4)
    float32; mirror (1,) int32. Output: (B, crops, T, size, size, 3), normalised.
    """
    from nvidia.dali import fn, pipeline_def, types

    interpolation = types.INTERP_CUBIC if options.interpolation == "cubic" else types.INTERP_LINEAR

    @pipeline_def(
        batch_size=batch_size, num_threads=threads, device_id=device_id if device == "gpu" else None, prefetch_queue_depth=2
    )
    def clips():
        encoded, frames, boxes, mirror = fn.external_source(
            source=source,
            num_outputs=4,
            batch=True,
            dtype=[types.UINT8, types.INT32, types.FLOAT, types.INT32],
            ndim=[1, 1, 2, 1],
        )
        # "none" makes an index outside the video an error; the default would give black frames
        video = fn.decoders.video(encoded, device="mixed" if decode == "gpu" else "cpu", frames=frames, pad_mode="none")
        if device == "gpu" and decode == "cpu":
            video = video.gpu()  # (F, H, W, C) uint8
        views = []
        for crop in range(options.crops):
            view = fn.resize(
                video,
                size=[options.size, options.size],
                roi_start=boxes[crop, 0:2],
                roi_end=boxes[crop, 2:4],
                interp_type=interpolation,
                antialias=options.antialias,
            )
            views.append(
                fn.crop_mirror_normalize(
                    view,
                    mirror=fn.squeeze(mirror, axes=[0]),
                    mean=MEAN,
                    std=STD,
                    dtype=types.FLOAT if options.dtype == "float32" else types.FLOAT16,
                    output_layout="FHWC",  # channels last, as the model's convolution wants them
                )
            )
        return fn.stack(*views, axis=0)

    return clips()


def _nvdec_is_here() -> bool:
    try:
        ctypes.CDLL("libnvcuvid.so.1")
        return True
    except OSError:
        return False
