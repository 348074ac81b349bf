"""How training clips are distorted: what a user chooses, and the numbers drawn for one clip.

Everything random is drawn here, on the host, once per clip: all frames of a clip get the same. What a draw leaves is a
few small arrays, which pipelines/graph.py carries out with one DALI node per primitive. Three families of RandAugment
are known; sources: timm.data.auto_augment, imgaug 0.4 (augmenters/collections.py) and pytorchvideo (transforms/).

    rand-m7-n4-mstd0.5-inc1       timm. n of 15 operations with replacement, each with probability p
    imgaug-m7-n4                  mirror with probability 0.5, trim up to m/224 of each side, n of 18 operations, each once
    pytorchvideo-m7-n4-mstd0.5    n of 14 operations, each once, with probability p

imgaug's mirror is part of the family: the label does not change with it, and ClipOptions.flip comes on top.
pytorchvideo is what it does to uint8 pixels, for which it was not written: solarize inverts all that is not black, and
what moves in from outside is black.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np

from i2v.pipelines.options import SENTENCE, Share, interval, require
from i2v.pipelines.philox import AUGMENT, COLOR, ERASE
from i2v.rules import Rule, between, check, is_finite, is_whole, one_of

# Primitives of the graph, and what is in their row of `values`
NOTHING = 0
WARP = 1  # a b c d e f: pixel (x, y) comes from (ax + by + c, dx + ey + f), corners at whole numbers; linear
WARP_NEAREST = 2  # the same, nearest pixel
BRIGHTNESS = 3  # factor: 0 is black
CONTRAST = 4  # factor: 0 is the mean grey of the frame
SATURATION = 5  # factor: 0 is grey
SHARPNESS = 6  # factor: 0 is smooth
SMOOTH = 7
BLUR = 8
POSTERIZE = 9  # bits that are kept, as a mask
SOLARIZE = 10  # threshold from which on pixels are inverted
SOLARIZE_ADD = 11  # what is added below 128
AUTOCONTRAST = 12
EQUALIZE = 13
CUTOUT = 14  # top, left, height, width
VALUES = 6

_COMMON = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
OPERATIONS = {
    "rand": (*_COMMON, "SolarizeAdd"),
    "imgaug": (*_COMMON, "Identity", "Cutout", "Blur", "Smooth"),
    "pytorchvideo": _COMMON,
}
FILL = {"rand": 128, "imgaug": 128, "pytorchvideo": 0}
LARGEST = {"rand": 10, "imgaug": 30, "pytorchvideo": 10}  # magnitude

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL
# Principal components of ImageNet's colours (AlexNet's), in units of 0..255
EIGENVALUES = (55.46, 4.794, 1.148)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))  # columns

ERASING_TRIES = 10  # as timm


@dataclass(frozen=True)
class AugmentOptions:
    """What is done to the pixels of training clips, in this order; by default nothing."""

    # a name as at the top of pipelines/augment.py
    randaugment: Annotated[str, Rule("a name such as rand-m7-n4-mstd0.5-inc1", lambda _: True, alone=True)] | None = None
    # frames: the whole picture, before the crop; crop: what is left of it
    randaugment_on: Annotated[str, one_of("frames", "crop")] = "crop"
    randaugment_fill: int | str | None = None  # what moves in from outside: a grey level, or mean; None: the family's own
    color_jitter: tuple = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation: factor 1 - x to 1 + x; hue: -x to x turns
    color_jitter_p: Share = 1.0  # probability of color_jitter
    grayscale: Share = 0.0  # probability of losing all colour
    pca_noise: Annotated[float, between(0, 100)] = 0.0  # standard deviation of AlexNet's colour noise
    erasing: Share = 0.0  # probability of erasing a box
    erasing_area: tuple[float, float] = (0.02, 1 / 3)  # part of the crop
    erasing_aspect: tuple[float, float] = (0.3, 1 / 0.3)  # height / width of the box
    erasing_fill: int | str = "mean"  # mean: 0 after normalising; or a grey level before normalising

    def __post_init__(self):
        check(AugmentOptions, vars(self), SENTENCE)
        parse_randaugment(self.randaugment)
        for name, least, most in (("erasing_area", 1e-6, 1), ("erasing_aspect", 0.01, 100)):
            object.__setattr__(self, name, interval(name, getattr(self, name), least, most))
        jitter = self.color_jitter
        fine = isinstance(jitter, (list, tuple)) and len(jitter) == 4 and all(is_finite(x) and x >= 0 for x in jitter)
        require(
            fine and max(jitter[:3]) <= 1 and jitter[3] <= 0.5,
            "color_jitter",
            self,
            "brightness, contrast and saturation from 0 to 1, and hue from 0 to 0.5",
        )
        object.__setattr__(self, "color_jitter", tuple(map(float, jitter)))
        require(_is_fill(self.randaugment_fill) or self.randaugment_fill is None, "randaugment_fill", self, _FILL_RULE)
        require(_is_fill(self.erasing_fill), "erasing_fill", self, _FILL_RULE)

    @property
    def recipe(self) -> RandAugment | None:
        return parse_randaugment(self.randaugment)

    @property
    def arrays(self) -> tuple[str, ...]:
        """The fields of Augmentation that these options fill, in the order in which the graph takes them."""
        recolour = self.grayscale > 0 or (self.color_jitter_p > 0 and any(self.color_jitter))
        distort = self.recipe is not None
        wanted = {"ops": distort, "values": distort, "color": recolour, "noise": self.pca_noise, "erase": self.erasing}
        return tuple(name for name, on in wanted.items() if on)


@dataclass(frozen=True)
class Augmentation:
    """What happens to one clip. A field that its options do not need is None."""

    ops: np.ndarray | None = None  # (steps,) int32, primitives
    values: np.ndarray | None = None  # (steps, VALUES) float32
    # (3, 4) float32: new colour = this @ (red, green, blue, mean grey of the frame); of a still's clip one for each frame
    color: np.ndarray | None = None
    noise: np.ndarray | None = None  # (3,) float32, added to the pixels, 0..255
    erase: np.ndarray | None = None  # (4,) float32: top, left, height, width in pixels of the crop

    def arrays(self) -> tuple[np.ndarray, ...]:
        """What the graph takes for this clip, in the order of AugmentOptions.arrays."""
        fields = (self.ops, self.values, self.color, self.noise, self.erase)
        return tuple(field for field in fields if field is not None)


def no_augmentation(options: AugmentOptions) -> Augmentation:
    """What draw_augmentation returns, in the same shapes, but it changes nothing."""
    steps = options.recipe.steps if options.recipe else 0
    neutral = {
        "ops": np.zeros(steps, np.int32),
        "values": np.zeros((steps, VALUES), np.float32),
        "color": np.eye(3, 4, dtype=np.float32),
        "noise": np.zeros(3, np.float32),
        "erase": np.zeros(4, np.float32),
    }
    return Augmentation(**{name: neutral[name] for name in options.arrays})


def draw_augmentation(options: AugmentOptions, width: int, height: int, size: int, draw) -> Augmentation:
    """The augmentation of one clip.

    width, height: of the stored frames. size: height and width of the crop.
    draw(stream, numbers) -> (numbers,) float64, uniform in [0, 1): always the same for the same clip and stream.
    """
    drawn, names = {}, options.arrays
    if "ops" in names:
        shape = (width, height) if options.randaugment_on == "frames" else (size, size)
        drawn["ops"], drawn["values"] = _draw_randaugment(options.recipe, *shape, draw)
    if "color" in names or "noise" in names:
        u = draw(COLOR, 12)
        if "color" in names:
            drawn["color"] = draw_color(options, u[:6])
        if "noise" in names:
            drawn["noise"] = _draw_noise(options.pca_noise, u[6:])
    if "erase" in names:
        drawn["erase"] = _draw_box(options, size, draw(ERASE, 1 + 4 * ERASING_TRIES))
    return Augmentation(**drawn)


# ---- RandAugment -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandAugment:
    """A parsed name."""

    family: str  # rand, imgaug or pytorchvideo
    magnitude: float
    layers: int
    std: float = 0.0  # of the magnitude
    p: float = 0.5  # of each layer
    increasing: bool = False  # timm: larger magnitudes distort more in all operations

    @property
    def steps(self) -> int:
        """Rows of `ops`: imgaug has one more, which mirrors and trims."""
        return self.layers + (self.family == "imgaug")


@lru_cache
def parse_randaugment(name: str | None) -> RandAugment | None:
    """Read a name such as rand-m7-n4-mstd0.5-inc1; parts that are missing are timm's: m10, n2, p0.5, mstd0, inc0."""
    if name is None:
        return None
    family, *parts = name.split("-")
    if family not in OPERATIONS:
        raise ValueError(f"randaugment is {name!r}: it must begin with one of {', '.join(OPERATIONS)}.")
    known = ("m", "n") + (() if family == "imgaug" else ("p", "mstd")) + (("inc",) if family == "rand" else ())
    given = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if match is None or match[1] not in known or match[1] in given:
            raise ValueError(f"randaugment is {name!r}: {part!r} is not one of {', '.join(known)} and a number, once each.")
        given[match[1]] = float(match[2])
    m, n, p, std, inc = (given.get(key, default) for key, default in zip(("m", "n", "p", "mstd", "inc"), (10, 2, 0.5, 0, 0)))
    largest, operations = LARGEST[family], len(OPERATIONS[family])
    for key, value, fine, rule in (
        ("m", m, m <= largest, f"at most {largest}"),
        ("n", n, n % 1 == 0 and 1 <= n <= operations, f"a whole number from 1 to {operations}"),
        ("p", p, p <= 1, "a probability"),
        ("inc", inc, inc in (0, 1), "0 or 1"),
    ):
        if not fine:
            raise ValueError(f"randaugment is {name!r}: {key} is {value:g}, but it must be {rule}.")
    return RandAugment(family, m, int(n), std, p if family != "imgaug" else 1.0, bool(inc))


