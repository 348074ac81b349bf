"""What is drawn for a clip, and each operation through the real graph, against timm and PIL."""

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from timm.data import auto_augment as timm_augment
from timm.data.random_erasing import RandomErasing

from i2v.pipelines import augment as a
from i2v.pipelines.augment import AugmentOptions, draw_augmentation, no_augmentation, parse_randaugment
from i2v.pipelines.graph import GraphOptions, _colour
from i2v.pipelines.philox import uniforms
from tests.test_graph import EVERYTHING, clip_of, render, videos  # noqa: F401 (a fixture)
from tests.videos import moving, noise

SIZE = 112
TIMM, IMGAUG, PYTORCHVIDEO = "rand-m7-n4-mstd0.5-inc1", "imgaug-m7-n4", "pytorchvideo-m7-n4-mstd0.5"


def draws(seed, sample=0):
    return lambda stream, numbers: uniforms(seed, stream, 0, sample, numbers)


# ---- one operation, in PIL -------------------------------------------------------------------------------------------


def with_pil(image, op, v, fill):
    """What a primitive stands for."""
    if op in (a.WARP, a.WARP_NEAREST):
        method = Image.NEAREST if op == a.WARP_NEAREST else Image.BILINEAR
        return image.transform(image.size, Image.AFFINE, tuple(map(float, v)), resample=method, fillcolor=fill)
    if op == a.CUTOUT:
        pixels = np.array(image)
        top, left, bottom, right = (max(0, round(float(x))) for x in (v[0], v[1], v[0] + v[2], v[1] + v[3]))
        pixels[top:bottom, left:right] = fill
        return Image.fromarray(pixels)
    if op == a.POSTERIZE:
        return image.point([i & int(v[0]) for i in range(256)] * 3)
    return {
        a.NOTHING: lambda: image,
        a.BRIGHTNESS: lambda: timm_augment.brightness(image, v[0]),
        a.CONTRAST: lambda: timm_augment.contrast(image, v[0]),
        a.SATURATION: lambda: timm_augment.color(image, v[0]),
        a.SHARPNESS: lambda: timm_augment.sharpness(image, v[0]),
        a.SMOOTH: lambda: image.filter(ImageFilter.SMOOTH),
        a.BLUR: lambda: image.filter(ImageFilter.BLUR),
        a.SOLARIZE: lambda: timm_augment.solarize(image, v[0]),
        a.SOLARIZE_ADD: lambda: timm_augment.solarize_add(image, int(v[0])),
        a.AUTOCONTRAST: lambda: timm_augment.auto_contrast(image),
        a.EQUALIZE: lambda: timm_augment.equalize(image),
    }[int(op)]()


def distorted(frames, drawn, options) -> np.ndarray:
    """RandAugment as drawn, frame by frame in PIL: (T, H, W, 3) uint8."""
    if drawn.ops is None:
        return frames
    family = options.recipe.family
    fill = a.FILL[family] if options.randaugment_fill is None else options.randaugment_fill
    fill = tuple(map(round, _colour(fill, GraphOptions())))
    images = [Image.fromarray(frame) for frame in frames]
    for op, v in zip(drawn.ops, drawn.values):
        images = [with_pil(image, op, v, fill) for image in images]
    return np.stack([np.asarray(image) for image in images])


def through_the_graph(clips, steps, fill=None):
    """steps: (primitive, values) of one clip each. Yields, for every clip, its pixels and what each step makes of them."""
    options, samples = AugmentOptions(randaugment="imgaug-m0-n1", randaugment_fill=fill), []
    for clip, (op, numbers) in itertools.product(clips, [(a.NOTHING, ()), *steps]):
        values = np.zeros((2, a.VALUES), np.float32)
        values[0, : len(numbers)] = numbers
        samples.append((clip, [0, 3], [[0, 0, SIZE, SIZE]], 0, (np.int32([op, 0]), values)))
    out = render(samples, GraphOptions(size=SIZE, dtype="uint8", augment=options))[:, 0]
    for first in range(0, len(out), len(steps) + 1):
        yield out[first], out[first + 1 : first + 1 + len(steps)]


