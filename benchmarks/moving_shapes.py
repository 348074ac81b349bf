"""Draws the demo's videos: 8 classes that differ by motion only, so a model must use time to tell them apart.

    python -m benchmarks.moving_shapes OUT --train 60 --val 20      # OUT/train/<class>/*.mp4, OUT/val/<class>/*.mp4

Every clip shows all four motions: the shape shifts sideways, shifts vertically, changes size and turns. The class is
the one that goes steadily from one end to the other; the other three swing through the very same values there and
back. Shape, texture, colours and background do not know the class, each of place, size and angle takes the same
values in every class, and each class of a pair (left and right ...) is the other one played backwards. So a frame
taken at random does not tell the class, and frames without their order do not tell a class from its pair.

What does tell something is a frame known to be the first, the last or the middle one: what moves right starts on the
left. No steady motion in a bounded picture avoids that. From the true pose of the first frame alone 65 % can be
guessed right.

With --speeds a video has two labels, its motion and its speed, listed in OUT/train.csv and OUT/val.csv: what is fast goes from
end to end twice, in half the time, through the same values. So frames without their order do not tell the speed either.
"""

import argparse
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLASSES = ("right", "left", "down", "up", "growing", "shrinking", "clockwise", "counterclockwise")
SPEEDS = ("slow", "fast")
KINDS = ("house", "heart", "arrow", "half_moon", "triangle")
STILL_POSES = ((-0.4, -0.4, np.log(0.15), -1.6), (0.4, 0.4, np.log(0.50), 1.6))  # lowest, highest, as in draw_poses


@dataclass(frozen=True)
class Look:
    """What a scene looks like, whatever happens in it: drawn once for a clip."""

    kind: str
    texture: np.ndarray  # (2, 3) two plane waves over the shape: frequency along u, along v (cycles per radius), phase
    paints: np.ndarray  # (2, 3) RGB in 0..1: the two colours of the shape
    ground: np.ndarray  # (2, 3) RGB in 0..1: the two colours of the background
    waves: np.ndarray  # (2, 3) two plane waves over the background (cycles per frame height), phase
    grain: float  # standard deviation of the sensor noise, 0..1


def draw_look(rng):
    """A random Look: a shape with a light top and a darker foot (so that one sees it turn) on a dark ground."""
    paints = np.stack([rng.uniform(0.7, 1.0, 3), rng.uniform(0.25, 0.5, 3)])
    ground = rng.uniform(0.0, 0.3, (2, 3))
    texture = np.column_stack([rng.uniform(-1.2, 1.2, (2, 2)), rng.uniform(0, 1, 2)])
    waves = np.column_stack([rng.uniform(-1.5, 1.5, (2, 2)), rng.uniform(0, 1, 2)])
    return Look(KINDS[rng.integers(len(KINDS))], texture, paints, ground, waves, rng.uniform(0, 0.03))


def draw_poses(rng, name, frames, speed="slow"):
    """Where the shape is in every frame of a clip of class `name`.

    Returns (frames, 4): x and y of the centre (frame heights, from the middle of the frame, y down), natural logarithm
    of the radius (frame heights) and angle (radians, clockwise). The random numbers used do not depend on `name` or `speed`.
    """
    middle = rng.uniform([-0.08, -0.08, np.log(0.24), -0.3], [0.08, 0.08, np.log(0.30), 0.3])
    reach = rng.uniform([0.17, 0.17, 0.25, 0.8], [0.27, 0.27, 0.40, 1.2])  # half of the way from end to end
    swings = [_there_and_back(rng, frames) for _ in range(4)]
    steady, backwards = divmod(CLASSES.index(name), 2)
    swings[steady] = np.linspace(-1, 1, frames)
    if speed == "fast":
        swings[steady] = np.concatenate([swings[steady][::2], swings[steady][1::2]])
    poses = middle + reach * np.stack(swings, 1)
    return poses[::-1] if backwards else poses


def _there_and_back(rng, frames):
    """The values of linspace(-1, 1, frames), each once, up in every second and down in the others: (frames,)."""
    ramp = np.linspace(-1, 1, frames)
    return np.roll(np.concatenate([ramp[::2], ramp[1::2][::-1]]), rng.integers(frames))


def render(look, poses, size, rng):
    """Draws the shape of `look` at each of N poses (N, 4): uint8 (N, H, W, 3), size = (H, W), anti-aliased."""
    height, width = size
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5 - height / 2) / height
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / height
    centre_x, centre_y, log_radius, angle = (column[:, None, None] for column in poses.astype(np.float32).T)
    radius, cos, sin = np.exp(log_radius), np.cos(angle), np.sin(angle)
    u = ((x - centre_x) * cos + (y - centre_y) * sin) / radius  # the shape's own axes: u to its right,
    v = ((x - centre_x) * sin - (y - centre_y) * cos) / radius  # v to its top; both (N, H, W)
    cover = np.clip(0.5 - _distance(look.kind, u, v) * radius * height, 0, 1)[..., None]  # half a pixel each side
    ground = _paint(look.waves, look.ground, x, y)
    image = ground + cover * (_paint(look.texture, look.paints, u, v, 0.5 + 1.2 * v) - ground)
    image += look.grain * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _paint(waves, colours, u, v, base=0.5):
    """A blend of two colours, 0 to 1 = second to first: `base` and two plane waves added: (..., 3)."""
    (a, b, c), (d, e, f) = (waves * 2 * np.pi).astype(np.float32)
    blend = np.clip(base + 0.15 * (np.sin(a * u + b * v + c) + np.sin(d * u + e * v + f)), 0, 1)
    first, second = colours.astype(np.float32)
    return second + blend[..., None] * (first - second)