def _draw_randaugment(recipe: RandAugment, width: int, height: int, draw) -> tuple[np.ndarray, np.ndarray]:
    """ops (steps,) and values (steps, VALUES) of one clip."""
    operations = OPERATIONS[recipe.family]
    u = draw(AUGMENT, 8 + len(operations) + 6 * recipe.layers)
    trim, keys, layers = u[:8], u[8 : 8 + len(operations)], u[8 + len(operations) :].reshape(recipe.layers, 6)
    if recipe.family == "rand":
        chosen = [math.floor(layer[0] * len(operations)) for layer in layers]
    else:
        chosen = np.argsort(keys, kind="stable")[: recipe.layers]
    steps = [_mirror_and_trim(recipe, width, height, trim)] if recipe.family == "imgaug" else []
    for number, (_, apply, first, second, sign, place) in zip(chosen, layers):
        if apply > recipe.p:
            steps.append((NOTHING, ()))
            continue
        level = min(max(recipe.magnitude + recipe.std * _normal(first, second), 0.0), LARGEST[recipe.family])
        strength = _strength(operations[number], recipe, level, -1 if sign < 0.5 else 1)
        steps.append(_primitive(operations[number], strength, recipe.family, width, height, (first, place)))
    ops, values = np.zeros(recipe.steps, np.int32), np.zeros((recipe.steps, VALUES), np.float32)
    for row, (op, numbers) in enumerate(steps):
        ops[row], values[row, : len(numbers)] = op, numbers
    return ops, values