# Mean absolute difference to timm in grey levels; 0.01: at most one pixel in a hundred is off by one. Color: PIL rounds
# the grey first. Sharpness: PIL rounds the smooth picture first, and leaves the outermost pixels alone, as it does in
# smooth and blur. Equalize: PIL divides by a whole number of pixels, which matters less the larger the picture is. Warps:
# DALI interpolates linearly and rounds, timm cubically and cuts off.
TOLERANCE = {
    "Brightness": 0.01,
    "Contrast": 0.03,
    "Color": 0.3,
    "Sharpness": 0.5,
    "Invert": 0,
    "Posterize": 0,
    "Solarize": 0,
    "SolarizeAdd": 0,
    "AutoContrast": 0.02,
    "Equalize": 1.5,
    "Rotate": 2,
    "ShearX": 1.5,
    "ShearY": 1.5,
    "TranslateX": 1.5,
    "TranslateY": 1.5,
}
NAMES = {
    "Posterize": "PosterizeIncreasing",
    "Solarize": "SolarizeIncreasing",
    "Color": "ColorIncreasing",
    "Contrast": "ContrastIncreasing",
    "Brightness": "BrightnessIncreasing",
    "Sharpness": "SharpnessIncreasing",
    "TranslateX": "TranslateXRel",
    "TranslateY": "TranslateYRel",
}


def timm_operation(name, level, sign, monkeypatch, increasing=True, fill=(128, 128, 128)):
    """timm's own function for an operation and a magnitude: image -> image."""
    timm_name = NAMES.get(name, name)
    if not increasing:
        timm_name = timm_name.replace("Increasing", "")
    monkeypatch.setattr(timm_augment, "_randomly_negate", lambda value: sign * value)
    to_arguments = timm_augment.LEVEL_TO_ARG[timm_name]
    arguments = to_arguments(level, {}) if to_arguments else ()
    kwargs = {"fillcolor": fill, "resample": Image.BICUBIC}
    return lambda image: timm_augment.NAME_TO_OP[timm_name](image, *arguments, **kwargs)


def test_operations_equal_timms(videos, monkeypatch):  # noqa: F811
    cases = [
        (name, level, sign, inc)
        for level, inc in ((7.0, 1), (9.4, 1), (4.2, 0))
        for name in a.OPERATIONS["rand"]
        for sign in ((1,) if TOLERANCE[name] == 0 or name in ("AutoContrast", "Equalize") else (-1, 1))
    ]
    recipes = [parse_randaugment(f"rand-m7-n4-inc{inc}") for inc in (0, 1)]
    steps = [a._primitive(n, a._strength(n, recipes[inc], m, s), "rand", SIZE, SIZE, (0, 0)) for n, m, s, inc in cases]
    for pixels, after in through_the_graph([clip for clip, _ in videos], steps):
        for (name, level, sign, inc), got in zip(cases, after):
            operation = timm_operation(name, level, sign, monkeypatch, bool(inc))
            want = np.stack([np.asarray(operation(Image.fromarray(frame))) for frame in pixels])
            off = np.abs(got.astype(int) - want).mean()
            print(f"{name} {sign * level}: {off:.3f}")
            assert off <= TOLERANCE[name], (name, level, sign)


@pytest.mark.parametrize("fill, colour", [(None, (128, 128, 128)), ("mean", (123, 117, 104))])
def test_operations_of_imgaug_and_fill_colours(videos, fill, colour):  # noqa: F811
    turned, mirrored = a._rotation(7.0, SIZE, SIZE), (-0.97, 0, 0.99 * SIZE, 0, 0.98, 0.01 * SIZE)
    cases = [
        (a.SMOOTH, (), 0.01),
        (a.BLUR, (), 0.05),
        (a.CUTOUT, (-3, 60, 30, 20), 0),
        (a.WARP_NEAREST, turned, 0.05),
        (a.WARP, turned, 0.8),
        (a.WARP, mirrored, 0.8),
    ]
    for pixels, after in through_the_graph([clip for clip, _ in videos], [(op, v) for op, v, _ in cases], fill):
        for (op, v, tolerance), got in zip(cases, after):
            want = np.stack([np.asarray(with_pil(Image.fromarray(frame), op, v, colour)) for frame in pixels])
            off = np.abs(got.astype(int) - want)
            inside = off[:, 2:-2, 2:-2] if op in (a.SMOOTH, a.BLUR) else off  # PIL leaves the border of the picture alone
            assert inside.mean() <= tolerance and off.mean() < 1, op


