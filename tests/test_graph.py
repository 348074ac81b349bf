"""The DALI graph against the same thing done plainly: PyAV decodes, PIL and torch do the rest."""

import io
import itertools

import av
import numpy as np
import pytest
import torch
from PIL import Image

from i2v.pipelines.augment import AugmentOptions, draw_augmentation, no_augmentation
from i2v.pipelines.boxes import test_boxes as spatial_views
from i2v.pipelines.boxes import train_box
from i2v.pipelines.graph import MEAN, STD, GraphOptions, build_pipeline
from i2v.pipelines.options import ClipOptions
from i2v.pipelines.philox import uniforms
from tests.videos import REAL_VIDEOS, decode, moving, write_video

SIZE = 112
WHOLE = [[0, 0, 100, 100]]
EVERYTHING = {"color_jitter": (0.4, 0.4, 0.4, 0.1), "grayscale": 0.2, "pca_noise": 0.1, "erasing": 0.25}
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


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """(bytes of a clip, its 4 frames as PyAV decodes them): a generated one, and a real one where there are any."""
    noise = np.random.default_rng(0).integers(0, 20, (160, 208, 1))
    pictures = [(moving(4, 160, 208) + noise).clip(0, 255).astype(np.uint8)]
    if REAL_VIDEOS.exists():
        pictures.append(real_frames("arm_wrestling.mp4"))
    clips = [clip_of(frames, tmp_path_factory.mktemp("clip")) for frames in pictures]
    return [(clip, decode(io.BytesIO(clip.tobytes()))) for clip in clips]


def render(samples, options: GraphOptions, device="cpu") -> np.ndarray:
    """samples: (clip, frames, boxes, flip, arrays) each -> (B, crops, T, size, size, 3)."""
    batch = [(clip, np.int32(t), np.float32(boxes), np.int32([flip]), *arrays) for clip, t, boxes, flip, arrays in samples]
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
        picture = Image.fromarray(frame).resize((size, size), method, box=(left, top, right, bottom))
        return np.asarray(picture, dtype=np.float64)
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
def test_crop_resize_mirror_normalise(videos, interpolation, antialias):
    options = GraphOptions(size=SIZE, interpolation=interpolation, antialias=antialias)
    samples, wanted = [], []
    for (clip, frames), crop, seed in itertools.product(videos, ("random_resized", "short_side"), range(3)):
        cut = ClipOptions(size=SIZE, crop=crop, area=(0.3, 1.0))
        box = np.float32(train_box(frames.shape[2], frames.shape[1], cut, draws(seed)))
        want = np.stack([resized(frames[t], box.tolist(), interpolation, antialias) for t in (0, 2, 1)])
        samples.append((clip, [0, 2, 1], [box], seed % 2, ()))
        wanted.append(normalised(want[:, :, ::-1] if seed % 2 else want))
    for got, want in zip(render(samples, options)[:, 0], wanted):
        assert difference(got, want) < BOUNDS[interpolation, antialias]
        assert difference(got, want) < 0.5 * difference(got[:, :, ::-1], want)  # a picture that can tell


def test_three_views(videos):
    views = [spatial_views(frames.shape[2], frames.shape[1], ClipOptions(size=SIZE), 3) for _, frames in videos]
    got = render([(clip, [0, 3], boxes, 0, ()) for (clip, _), boxes in zip(videos, views)], GraphOptions(size=SIZE, crops=3))
    for (_, frames), boxes, clips in zip(videos, views, got):
        for box, clip in zip(np.float32(boxes), clips):
            want = normalised(np.stack([resized(frames[t], box.tolist(), "cubic", True) for t in (0, 3)]))
            assert difference(clip, want) < BOUNDS["cubic", True]