def _mirror_and_trim(recipe: RandAugment, width: int, height: int, u: np.ndarray):
    top, bottom, left, right = u[1:5] * recipe.magnitude / 224
    x, y = 1 - left - right, 1 - top - bottom
    mirrored = u[0] < 0.5
    across = (-x, 0, (1 - right) * width) if mirrored else (x, 0, left * width)
    return WARP, (*across, 0, y, top * height)


def _strength(name: str, recipe: RandAugment, level: float, sign: int) -> float:
    """The argument of an operation: degrees, slope, part of the side, factor, bits, threshold or what is added."""
    part, imgaug = level / LARGEST[recipe.family], recipe.family == "imgaug"
    increasing = recipe.increasing or recipe.family != "rand"
    if name == "Rotate":
        return sign * 30 * part
    if name in ("ShearX", "ShearY"):
        return sign * (math.tanh(0.3 * part) if imgaug else 0.3 * part)
    if name in ("TranslateX", "TranslateY"):
        return sign * (0.33 if imgaug else 0.45) * part
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        return max(0.1, 1 + sign * 0.9 * part) if increasing else 0.1 + 1.8 * part
    if name == "Posterize":
        if imgaug:
            return 8 - int(6 * part)
        return 4 - int(4 * part) if increasing else int(4 * part)
    if name == "Solarize":
        if recipe.family == "pytorchvideo":
            return math.ceil(1 - part)
        return 256 - int(256 * part) if increasing else int(256 * part)
    if name == "SolarizeAdd":
        return int(110 * part)
    return 20 / 32 * part if name == "Cutout" else 0.0