def test_equalize_and_autocontrast_see_a_black_border_as_pil_does(tmp_path):
    """Letterboxed videos: OpenCV's equalize leaves the most frequent dark value out, PIL's does not."""
    frames = noise(4, SIZE, SIZE)
    frames[:, :40] = 0
    frames[3] = 77  # one colour: both leave it as it is
    steps = [(a.EQUALIZE, ()), (a.AUTOCONTRAST, ())]
    ((pixels, after),) = through_the_graph([clip_of(frames, tmp_path)], steps)
    for got, operation in zip(after, (timm_augment.equalize, timm_augment.auto_contrast)):
        want = np.stack([np.asarray(operation(Image.fromarray(frame))) for frame in pixels])
        assert np.abs(got.astype(int) - want).mean() < 1


def test_randaugment_as_a_whole_equals_timms(videos):  # noqa: F811
    """timm augments a clip, the same draw for every frame; what it drew goes through the graph."""
    transform = timm_augment.rand_augment_transform(TIMM, {"img_mean": (128, 128, 128), "interpolation": Image.BICUBIC})
    back = {NAMES.get(name, name): name for name in a.OPERATIONS["rand"]}
    applied = []
    for op in transform.ops:
        function = op.aug_fn
        op.aug_fn = lambda image, *args, _f=function, _n=op.name, **kw: applied.append((_n, args)) or _f(image, *args, **kw)
    clips = [clip for clip, _ in videos]
    samples, wanted = [], []
    for (clip, (pixels, _)), seed in itertools.product(zip(clips, through_the_graph(clips, [])), range(16)):
        images = []
        for frame in pixels:
            random.seed(seed), np.random.seed(seed), applied.clear()
            images.append(np.asarray(transform(Image.fromarray(frame))))
        wanted.append(np.stack(images))
        ops, values = np.zeros(4, np.int32), np.zeros((4, a.VALUES), np.float32)
        for row, (name, args) in enumerate(applied):
            op, numbers = a._primitive(back[name], *(args or (0,)), "rand", SIZE, SIZE, (0, 0))
            ops[row], values[row, : len(numbers)] = op, numbers
        samples.append((clip, [0, 3], [[0, 0, SIZE, SIZE]], 0, (ops, values)))
    got = render(samples, GraphOptions(size=SIZE, dtype="uint8", augment=AugmentOptions(randaugment=TIMM)))[:, 0]
    off = np.abs(got.astype(int) - np.stack(wanted)).mean(axis=(1, 2, 3, 4))
    print(np.round(off, 2))
    assert off.mean() < 2 and np.median(off) < 1.5


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def drawn_steps(name, clips=3000, width=200, height=100, **options):
    options = AugmentOptions(randaugment=name, **{"randaugment_on": "frames", **options})
    for clip in range(clips):
        augmentation = draw_augmentation(options, width, height, 224, draws(1, clip))
        yield list(zip(augmentation.ops.tolist(), augmentation.values))


def named(op, v, width=200, height=100):
    """(operation, strength) of a row."""
    if op in (a.WARP, a.WARP_NEAREST):
        if v[1] and v[3]:
            return "Rotate", math.degrees(math.asin(v[3]))
        moves = {"ShearX": v[1], "ShearY": v[3], "TranslateX": v[2] / width, "TranslateY": v[5] / height}
        return max(moves.items(), key=lambda item: abs(item[1]))
    if op == a.SOLARIZE:
        return ("Invert", 0) if v[0] == 0 else ("Solarize", v[0])
    names = {
        a.BRIGHTNESS: "Brightness",
        a.CONTRAST: "Contrast",
        a.SATURATION: "Color",
        a.SHARPNESS: "Sharpness",
        a.SMOOTH: "Smooth",
        a.BLUR: "Blur",
        a.POSTERIZE: "Posterize",
        a.SOLARIZE_ADD: "SolarizeAdd",
        a.AUTOCONTRAST: "AutoContrast",
        a.EQUALIZE: "Equalize",
        a.CUTOUT: "Cutout",
        a.NOTHING: "Identity",
    }
    return names[op], v[0]


def about(count, trials, p):
    return abs(count - trials * p) < 4.5 * math.sqrt(trials * p * (1 - p))


