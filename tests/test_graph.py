"""The DALI graph against the same thing done plainly: PyAV decodes, PIL and torch do the rest."""

import io

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.augment import AugmentOptions, draw_augmentation, no_augmentation
from pipelines.boxes import test_boxes as spatial_views
from pipelines.boxes import train_box
from pipelines.graph import MEAN, STD, GraphOptions, build_pipeline
from pipelines.options import ClipOptions
from pipelines.philox import uniforms
from tests.videos import REAL_VIDEOS, moving, write_video

SIZE = 112
WHOLE = [[0, 0, 100, 100]]
GREY_LEVELS = np.mean(STD)  # in one unit of a normalised clip


def clip_of(frames, tmp_path) -> np.ndarray:
    """Frames (T, H, W, 3) as a VP9 mp4, which DALI decodes anywhere, without loss but for the colours: (bytes,) uint8."""
    options = {"lossless": "1", "auto-alt-ref": "0", "lag-in-frames": "0", "deadline": "realtime", "cpu-used": "8"}
    path = write_video(tmp_path / "clip.mp4", frames, codec="libvpx-vp9", options=options)
    return np.frombuffer(path.read_bytes(), dtype=np.uint8)


def real_frames(name, count=4, every=8) -> np.ndarray:
    with av.open(str(REAL_VIDEOS / name)) as container:
        frames = [f.to_ndarray(format="rgb24") for f, _ in zip(container.decode(video=0), range(count * every))]
    return np.stack(frames[::every])


@pytest.fixture(scope="module", params=["generated", "arm_wrestling.mp4"])
def video(request, tmp_path_factory):
    """(bytes of a clip, its frames as PyAV decodes them)."""
    if request.param == "generated":
        frames = moving(4, 160, 208)
        frames = (frames + np.random.default_rng(0).integers(0, 20, (160, 208, 1))).clip(0, 255).astype(np.uint8)
    elif not REAL_VIDEOS.exists():
        pytest.skip("no folder of real videos here")
    else:
        frames = real_frames(request.param)
    clip = clip_of(frames, tmp_path_factory.mktemp("clip"))
    with av.open(io.BytesIO(clip.tobytes())) as container:
        return clip, np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def render(samples, options: GraphOptions, device="cpu") -> np.ndarray:
    """samples: (clip, frames, boxes, flip, arrays) each -> (B, crops, T, size, size, 3)."""
    batch = [
        (clip, np.int32(frames), np.float32(boxes), np.int32([flip]), *arrays) for clip, frames, boxes, flip, arrays in samples
    ]
    once = iter([tuple(map(list, zip(*batch)))])  # the graph asks for more batches ahead
    pipeline = build_pipeline(lambda: next(once), options, len(batch), device, "cpu", 0, 1)
    pipeline.build()
    (out,) = pipeline.run()
    return np.array((out.as_cpu() if device == "gpu" else out).as_tensor())


