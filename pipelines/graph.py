"""The DALI graph: decode, distort, crop and resize, mirror, normalise. The only file that builds DALI nodes.

One graph for every machine. Its forks: `device`, where clips are made and delivered (on a CPU, torch resizes), and
`decode`, where videos are decoded. There is no random operator in it; every random number comes in with the clip
(pipelines/plan.py, augment.py).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np

from i2v.colours import CLIP_MEAN, CLIP_STD
from i2v.pipelines.augment import (
    AUTOCONTRAST,
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    CUTOUT,
    EQUALIZE,
    FILL,
    LUMA,
    POSTERIZE,
    SATURATION,
    SHARPNESS,
    SMOOTH,
    SOLARIZE,
    SOLARIZE_ADD,
    WARP,
    WARP_NEAREST,
    AugmentOptions,
)
from i2v.pipelines.options import SENTENCE
from i2v.pipelines.resize import crop_and_resize
from i2v.rules import COLOURS, check, one_of

MEAN, STD = ([255 * value for value in values] for values in (CLIP_MEAN, CLIP_STD))  # in grey levels

NVDEC_LEAST = {"vp9": 128, "hevc": 144, "h264": 48}  # pixels, both sides of a picture; it takes no mjpeg
DTYPES = ("float32", "float16", "uint8")


@dataclass(frozen=True)
class GraphOptions:
    """How pixels are computed."""

    size: int = 224
    crops: int = 1
    interpolation: Annotated[str, one_of("cubic", "linear", "floor")] = "cubic"  # floor: linear, fractions cut off, for MoSI
    antialias: bool = True  # filter when shrinking; the original recipes resize without
    dtype: Annotated[str, one_of(*DTYPES)] = "float32"  # of the clips; uint8: not normalised
    mean: Annotated[tuple, COLOURS] = CLIP_MEAN  # of red, green and blue from 0 to 1: a model's backbone decides
    std: Annotated[tuple, COLOURS] = CLIP_STD
    augment: AugmentOptions = AugmentOptions()

    def __post_init__(self):
        check(GraphOptions, vars(self), SENTENCE)

    @property
    def grey(self) -> tuple[list[float], list[float]]:
        """Mean and std in grey levels."""
        return [255 * m for m in self.mean], [255 * s for s in self.std]


def choose_decoder(codec: str, device: str, decode: str, least_side: int) -> str:
    """Where to decode: "gpu" (NVDEC) or "reader" (pipelines/decode.py).

    least_side: of all pictures. Raises ValueError with the remedy.
    """
    if decode not in ("auto", "cpu", "gpu"):
        raise ValueError(f"decode is {decode!r}: it must be auto, cpu or gpu.")
    problem = None
    if device != "gpu":
        problem = "device is cpu"
    elif not _nvdec_is_here():
        problem = "this machine has no NVDEC (libnvcuvid)"
    elif codec not in NVDEC_LEAST:
        problem = f"NVDEC takes no {codec}"
    elif least_side < NVDEC_LEAST[codec]:
        problem = f"NVDEC takes {codec} from {NVDEC_LEAST[codec]} pixels on, and a side of these pictures has {least_side}"
    if decode == "gpu" and problem:
        raise ValueError(f"decode is gpu, but {problem}: set decode to cpu or auto.")
    return "gpu" if decode != "cpu" and not problem else "reader"


def reader_resizes(options: GraphOptions, device: str) -> bool:
    """Whether what the reader decodes is cropped and resized in its threads too: where the graph needs no whole pictures."""
    return device == "cpu" and not (options.augment.randaugment and options.augment.randaugment_on == "frames")


def build_pipeline(source, options: GraphOptions, batch_size: int, device: str, decode: str, device_id: int, threads: int):
    """A DALI pipeline, not built yet, that turns source() into one output.

    source() returns, for one batch, lists of: the video, with what is needed to make views of it; mirror (1,) int32; then,
    for what options.augment does, Augmentation.arrays(). The video is encoded, (bytes,) uint8, and then frames (T,) int32
    and boxes (crops, 4) float32; with decode "reader" it is (T, H, W, 3) uint8 and boxes, or if reader_resizes only its
    views, (crops, T, size, size, 3) uint8. The arrays are not copied: they must last until their batch comes out.
    decode "cpu" is what NVDEC's pixels and the reader's are compared with.
    Output: (B, crops, T, size, size, 3), normalised, or with dtype uint8 the pixels.
    """
    from nvidia.dali import fn, pipeline_def, types

    augment = options.augment
    shapes = {
        "ops": (types.INT32, 1),
        "values": (types.FLOAT, 2),
        "color": (types.FLOAT, 2),
        "noise": (types.FLOAT, 1),
        "erase": (types.FLOAT, 1),
    }
    resized = decode == "reader" and reader_resizes(options, device)
    frames_input, boxes_input = (types.INT32, 1), (types.FLOAT, 2)
    video_inputs = [(types.UINT8, 1), frames_input, boxes_input]
    if decode == "reader":
        video_inputs = [(types.UINT8, 5)] if resized else [(types.UINT8, 4), boxes_input]
    extra = [shapes[name] for name in augment.arrays]
    inputs = [*video_inputs, (types.INT32, 1), *extra]

    @pipeline_def(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id if device == "gpu" else None,
        prefetch_queue_depth=2,
        enable_conditionals=bool(extra),
    )
    def clips():
        given = fn.external_source(
            source=source,
            num_outputs=len(inputs),
            batch=True,
            dtype=[dtype for dtype, _ in inputs],
            ndim=[ndim for _, ndim in inputs],
            no_copy=device == "cpu",  # what a GPU is given may still be under way to it when the batch comes out
        )
        mirror, *drawn = given[len(video_inputs) :]
        drawn = dict(zip(augment.arrays, drawn))
        if decode == "reader":
            video = given[0] if resized else fn.reshape(given[0], layout="FHWC")
        else:  # "none" makes an index outside the video an error; the default would give black frames
            where = "mixed" if decode == "gpu" else "cpu"
            video = fn.decoders.video(given[0], device=where, frames=given[1], pad_mode="none")
        if device == "gpu" and decode != "gpu":
            video = video.gpu()  # (F, H, W, C) uint8
        if augment.randaugment and augment.randaugment_on == "frames":
            video = _randaugment(video, drawn, options)
        views = []
        for view in _views(video, options) if resized else _crop_and_resize(video, given[len(video_inputs) - 1], options):
            if augment.randaugment and augment.randaugment_on == "crop":
                view = _randaugment(view, drawn, options)
            if "color" in drawn:
                view = _recolour(view, drawn["color"], augment)
            view = _normalise(view, mirror, drawn, options)
            if "erase" in drawn:
                view = _erase(view, drawn["erase"], options)
            views.append(view)
        return fn.stack(*views, axis=0) if len(views) > 1 else fn.expand_dims(*views, axes=0)

    return clips()


def _crop_and_resize(video, boxes, options: GraphOptions) -> list:
    """The views of a video. On a CPU torch does this, in a fifth of the time (pipelines/resize.py)."""
    from nvidia.dali import fn, types

    if video.device == "cpu":
        resize = partial(crop_and_resize, size=options.size, interpolation=options.interpolation, antialias=options.antialias)
        return _views(fn.python_function(video, boxes, function=resize), options)
    floor = options.interpolation == "floor"
    views = [
        fn.resize(
            video,
            size=[options.size, options.size],
            roi_start=boxes[crop, 0:2],
            roi_end=boxes[crop, 2:4],
            interp_type=types.INTERP_CUBIC if options.interpolation == "cubic" else types.INTERP_LINEAR,
            antialias=options.antialias,
            dtype=types.FLOAT if floor else None,
        )
        for crop in range(options.crops)
    ]
    return [fn.cast(view + TRUNCATE, dtype=types.UINT8) for view in views] if floor else views


def _views(views, options: GraphOptions) -> list:
    from nvidia.dali import fn

    return [fn.reshape(views[crop], layout="FHWC") for crop in range(options.crops)]


def _normalise(video, mirror, drawn: dict, options: GraphOptions):
    """Mirror, and (pixel - mean) / std, which takes in the colour noise for nothing."""
    from nvidia.dali import fn, types

    if options.dtype == "uint8" and "noise" not in drawn:
        return fn.flip(video, horizontal=fn.squeeze(mirror, axes=[0]))
    mean, std = ([0.0] * 3, [1.0] * 3) if options.dtype == "uint8" else options.grey
    if "noise" in drawn:
        mean = types.Constant(np.float32(mean)) - drawn["noise"]
    return fn.crop_mirror_normalize(
        video,
        mirror=fn.squeeze(mirror, axes=[0]),
        mean=mean,
        std=std,
        dtype={"float32": types.FLOAT, "float16": types.FLOAT16, "uint8": types.UINT8}[options.dtype],
        output_layout="FHWC",  # channels last, as the model's convolution wants them
    )


def _erase(video, box, options: GraphOptions):
    from nvidia.dali import fn

    fill = _colour(options.augment.erasing_fill, options)
    if options.dtype != "uint8":
        fill = [(value - mean) / std for value, mean, std in zip(fill, *options.grey)]
    return fn.erase(video, anchor=box[0:2], shape=box[2:4], axis_names="HW", fill_value=fill)


def _colour(fill: int | str, options: GraphOptions) -> list[float]:
    return options.grey[0] if fill == "mean" else [float(fill)] * 3


# ---- pixels: (F, H, W, 3) uint8 in and out -----------------------------------------------------------------------------
#
# As PIL computes them, frame by frame. Where statistics of a frame are needed they stay where the pixels are, for the
# arguments of DALI's operators have to be on the CPU.

TRUNCATE = -0.498  # added before rounding, makes it cut the fraction off, as PIL does
SMOOTH_KERNEL = np.float32([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
BLUR_KERNEL = np.pad(np.zeros((3, 3), np.float32), 1, constant_values=1) / 16


def _randaugment(video, drawn: dict, options: GraphOptions):
    augment = options.augment
    fill = _colour(FILL[augment.recipe.family] if augment.randaugment_fill is None else augment.randaugment_fill, options)
    fill = [float(round(value)) for value in fill]
    for step in range(augment.recipe.steps):
        video = _distort(video, drawn["ops"][step], drawn["values"][step], fill)
    return video


def _distort(video, op, v, fill: list[float]):
    """One primitive of pipelines/augment.py; v: its numbers."""
    from nvidia.dali import fn

    if op == WARP:
        video = _warp(video, v, fill, nearest=False)
    elif op == WARP_NEAREST:
        video = _warp(video, v, fill, nearest=True)
    elif op == BRIGHTNESS:
        video = _brightness(video, v[0])
    elif op == CONTRAST:
        video = _contrast(video, v[0])
    elif op == SATURATION:
        video = _saturation(video, v[0])
    elif op == SHARPNESS:
        video = _sharpness(video, v[0])
    elif op == SMOOTH:
        video = fn.filter(video, SMOOTH_KERNEL)
    elif op == BLUR:
        video = fn.filter(video, BLUR_KERNEL)
    elif op == POSTERIZE:
        video = _posterize(video, v[0])
    elif op == SOLARIZE:
        video = _solarize(video, v[0])
    elif op == SOLARIZE_ADD:
        video = _solarize_add(video, v[0])
    elif op == AUTOCONTRAST:
        video = _autocontrast(video)
    elif op == EQUALIZE:
        video = _equalize(video)
    elif op == CUTOUT:
        video = _cutout(video, v, fill)
    return video


def _warp(video, matrix, fill: list[float], nearest: bool):
    """Linear where timm is cubic: DALI has no cubic warp on both devices."""
    from nvidia.dali import fn, types

    matrix = fn.reshape(matrix, shape=[2, 3])
    how = {"matrix": matrix, "interp_type": types.INTERP_NN if nearest else types.INTERP_LINEAR}
    if len(set(fill)) == 1:
        return fn.warp_affine(video, fill_value=fill[0], **how)
    colour = types.Constant(np.int16(fill))  # the operator takes one number: make it 0
    moved = fn.warp_affine(fn.cast(video, dtype=types.INT16) - colour, fill_value=0, **how)
    return fn.cast(moved + colour, dtype=types.UINT8)


def _brightness(video, factor):
    from nvidia.dali import fn

    return fn.brightness_contrast(video, brightness=factor, brightness_shift=TRUNCATE / 255)


def _contrast(video, factor):
    from nvidia.dali import fn, math, types

    centre = math.floor(_mean_grey(video) + 0.5)
    return fn.cast(video * factor + (centre * (1 - factor) + TRUNCATE), dtype=types.UINT8)


def _mean_grey(video):
    """(F, 1, 1, 1) float32"""
    from nvidia.dali import fn, types

    grey = fn.color_space_conversion(video, image_type=types.RGB, output_type=types.GRAY)
    return fn.reductions.mean(grey, axis_names="HWC", keep_dims=True)


def _saturation(video, factor):
    from nvidia.dali import fn, types

    matrix = factor * types.Constant(np.eye(3, dtype=np.float32)) + (1 - factor) * types.Constant(np.float32([LUMA] * 3))
    return fn.coord_transform(video, M=matrix, T=[TRUNCATE] * 3, dtype=types.UINT8)


def _sharpness(video, factor):
    from nvidia.dali import fn, types

    same = np.float32([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    kernel = factor * types.Constant(same) + (1 - factor) * types.Constant(SMOOTH_KERNEL)
    if video.device == "gpu":
        kernel = kernel.gpu()
    sharp = fn.filter(video, kernel, dtype=types.FLOAT)
    return fn.brightness_contrast(sharp, brightness_shift=TRUNCATE / 255, dtype=types.UINT8)


def _posterize(video, mask):
    from nvidia.dali import fn, types

    return video & fn.cast(mask, dtype=types.UINT8)


def _solarize(video, threshold):
    from nvidia.dali import fn, types

    return video ^ ((video >= fn.cast(threshold, dtype=types.UINT8)) * types.Constant(255, dtype=types.UINT8))


def _solarize_add(video, added):
    from nvidia.dali import fn, types

    return video + (video < types.Constant(128, dtype=types.UINT8)) * fn.cast(added, dtype=types.UINT8)


def _autocontrast(video):
    """Stretches each channel of each frame to 0..255; a channel of one value stays."""
    from nvidia.dali import fn, types

    low = fn.reductions.min(video, axis_names="HW", keep_dims=True)  # (F, 1, 1, 3)
    high = fn.reductions.max(video, axis_names="HW", keep_dims=True)
    flat = low == high
    scale = 255.0 / ((high - low) + flat * types.Constant(255, dtype=types.UINT8))
    return fn.cast(video * scale + (TRUNCATE - low * scale * (flat ^ True)), dtype=types.UINT8)


def _equalize(video):
    """DALI's leaves the lowest value out of the histogram, PIL's the highest: so on the negative."""
    from nvidia.dali import fn, types

    negative = types.Constant(255, dtype=types.UINT8)
    return fn.equalize(video ^ negative) ^ negative


def _cutout(video, box, fill: list[float]):
    from nvidia.dali import fn

    return fn.erase(video, anchor=box[0:2], shape=box[2:4], axis_names="HW", fill_value=fill)


def _recolour(video, color, augment: AugmentOptions):
    from nvidia.dali import fn, math, types

    same = types.Constant(np.eye(3, 4, dtype=np.float32))
    if fn.reductions.max(math.abs(color - same)) > 0:
        video = _mix_colours(video, color, contrast=augment.color_jitter[1] > 0)
    return video


def _mix_colours(video, color, contrast: bool):
    from nvidia.dali import fn, types

    if not contrast:
        return fn.coord_transform(video, M=color[:, 0:3], dtype=types.UINT8)
    mixed = fn.coord_transform(video, M=color[:, 0:3], dtype=types.FLOAT)
    return fn.cast(mixed + _mean_grey(video) * color[0, 3], dtype=types.UINT8)


def _nvdec_is_here() -> bool:
    try:
        ctypes.CDLL("libnvcuvid.so.1")
        return True
    except OSError:
        return False