def test_timm_draws_each_operation_equally_often_and_applies_half():
    steps = [step for clip in drawn_steps(TIMM) for step in clip]
    assert len(steps) == 12000
    counts = Counter(named(*step)[0] for step in steps)
    assert about(counts.pop("Identity"), 12000, 0.5) and set(counts) == set(a.OPERATIONS["rand"])
    assert all(about(count, 12000, 0.5 / 15) for count in counts.values())


def test_magnitudes_are_timms():
    """Mean, spread and sign of what timm draws with the same name, by sampling timm."""
    ours = {name: [] for name in a.OPERATIONS["rand"]}
    for clip in drawn_steps(TIMM, clips=6000):
        for step in clip:
            name, strength = named(*step)
            ours.get(name, []).append(strength)
    random.seed(0)
    for name, strengths in ours.items():
        op = timm_augment.AugmentOp(NAMES.get(name, name), 1.0, 7, {"magnitude_std": 0.5})
        if op.level_fn is None:
            continue
        theirs = []
        op.aug_fn = lambda image, strength, **_: theirs.append(strength)
        for _ in range(3000):
            op(None)
        if name == "Posterize":
            strengths = [8 - math.log2(256 - s) for s in strengths]
        assert np.mean(strengths) == pytest.approx(np.mean(theirs), abs=5 * np.std(theirs) / math.sqrt(500)), name
        assert np.std(strengths) == pytest.approx(np.std(theirs), rel=0.2), name
        for quantile in (0.02, 0.98):
            near = 0.25 * np.std(theirs) + 1e-6
            assert np.quantile(strengths, quantile) == pytest.approx(np.quantile(theirs, quantile), abs=near), name


def test_magnitudes_are_clipped_at_ten():
    steps = [named(*step) for clip in drawn_steps("rand-m10-n4-mstd3-inc1") for step in clip]
    turns = [abs(degrees) for name, degrees in steps if name == "Rotate"]
    assert max(turns) == pytest.approx(30, abs=1e-3) and sum(turn > 29.99 for turn in turns) > len(turns) / 3


@pytest.mark.parametrize("name", [IMGAUG, PYTORCHVIDEO])
def test_the_other_families_draw_without_replacement(name):
    family = name.split("-")[0]
    operations, counts = a.OPERATIONS[family], Counter()
    for clip in drawn_steps(name):
        names = [named(*step)[0] for step in clip[-4:]]
        names = [n for n in names if n != "Identity"]
        assert len(set(names)) == len(names)
        counts.update(names)
    p = 4 / len(operations) * (0.5 if family == "pytorchvideo" else 1)
    assert set(counts) == set(operations) - {"Identity"}
    assert all(about(count, 3000, p) for count in counts.values())


def test_imgaug_mirrors_half_and_trims_a_little():
    mirrored = 0
    for (op, v), *rest in drawn_steps(IMGAUG, clips=2000):
        assert op == a.WARP and all(step[0] != a.WARP for step in rest)
        corners = v.reshape(2, 3) @ np.array([[0, 200], [0, 100], [1, 1]])  # where two corners come from
        x, y = sorted(corners[0]), corners[1]
        assert 0 <= x[0] <= 200 * 7 / 224 + 1e-3 and 200 - 200 * 7 / 224 - 1e-3 <= x[1] <= 200 + 1e-3
        assert 0 <= y[0] <= 100 * 7 / 224 + 1e-3 and 100 - 100 * 7 / 224 - 1e-3 <= y[1] <= 100 + 1e-3
        mirrored += v[0] < 0
    assert about(mirrored, 2000, 0.5)


def test_strengths_of_the_other_families():
    """The numbers of the recipes: imgaug m7 of 30, pytorchvideo m7 of 10 on uint8."""
    imgaug, pytorchvideo = parse_randaugment(IMGAUG), parse_randaugment(PYTORCHVIDEO)
    strength = lambda name, recipe: a._strength(name, recipe, 7.0, 1)  # noqa: E731
    assert strength("Rotate", imgaug) == pytest.approx(7) and strength("Posterize", imgaug) == 7
    assert strength("Solarize", imgaug) == 197 and strength("Color", imgaug) == pytest.approx(1.21)
    assert strength("ShearX", imgaug) == pytest.approx(math.tanh(math.radians(4.0107)), abs=1e-5)
    assert strength("TranslateX", imgaug) == pytest.approx(0.077)
    assert strength("Cutout", imgaug) == pytest.approx(0.1458, abs=1e-4)
    assert strength("Solarize", pytorchvideo) == 1 and strength("Posterize", pytorchvideo) == 2
    assert strength("Brightness", pytorchvideo) == pytest.approx(1.63)
    assert strength("ShearY", pytorchvideo) == pytest.approx(0.21)
    assert strength("TranslateY", pytorchvideo) == pytest.approx(0.315) and a.FILL["pytorchvideo"] == 0