def _distance(kind, u, v):
    """About the signed distance to the outline (negative inside), in radii. Every shape has a top, v > 0."""
    if kind == "triangle":
        return np.maximum(-v - 0.6, 0.92 * np.abs(u) + 0.39 * v - 0.39)
    if kind == "half_moon":
        return np.maximum(np.hypot(u, v + 0.3) - 1.0, -v - 0.3)
    if kind == "arrow":
        head = np.maximum(-v, 0.71 * np.abs(u) + 0.71 * v - 0.71)
        return np.minimum(head, np.maximum(np.abs(u) - 0.4, np.abs(v + 0.45) - 0.55))
    if kind == "house":
        roof = 0.71 * np.abs(u) + 0.71 * v - 0.71
        return np.maximum(np.maximum(np.abs(u) - 0.7, -v - 0.8), roof)
    lobes = np.hypot(np.abs(u) - 0.42, v - 0.35) - 0.55  # heart: two discs and the square below them
    return np.minimum(lobes, np.maximum(0.71 * np.abs(u) - 0.71 * v - 0.68, 0.71 * np.abs(u) + 0.71 * v - 0.55))


def render_clip(rng, name, frames=32, size=(48, 64), speed="slow"):
    """One clip of class `name`: uint8 (T, H, W, 3). `rng`: a numpy Generator, or a seed."""
    rng = np.random.default_rng(rng)
    return render(draw_look(rng), draw_poses(rng, name, frames, speed), size, rng)


def render_stills(rng, count, size=(32, 32)):
    """`count` stills of one look, for a model that must never see a motion.

    Returns images uint8 (count, H, W, 3), poses float (count, 4) as in `draw_poses`, and the index in KINDS.
    """
    look = draw_look(rng)
    poses = rng.uniform(*STILL_POSES, (count, 4))
    return render(look, poses, size, rng), poses, KINDS.index(look.kind)


def write_videos(folder, per_class, frames=32, size=(48, 64), seed=0, split="train", fps=12):
    """Writes folder/split/<class>/<number>.mp4 (H.264), `per_class` videos a class; returns the paths."""
    part = ("train", "val").index(split)
    paths = []
    for label, name in enumerate(CLASSES):
        (Path(folder) / split / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            path = Path(folder) / split / name / f"{number:04d}.mp4"
            write_video(path, render_clip([seed, part, label, number], name, frames, size), fps)
            paths.append(path)
    return paths


def write_speeds(folder, per_class, frames=32, size=(48, 64), seed=0, split="train", fps=12):
    """Writes folder/split/<number>.mp4, `per_class` of every motion, half of them fast, and folder/split.csv of
    path,motion,speed; returns the rows without the header."""
    part, rows = ("train", "val").index(split), []
    (Path(folder) / split).mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(CLASSES):
        for number in range(per_class):
            speed, path = SPEEDS[number % 2], f"{split}/{label * per_class + number:05d}.mp4"
            write_video(Path(folder) / path, render_clip([seed, part, label, number], name, frames, size, speed), fps)
            rows.append((path, name, speed))
    lines = ["path,motion,speed", *map(",".join, rows)]
    (Path(folder) / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return rows


def write_video(path, clip, fps=12):
    """Encodes a uint8 (T, H, W, 3) clip, H and W even, as a phone would: H.264, 4:2:0; the same bytes each time, which x264
    does not give with its macroblock tree."""
    options = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", Fraction(fps), options=options)
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], "yuv420p"
        for image in clip:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        file.mux(stream.encode(None))


def write_sheet(path, frames=8, size=(96, 128), seed=0):
    """A PNG to look at: one row a class, one column a frame, the same scene in every row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(CLASSES), frames, figsize=(1.4 * frames, 1.1 * len(CLASSES)))
    for row, name in zip(axes, CLASSES):
        for axis, image in zip(row, render_clip(seed, name, frames, size)):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=60, metavar="N", help="training videos of each class")
    parser.add_argument("--val", type=int, default=20, metavar="M", help="validation videos of each class")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--height", type=int, default=48)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speeds", action="store_true", help="half of the videos fast: two labels each, in OUT/train.csv")
    args = parser.parse_args()
    size = (args.height, args.width)
    for split, per_class in (("train", args.train), ("val", args.val)):
        write = write_speeds if args.speeds else write_videos
        paths = write(args.out, per_class, args.frames, size, args.seed, split)
        shape = f"{args.frames} frames of {args.width}x{args.height}"
        print(f"{args.out / split}: {len(paths)} videos, {len(CLASSES)} classes, {shape}")
    write_sheet(args.out / "classes.png", seed=args.seed)
    print(f"{args.out / 'classes.png'}: what the classes look like")


if __name__ == "__main__":
    main()