def test_uint8_clips_normalise_to_the_float_clips(videos):
    samples = [(clip, [0, 1, 2], [[3, 5, 100, 120.5]], mirror, ()) for clip, _ in videos for mirror in (0, 1)]
    pixels, floats, halves = (render(samples, GraphOptions(size=SIZE, dtype=d)) for d in ("uint8", "float32", "float16"))
    assert pixels.dtype == np.uint8 and floats.dtype == np.float32 and halves.dtype == np.float16
    # the graph multiplies by 1 / std: the last bit of float32 may differ
    np.testing.assert_allclose((np.float32(pixels) - np.float32(MEAN)) / np.float32(STD), floats, rtol=0, atol=1e-6)
    np.testing.assert_allclose(halves.astype(np.float32), floats, rtol=0, atol=2e-3)


@pytest.mark.parametrize("on", ["frames", "crop"])
def test_an_augmentation_that_does_nothing_changes_nothing(videos, on):
    samples = [(clip, [0, 1], WHOLE, 1) for clip, _ in videos]
    plain = render([(*sample, ()) for sample in samples], GraphOptions(size=SIZE))
    everything = AugmentOptions(randaugment="rand-m7-n4", randaugment_on=on, **EVERYTHING)
    assert everything.arrays == ("ops", "values", "color", "noise", "erase")
    nothing = no_augmentation(everything).arrays()
    same = render([(*sample, nothing) for sample in samples], GraphOptions(size=SIZE, augment=everything))
    np.testing.assert_array_equal(plain, same)


# ---- colour, noise, erasing ------------------------------------------------------------------------------------------


def before_and_after(videos, seeds=range(6), **options):
    """For every video: its pixels; clips with this augmentation drawn with different seeds; what was drawn."""
    augment = AugmentOptions(**options)
    drawn = [draw_augmentation(augment, 100, 100, SIZE, draws(seed)) for seed in seeds]
    samples = [(clip, [0, 1], WHOLE, 0, a.arrays()) for clip, _ in videos for a in drawn]
    after = render(samples, GraphOptions(size=SIZE, augment=augment))[:, 0]
    plain = render([(clip, [0, 1], WHOLE, 0, ()) for clip, _ in videos], GraphOptions(size=SIZE, dtype="uint8"))[:, 0]
    for number, pixels in enumerate(plain.astype(np.float64)):
        yield pixels, after[number * len(drawn) : (number + 1) * len(drawn)], drawn


def test_grayscale(videos):
    for pixels, after, _ in before_and_after(videos, range(12), grayscale=0.5):
        grey = np.stack([np.stack([np.asarray(Image.fromarray(np.uint8(f)).convert("L"))] * 3, -1) for f in pixels])
        lost = [difference(clip, normalised(grey)) < 0.05 for clip in after]
        kept = [difference(clip, normalised(pixels)) < 1e-5 for clip in after]
        assert all(a != b for a, b in zip(lost, kept)) and any(lost) and any(kept)


@pytest.mark.parametrize("jitter", [(0.4, 0, 0.4, 0), (0.4, 0.4, 0.4, 0.2)])
def test_color_jitter(videos, jitter):
    """Brightness, contrast about the frame's mean grey, saturation; hue is a rotation in YIQ, as in DALI's own hue."""
    for pixels, after, drawn in before_and_after(videos, color_jitter=jitter):
        mean_grey = (pixels @ np.array([0.299, 0.587, 0.114])).mean(axis=(1, 2))[:, None, None, None]
        for clip, augmentation in zip(after, drawn):
            want = pixels @ augmentation.color[:, :3].T + augmentation.color[0, 3] * mean_grey
            assert difference(clip, normalised(want.clip(0, 255))) < 0.35


def test_pca_noise_is_not_rounded(videos):
    for pixels, after, drawn in before_and_after(videos, pca_noise=0.1):
        for clip, augmentation in zip(after, drawn):
            assert 0.1 < np.abs(augmentation.noise).max() < 60
            assert difference(clip, normalised(pixels + augmentation.noise)) < 1e-4


@pytest.mark.parametrize("fill", ["mean", 128])
def test_erasing(videos, fill):
    for pixels, after, drawn in before_and_after(videos, range(12), erasing=0.7, erasing_fill=fill):
        assert {bool(a.erase.any()) for a in drawn} == {True, False}
        for clip, augmentation in zip(after, drawn):
            assert difference(clip, erased(normalised(pixels), augmentation.erase, fill)) < 1e-4