def test_erasing_boxes_are_timms():
    """Area, aspect and place of the box, against timm's RandomErasing on a tensor of ones."""
    import torch

    options = AugmentOptions(erasing=1.0)
    ours = np.stack([draw_augmentation(options, 320, 256, 224, draws(2, clip)).erase for clip in range(3000)])
    theirs, eraser = [], RandomErasing(probability=1.0, device="cpu")
    random.seed(0)
    for _ in range(1500):
        mask = eraser(torch.ones(1, 224, 224))[0] == 0
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        theirs.append((rows[0], columns[0], len(rows), len(columns)))
    theirs = np.array(theirs, dtype=np.float64)
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= 224).all() and (ours[:, 2:] > 0).all()
    for column in range(4):
        for quantile in (0.1, 0.5, 0.9):
            assert np.quantile(ours[:, column], quantile) == pytest.approx(np.quantile(theirs[:, column], quantile), abs=12)
    area = ours[:, 2] * ours[:, 3] / 224**2
    assert 0.019 < area.min() < 0.03 and 0.3 < area.max() < 0.335
    options = AugmentOptions(erasing=0.25)
    boxes = [draw_augmentation(options, 320, 256, 224, draws(2, clip)).erase for clip in range(2000)]
    assert about(sum(bool(box.any()) for box in boxes), 2000, 0.25)


def test_pca_noise_has_the_covariance_of_its_components():
    options = AugmentOptions(pca_noise=0.1)
    noise = np.stack([draw_augmentation(options, 320, 256, 224, draws(3, clip)).noise for clip in range(4000)])
    vectors, values = np.array(a.EIGENVECTORS), np.array(a.EIGENVALUES)
    np.testing.assert_allclose(np.cov(noise.T), vectors @ np.diag((0.1 * values) ** 2) @ vectors.T, rtol=0.1, atol=0.3)
    assert np.abs(noise.mean(axis=0)).max() < 5 * 0.1 * values[0] / math.sqrt(4000)


def test_jitter_keeps_grey_grey_and_stays_in_its_range():
    options = AugmentOptions(color_jitter=(0.4, 0.2, 0.4, 0.1), color_jitter_p=0.8)
    colors = [draw_augmentation(options, 320, 256, 224, draws(4, clip)).color for clip in range(1000)]
    identity = [np.array_equal(color, np.eye(3, 4, dtype=np.float32)) for color in colors]
    assert about(sum(identity), 1000, 0.2)
    for color in colors:
        brightness = color.sum(axis=1)  # a grey frame of level 1 becomes b (c + 1 - c)
        np.testing.assert_allclose(brightness, brightness[0], atol=2e-3)
        assert 0.6 - 1e-3 <= brightness[0] <= 1.4 + 1e-3 and 0.8 - 1e-3 <= 1 - color[0, 3] / brightness[0] <= 1.2 + 1e-3


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([None, TIMM, IMGAUG, PYTORCHVIDEO, "rand"]),
    on=st.sampled_from(["frames", "crop"]),
    rest=st.dictionaries(st.sampled_from(list(EVERYTHING)), st.none()),
    seed=st.integers(0, 2**62),
    width=st.integers(16, 2000),
    height=st.integers(16, 2000),
)
def test_a_draw_is_a_function_of_its_numbers_and_has_the_shapes_of_none(name, on, rest, seed, width, height):
    options = AugmentOptions(randaugment=name, randaugment_on=on, **{key: EVERYTHING[key] for key in rest})
    one, two = (draw_augmentation(options, width, height, 224, draws(seed)).arrays() for _ in range(2))
    nothing = no_augmentation(options).arrays()
    assert len(one) == len(options.arrays) == len(nothing)
    for x, y, z in zip(one, two, nothing):
        np.testing.assert_array_equal(x, y)
        assert x.shape == z.shape and x.dtype == z.dtype and np.isfinite(x).all()
    other = draw_augmentation(options, width, height, 224, draws(seed + 1)).arrays()
    if options.pca_noise:
        assert any((x != y).any() for x, y in zip(one, other))