def resized(frame, box, interpolation, antialias, size=SIZE) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3): PIL with a filter, torch without."""
    if antialias:
        method = {"cubic": Image.BICUBIC, "linear": Image.BILINEAR}[interpolation]
        top, left, bottom, right = box
        return np.asarray(Image.fromarray(frame).resize((size, size), method, box=(left, top, right, bottom)), dtype=np.float64)
    height, width = frame.shape[:2]
    steps = (np.arange(size) + 0.5) / size
    y, x = (box[0] + (box[2] - box[0]) * steps) / height, (box[1] + (box[3] - box[1]) * steps) / width
    grid = torch.tensor(np.stack(np.broadcast_arrays(2 * x[None] - 1, 2 * y[:, None] - 1), axis=-1))[None]
    pixels = torch.tensor(frame.astype(np.float64)).permute(2, 0, 1)[None]
    mode = {"cubic": "bicubic", "linear": "bilinear"}[interpolation]
    out = torch.nn.functional.grid_sample(pixels, grid, mode=mode, padding_mode="border", align_corners=False)
    return out[0].permute(1, 2, 0).numpy().clip(0, 255)


def normalised(frames) -> np.ndarray:
    return (frames - np.array(MEAN)) / np.array(STD)


def difference(got, want) -> float:
    """Mean absolute difference of normalised clips, in grey levels."""
    return float(np.abs(np.asarray(got, dtype=np.float64) - want).mean() * GREY_LEVELS)


def draws(seed):
    return lambda stream, numbers: uniforms(seed, stream, 0, 0, numbers)


# Grey levels by which a clip may differ on average. 1.0 to 1.2 of it is what PyAV's and DALI's YUV to RGB differ by;
# torch's cubic is a sharper one (a = -0.75) than DALI's and PIL's (-0.5), which is the rest of cubic without antialias.
BOUNDS = {("linear", True): 1.4, ("cubic", True): 1.4, ("linear", False): 1.6, ("cubic", False): 2.0}


@pytest.mark.parametrize("interpolation, antialias", BOUNDS)
@pytest.mark.parametrize("crop", ["random_resized", "short_side"])
def test_crop_resize_mirror_normalise(video, crop, interpolation, antialias):
    clip, frames = video
    height, width = frames.shape[1:3]
    clip_options = ClipOptions(size=SIZE, crop=crop, area=(0.3, 1.0))
    options = GraphOptions(size=SIZE, interpolation=interpolation, antialias=antialias)
    boxes = [train_box(width, height, clip_options, draws(seed)) for seed in range(4)]
    got = render([(clip, [0, 2, 1], [box], seed % 2, ()) for seed, box in enumerate(boxes)], options)[:, 0]
    for seed, box in enumerate(boxes):
        want = np.stack([resized(frames[t], np.float32(box).tolist(), interpolation, antialias) for t in (0, 2, 1)])
        want = normalised(want[:, :, ::-1] if seed % 2 else want)
        assert difference(got[seed], want) < BOUNDS[interpolation, antialias]
        assert difference(got[seed], want) < 0.5 * difference(got[seed][:, :, ::-1], want)  # a picture that can tell


def test_three_views(video):
    clip, frames = video
    boxes = spatial_views(frames.shape[2], frames.shape[1], ClipOptions(size=SIZE), 3)
    got = render([(clip, [0, 3], boxes, 0, ())], GraphOptions(size=SIZE, crops=3))[0]  # (3, T, H, W, C)
    for view, box in zip(got, boxes):
        want = normalised(np.stack([resized(frames[t], np.float32(box).tolist(), "cubic", True) for t in (0, 3)]))
        assert difference(view, want) < BOUNDS["cubic", True]


@pytest.mark.parametrize("mirror", [0, 1])
def test_uint8_clips_normalise_to_the_float_clips(video, mirror):
    clip, frames = video
    sample = (clip, [0, 1, 2], [[3, 5, 100, 120.5]], mirror, ())
    pixels, floats, halves = (render([sample], GraphOptions(size=SIZE, dtype=d)) for d in ("uint8", "float32", "float16"))
    assert pixels.dtype == np.uint8 and floats.dtype == np.float32 and halves.dtype == np.float16
    # the graph multiplies by 1 / std: the last bit of float32 may differ
    np.testing.assert_allclose((np.float32(pixels) - np.float32(MEAN)) / np.float32(STD), floats, rtol=0, atol=1e-6)
    np.testing.assert_allclose(halves.astype(np.float32), floats, rtol=0, atol=2e-3)


def test_without_augmentation_the_graph_takes_no_more_inputs(video):
    """Four inputs, and the same pixels as with an augmentation that is on and does nothing."""
    clip, _ = video
    sample = (clip, [0, 1], WHOLE, 1)
    plain = render([(*sample, ())], GraphOptions(size=SIZE))
    everything = AugmentOptions(
        randaugment="rand-m7-n4", color_jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.2, pca_noise=0.1, erasing=0.25
    )
    assert everything.arrays == ("ops", "values", "color", "noise", "erase")
    nothing = no_augmentation(everything).arrays()
    for on in ("frames", "crop"):
        augment = AugmentOptions(**{**vars(everything), "randaugment_on": on})
        np.testing.assert_array_equal(plain, render([(*sample, nothing)], GraphOptions(size=SIZE, augment=augment)))


# ---- colour, noise, erasing ------------------------------------------------------------------------------------------


def before_and_after(video, seeds=range(6), **options):
    """Plain clips, clips with this augmentation drawn with different seeds, and what was drawn."""
    clip, _ = video
    augment = AugmentOptions(**options)
    drawn = [draw_augmentation(augment, 100, 100, SIZE, draws(seed)) for seed in seeds]
    after = render([(clip, [0, 1], WHOLE, 0, a.arrays()) for a in drawn], GraphOptions(size=SIZE, augment=augment))[:, 0]
    pixels = render([(clip, [0, 1], WHOLE, 0, ())], GraphOptions(size=SIZE, dtype="uint8"))[0, 0]
    return pixels.astype(np.float64), after, drawn


def test_grayscale(video):
    pixels, after, drawn = before_and_after(video, range(12), grayscale=0.5)
    grey = np.stack([np.stack([np.asarray(Image.fromarray(np.uint8(f)).convert("L"))] * 3, -1) for f in pixels])
    lost = [difference(clip, normalised(grey)) < 0.05 for clip in after]
    kept = [difference(clip, normalised(pixels)) < 1e-5 for clip in after]
    assert all(a != b for a, b in zip(lost, kept)) and any(lost) and any(kept)


@pytest.mark.parametrize("jitter", [(0.4, 0, 0.4, 0), (0.4, 0.4, 0.4, 0.2)])
def test_color_jitter(video, jitter):
    """Brightness, contrast about the frame's mean grey, saturation; hue is a rotation in YIQ, as in DALI's own hue."""
    pixels, after, drawn = before_and_after(video, color_jitter=jitter)
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    for clip, augmentation in zip(after, drawn):
        matrix, weight = augmentation.color[:, :3], augmentation.color[0, 3]
        want = pixels @ matrix.T + weight * grey.mean(axis=(1, 2))[:, None, None, None]
        assert difference(clip, normalised(want.clip(0, 255))) < 0.35


def test_pca_noise_is_not_rounded(video):
    pixels, after, drawn = before_and_after(video, pca_noise=0.1)
    for clip, augmentation in zip(after, drawn):
        assert 0.1 < np.abs(augmentation.noise).max() < 60
        assert difference(clip, normalised(pixels + augmentation.noise)) < 1e-4


@pytest.mark.parametrize("fill", ["mean", 128])
def test_erasing(video, fill):
    pixels, after, drawn = before_and_after(video, range(12), erasing=0.7, erasing_fill=fill)
    boxes = [a.erase for a in drawn]
    assert {bool(box.any()) for box in boxes} == {True, False}
    for clip, (top, left, height, width) in zip(after, np.int64(boxes)):
        want = normalised(pixels)
        want[:, top : top + height, left : left + width] = 0 if fill == "mean" else normalised(np.array([128.0] * 3))
        assert difference(clip, want) < 1e-4


# ---- everything together ---------------------------------------------------------------------------------------------

RECIPES = {
    "st_adapter_ssv2": {"randaugment": "rand-m7-n4-mstd0.5-inc1", "randaugment_on": "frames"},
    "aim_ssv2": {"randaugment": "imgaug-m7-n4", "erasing": 0.25},
    "aim_large_k400": {"pca_noise": 0.1},
    "zeroi2v_k400": {"randaugment": "pytorchvideo-m7-n4-mstd0.5", "randaugment_on": "frames"},
    "zeroi2v_ssv2": {"randaugment": "pytorchvideo-m7-n4-mstd0.5", "erasing": 0.25, "erasing_fill": 128},
    "tada": {"randaugment": "rand-m9-n4-mstd0.5-inc1", "randaugment_fill": "mean", "grayscale": 0.2},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_against_plain_code(video, recipe):
    """Decode, distort, crop, distort, normalise, erase: one after the other in PIL, numpy and torch."""
    from tests.test_augment import distorted

    clip, frames = video
    height, width = frames.shape[1:3]
    augment = AugmentOptions(**RECIPES[recipe])
    clip_options, options = ClipOptions(size=SIZE, area=(0.3, 1.0)), GraphOptions(size=SIZE, augment=augment)
    samples, wanted = [], []
    for seed in range(8):
        box = train_box(width, height, clip_options, draws(seed))
        drawn = draw_augmentation(augment, width, height, SIZE, draws(seed))
        samples.append((clip, [0, 3], [box], seed % 2, drawn.arrays()))
        pixels = frames[[0, 3]]
        if augment.randaugment_on == "frames":
            pixels = distorted(pixels, drawn, augment)
        pixels = np.stack([resized(frame, box.tolist(), "cubic", True) for frame in pixels])
        if augment.randaugment_on == "crop":
            pixels = distorted(pixels.astype(np.uint8), drawn, augment)
        if drawn.color is not None:
            pixels = pixels @ drawn.color[:, :3].T
        pixels = normalised(pixels + (0 if drawn.noise is None else drawn.noise))
        pixels = pixels[:, :, ::-1].copy() if seed % 2 else pixels
        if drawn.erase is not None:
            top, left, h, w = np.int64(drawn.erase)
            pixels[:, top : top + h, left : left + w] = 0 if augment.erasing_fill == "mean" else normalised(np.array([128.0] * 3))
        wanted.append(pixels)
    got = render(samples, options)[:, 0]
    differences = [difference(clip, want) for clip, want in zip(got, wanted)]
    print(recipe, np.round(differences, 2))
    # 1.0 to 1.3 where nothing is done; equalize and posterize to 2 bits magnify what the decoders differ by.
    assert np.median(differences) < 2.5 and max(differences) < 12


# ---- the GPU ---------------------------------------------------------------------------------------------------------

EVERYTHING = {"color_jitter": (0.4, 0.4, 0.4, 0.1), "grayscale": 0.2, "pca_noise": 0.1, "erasing": 0.25}


@pytest.mark.parametrize("randaugment", ["rand-m7-n4-mstd0.5-inc1", "imgaug-m7-n4", "pytorchvideo-m7-n4-mstd0.5"])
@pytest.mark.parametrize("on", ["frames", "crop"])
def test_the_gpu_graph_can_be_defined(randaugment, on):
    """DALI takes arguments of operators from the CPU only, and says so while the graph is written down."""
    augment = AugmentOptions(randaugment=randaugment, randaugment_on=on, randaugment_fill="mean", **EVERYTHING)
    try:
        build_pipeline(lambda: (), GraphOptions(size=SIZE, augment=augment), 2, "gpu", "cpu", 0, 1)
    except RuntimeError as error:
        if "CUDA is not available" not in str(error):
            raise


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("randaugment", ["rand-m7-n4-mstd0.5-inc1", "imgaug-m7-n4", "pytorchvideo-m7-n4-mstd0.5"])
@pytest.mark.parametrize("on", ["frames", "crop"])
def test_gpu_and_cpu_agree(video, randaugment, on):
    clip, frames = video
    augment = AugmentOptions(randaugment=randaugment, randaugment_on=on, randaugment_fill="mean", **EVERYTHING)
    options = GraphOptions(size=SIZE, augment=augment)
    height, width = frames.shape[1:3]
    drawn = [draw_augmentation(augment, width, height, SIZE, draws(seed)) for seed in range(16)]
    samples = [(clip, [0, 3], WHOLE, seed % 2, a.arrays()) for seed, a in enumerate(drawn)]
    cpu, gpu = render(samples, options), render(samples, options, "gpu")
    differences = [difference(a, b) for a, b in zip(cpu, gpu)]
    assert np.median(differences) < 1 and max(differences) < 6