def _primitive(name: str, strength: float, family: str, width: int, height: int, place) -> tuple[int, tuple]:
    """(primitive, values). strength: as _strength gives it. place: two uniform numbers."""
    warp = WARP_NEAREST if family == "imgaug" else WARP
    if name == "Rotate":
        return warp, _rotation(strength, width, height)
    if name == "ShearX":
        return warp, (1, strength, 0, 0, 1, 0)
    if name == "ShearY":
        return warp, (1, 0, 0, strength, 1, 0)
    if name == "TranslateX":
        return warp, (1, 0, strength * width, 0, 1, 0)
    if name == "TranslateY":
        return warp, (1, 0, 0, 0, 1, strength * height)
    if name == "Posterize":
        return POSTERIZE, (256 - 2 ** (8 - int(strength)),)  # no bits, at magnitude 10, is black
    if name == "Solarize":
        return (SOLARIZE, (strength,)) if strength < 256 else (NOTHING, ())
    if name == "Cutout":
        side = strength * min(width, height)
        return CUTOUT, (place[0] * height - side / 2, place[1] * width - side / 2, side, side)
    return {
        "AutoContrast": (AUTOCONTRAST, ()),
        "Equalize": (EQUALIZE, ()),
        "Invert": (SOLARIZE, (0,)),
        "SolarizeAdd": (SOLARIZE_ADD, (strength,)),
        "Brightness": (BRIGHTNESS, (strength,)),
        "Contrast": (CONTRAST, (strength,)),
        "Color": (SATURATION, (strength,)),
        "Sharpness": (SHARPNESS, (strength,)),
        "Smooth": (SMOOTH, ()),
        "Blur": (BLUR, ()),
        "Identity": (NOTHING, ()),
    }[name]


def _rotation(degrees: float, width: int, height: int) -> tuple:
    """Counter-clockwise about the centre, as PIL."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


# ---- colour, erasing -------------------------------------------------------------------------------------------------


def draw_color(options: AugmentOptions, u) -> np.ndarray:
    """(3, 4) as in Augmentation; u: six uniform numbers."""
    apply, brightness, contrast, saturation, hue, grey = u
    color = np.eye(3, 4)
    if apply < options.color_jitter_p:
        b, c, s = (1 + x * (2 * v - 1) for x, v in zip(options.color_jitter, (brightness, contrast, saturation)))
        mix = _hue(options.color_jitter[3] * (2 * hue - 1)) @ _saturation(s)  # both leave grey as it is
        color = np.hstack([b * c * mix, np.full((3, 1), b * (1 - c))])
    if grey < options.grayscale:
        color = _saturation(0.0) @ color
    return color.astype(np.float32)


def _saturation(factor: float) -> np.ndarray:
    """(3, 3): a blend of the colour and its grey."""
    return factor * np.eye(3) + (1 - factor) * np.tile(LUMA, (3, 1))


def _hue(turns: float) -> np.ndarray:
    """(3, 3): a rotation about the grey axis of YIQ."""
    yiq = np.array([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    return np.linalg.inv(yiq) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ yiq


def _draw_noise(std: float, u: np.ndarray) -> np.ndarray:
    """(3,) along the principal components of colour; u: (6,)."""
    weights = [std * _normal(u[i], u[i + 1]) for i in (0, 2, 4)]
    return (np.array(EIGENVECTORS) @ (np.array(EIGENVALUES) * weights)).astype(np.float32)


def _draw_box(options: AugmentOptions, size: int, u: np.ndarray) -> np.ndarray:
    """(4,) top, left, height, width; empty when nothing is erased or no box fits. u: (1 + 4 tries,)."""
    if u[0] < options.erasing:
        low, high = np.log(options.erasing_aspect)
        for area_u, aspect_u, top_u, left_u in u[1:].reshape(-1, 4):
            area = size * size * (options.erasing_area[0] + (options.erasing_area[1] - options.erasing_area[0]) * area_u)
            aspect = math.exp(low + (high - low) * aspect_u)
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height < size and width < size:
                top, left = math.floor(top_u * (size - height + 1)), math.floor(left_u * (size - width + 1))
                return np.array([top, left, height, width], np.float32)
    return np.zeros(4, np.float32)


def _normal(u: float, v: float) -> float:
    """Standard normal from two uniform numbers (Box and Muller)."""
    return math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v)


# ---- checks ----------------------------------------------------------------------------------------------------------

_FILL_RULE = "mean or a whole number from 0 to 255"


def _is_fill(value) -> bool:
    return (isinstance(value, str) and value == "mean") or (is_whole(value) and 0 <= value <= 255)