def erased(clip, box, fill) -> np.ndarray:
    """A normalised clip (T, H, W, 3) without a box (top, left, height, width)."""
    top, left, height, width = np.int64(box)
    clip = clip.copy()
    clip[:, top : top + height, left : left + width] = 0 if fill == "mean" else normalised(np.array([128.0] * 3))
    return clip


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
def test_recipes_against_plain_code(videos, recipe):
    """Decode, distort, crop, distort, normalise, mirror, erase: one after the other in PIL, numpy and torch."""
    augment, cut = AugmentOptions(**RECIPES[recipe]), ClipOptions(size=SIZE, area=(0.3, 1.0))
    samples, wanted = [], []
    for (clip, frames), seed in itertools.product(videos, range(7)):
        height, width = frames.shape[1:3]
        box = np.float32(train_box(width, height, cut, draws(seed)))
        drawn = draw_augmentation(augment, width, height, SIZE, draws(seed))
        samples.append((clip, [0, 3], [box], seed % 2, drawn.arrays()))
        wanted.append(plainly(frames[[0, 3]], box, seed % 2, drawn, augment))
    got = render(samples, GraphOptions(size=SIZE, augment=augment))[:, 0]
    differences = [difference(clip, want) for clip, want in zip(got, wanted)]
    print(recipe, np.round(differences, 2))
    # 1.0 to 1.3 where nothing is done; equalize and posterize to 2 bits magnify what the decoders differ by.
    assert np.median(differences) < 2.5 and max(differences) < 12


def plainly(frames, box, mirror, drawn, augment) -> np.ndarray:
    from tests.test_augment import distorted  # which imports this module

    if augment.randaugment_on == "frames":
        frames = distorted(frames, drawn, augment)
    clip = np.stack([resized(frame, box.tolist(), "cubic", True) for frame in frames])
    if augment.randaugment_on == "crop":
        clip = distorted(clip.astype(np.uint8), drawn, augment)
    if drawn.color is not None:
        clip = clip @ drawn.color[:, :3].T
    clip = normalised(clip + (0 if drawn.noise is None else drawn.noise))
    clip = clip[:, :, ::-1] if mirror else clip
    return clip if drawn.erase is None else erased(clip, drawn.erase, augment.erasing_fill)


# ---- the GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("randaugment, on", [("rand-m7-n2", "frames"), ("imgaug-m7-n2", "crop")])
def test_the_gpu_graph_can_be_defined(randaugment, on):
    """DALI takes arguments of operators from the CPU only, and says so while the graph is written down."""
    augment = AugmentOptions(randaugment=randaugment, randaugment_on=on, randaugment_fill="mean", **EVERYTHING)
    problem = "none"
    try:
        build_pipeline(lambda: (), GraphOptions(size=SIZE, augment=augment), 2, "gpu", "cpu", 0, 1)
    except RuntimeError as error:
        problem = str(error)
    assert problem == "none" or "CUDA is not available" in problem


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("randaugment", ["rand-m7-n4-mstd0.5-inc1", "imgaug-m7-n4", "pytorchvideo-m7-n4-mstd0.5"])
@pytest.mark.parametrize("on", ["frames", "crop"])
def test_gpu_and_cpu_agree(videos, randaugment, on):
    augment = AugmentOptions(randaugment=randaugment, randaugment_on=on, randaugment_fill="mean", **EVERYTHING)
    samples = []
    for (clip, frames), seed in itertools.product(videos, range(12)):
        drawn = draw_augmentation(augment, frames.shape[2], frames.shape[1], SIZE, draws(seed))
        samples.append((clip, [0, 3], WHOLE, seed % 2, drawn.arrays()))
    options = GraphOptions(size=SIZE, augment=augment)
    differences = [difference(a, b) for a, b in zip(render(samples, options), render(samples, options, "gpu"))]
    assert np.median(differences) < 1 and max(differences) < 6