def test_all_frames_of_a_clip_get_the_same(tmp_path):
    """A video of one picture, distorted, is a video of one picture."""
    clip = clip_of(np.repeat(moving(1, 64, 80), 3, axis=0), tmp_path)
    for name in (TIMM, IMGAUG, PYTORCHVIDEO):
        options = AugmentOptions(randaugment=name, randaugment_on="frames", **EVERYTHING)
        drawn = [draw_augmentation(options, 80, 64, 48, draws(5, clip)) for clip in range(12)]
        samples = [(clip, [0, 1, 2], [[0, 0, 64, 64]], 0, augmentation.arrays()) for augmentation in drawn]
        out = render(samples, GraphOptions(size=48, augment=options))[:, 0]
        assert (out == out[:, :1]).all()
        assert len({clip.tobytes() for clip in out}) == 12  # and every clip another one


# ---- options ---------------------------------------------------------------------------------------------------------


def test_names_are_read_as_timm_reads_them():
    recipe = parse_randaugment("rand-m9-n3-mstd0.5-inc1-p0.7")
    assert (recipe.magnitude, recipe.layers, recipe.std, recipe.increasing, recipe.p) == (9, 3, 0.5, True, 0.7)
    theirs = timm_augment.rand_augment_transform("rand-mstd0.5", {})
    ours = parse_randaugment("rand-mstd0.5")
    assert (ours.layers, ours.magnitude, ours.p) == (theirs.num_layers, theirs.ops[0].magnitude, theirs.ops[0].prob)
    assert not ours.increasing and parse_randaugment(None) is None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"randaugment": "rand-m7-x4"}, "'x4' is not one of m, n, p, mstd, inc and a number"),
        ({"randaugment": "rand-m7-m8"}, "'m8' is not one of"),
        ({"randaugment": "rand-m7-n"}, "'n' is not one of"),
        ({"randaugment": "randaug-m7"}, "it must begin with one of rand, imgaug, pytorchvideo"),
        ({"randaugment": "rand-m11"}, "m is 11, but it must be at most 10"),
        ({"randaugment": "rand-n2.5"}, "n is 2.5, but it must be a whole number"),
        ({"randaugment": "imgaug-m7-n19"}, "n is 19, but it must be a whole number from 1 to 18"),
        ({"randaugment": "imgaug-m7-mstd0.5"}, "'mstd0.5' is not one of m, n"),
        ({"randaugment": "rand-inc2"}, "inc is 2, but it must be 0 or 1"),
        ({"randaugment": 7}, "it must be a name such as rand-m7"),
        ({"randaugment": ["rand-m7"]}, "it must be a name such as rand-m7"),
        ({"randaugment_on": "clip"}, "it must be frames or crop"),
        ({"randaugment_fill": 256}, "it must be mean or a whole number from 0 to 255"),
        ({"color_jitter": (0.4, 0.4)}, "color_jitter is"),
        ({"color_jitter": (2, 0, 0, 0)}, "color_jitter is"),
        ({"color_jitter": (0, 0, 0, 0.6)}, "hue from 0 to 0.5"),
        ({"grayscale": 1.5}, "grayscale is 1.5: it must be a finite number, from 0 to 1"),
        ({"erasing": True}, "erasing is True: it must be a finite number, from 0 to 1"),
        ({"pca_noise": -1}, "pca_noise is -1"),
        ({"pca_noise": float("nan")}, "pca_noise is nan"),
        ({"pca_noise": 1e300}, "pca_noise is 1e+300"),
        ({"erasing_aspect": (1e-320, 1)}, "erasing_aspect is"),
        ({"color_jitter": (0, 0, 0, 10**400)}, "hue from 0 to 0.5"),
        ({"erasing_area": (0.1, 1.5)}, "erasing_area is"),
        ({"erasing_aspect": (3, 0.3)}, "erasing_aspect is"),
        ({"erasing_fill": "grey"}, "erasing_fill is 'grey': it must be mean or"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError) as error:
        AugmentOptions(**options)
    assert message in str(error.value) and "\n" not in str(error.value)
