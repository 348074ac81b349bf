"""The boundary-matching network: how good every segment of a window is as the place of an action, and how to learn it.

Lin et al. 2019, "BMN: Boundary-Matching Network for Temporal Action Proposal Generation", arXiv 1907.09702, in the form of
TAdaConv's EPIC-KITCHENS model, with that code's parameter names.

A window of T time steps is scored as a map of (D, T): cell (d, t) is the segment that begins at step t and is d + 1 steps
long. To look at a segment, features are sampled at N places in and around it. Sampling is linear, and so is the convolution
over the N samples that follows: it is applied first, to T steps instead of D * T cells, and what it leaves is sampled by a
sparse matrix, 13 times fewer operations than with a dense mask, which is therefore nowhere stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from i2v.rules import Count, at_least, between, check

EPSILON = 1e-6  # in logarithms
SENTENCE = "{name} is {value}: it must be {rule}."
MASK = "head.sample_mask"  # in checkpoints of the authors: what sampling_matrix computes, dense


@dataclass(frozen=True)
class BMNOptions:
    """What a boundary-matching network is like."""

    steps: Annotated[int, at_least(3)] = 200  # T: time steps of a window
    durations: Annotated[int, at_least(-1)] = 100  # D: how many steps the longest segment has; -1: all of them
    width_1d: Count = 256  # of the layers over time
    width_2d: Count = 128  # of the layers over the map of segments
    width_3d: Count = 512  # of what the samples of a segment become
    layers: Count = 2  # over time, before anything else
    groups: Count = 4  # of these convolutions
    samples: Annotated[int, at_least(2)] = 32  # N: places at which a segment is looked at
    points: Count = 3  # of which each of them is the mean
    boundary_ratio: Annotated[float, between(0, 10)] = 0.5  # how much of its length a segment is looked at beyond each end
    regression: bool = False  # a map of two corrections per segment besides; nothing trains it
    class_maps: bool = False  # maps of class logits besides, which train with the rest

    def __post_init__(self):
        check(BMNOptions, vars(self), SENTENCE)
        if not (self.durations == -1 or 1 <= self.durations <= self.steps):
            raise ValueError(f"durations is {self.durations}: it must be from 1 to steps ({self.steps}), or -1 for as many.")
        if self.width_1d % self.groups:
            raise ValueError(f"width_1d is {self.width_1d}, which {self.groups} groups do not divide: choose other groups.")


class BMN(nn.Module):
    """Features of windows -> maps of how good every segment is.

    channels: of the features. classes: kind -> count, such as {"verb": 97, "noun": 300}, for class_maps. options: those of
    BMNOptions. Raises ValueError for a value that cannot be.
    """

    def __init__(self, channels: int, classes: dict[str, int] | None = None, **options):
        super().__init__()
        self.options = o = BMNOptions(**options)
        if channels < 1 or channels % o.groups:
            raise ValueError(f"Features have {channels} channels, which {o.groups} groups do not divide: choose other groups.")
        if o.class_maps and not classes:
            raise ValueError("class_maps is true, but no classes are known: give them, or leave it out.")
        self.steps, self.durations = o.steps, o.steps if o.durations == -1 else o.durations
        over_time = []
        for layer in range(o.layers):
            over_time += [nn.Conv1d(o.width_1d if layer else channels, o.width_1d, 3, padding=1, groups=o.groups), nn.ReLU()]
        self.backbone = nn.ModuleDict({"conv_layer": nn.Sequential(*over_time)})
        maps = {"x_2d_p": 2} | ({"x_2d_r": 2} if o.regression else {})
        maps |= {f"x_2d_{kind}": count for kind, count in classes.items()} if o.class_maps else {}
        self.head = nn.ModuleDict(
            {
                "x_1d_s": boundary(o.width_1d, o.groups),
                "x_1d_e": boundary(o.width_1d, o.groups),
                "x_1d_p": nn.Sequential(nn.Conv1d(o.width_1d, o.width_1d, 3, padding=1), nn.ReLU()),
                "x_3d_p": nn.Sequential(nn.Conv3d(o.width_1d, o.width_3d, (o.samples, 1, 1)), nn.ReLU()),
            }
            | {name: over_map(o.width_3d, o.width_2d, count) for name, count in maps.items()}
        )
        matrix = sampling_matrix(self.steps, self.durations, o.samples, o.points, o.boundary_ratio)
        self.register_buffer("sampling", matrix, persistent=False)
        self.register_load_state_dict_pre_hook(without_mask)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, channels, T) -> start, end (B, T); confidence_map (B, 2, D, T): the IoU by regression, and by classification;
        where there are such, reg_map (B, 2, D, T), and logits NAME_map (B, classes, D, T)."""
        x = self.backbone["conv_layer"](x)  # (B, C, T)
        start, end = (torch.sigmoid(self.head[name](x)).squeeze(1) for name in ("x_1d_s", "x_1d_e"))
        cells = self.look_at_segments(self.head["x_1d_p"](x))
        found = {"start": start, "end": end, "confidence_map": torch.sigmoid(self.head["x_2d_p"](cells))}
        others = (name for name in self.head if name.startswith("x_2d_") and name != "x_2d_p")
        names = {"x_2d_r": "reg_map"}
        return found | {names.get(name, f"{name.removeprefix('x_2d_')}_map"): self.head[name](cells) for name in others}

    def look_at_segments(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, T) -> (B, width_3d, D, T): x_3d_p over the samples of every segment."""
        convolution = self.head["x_3d_p"][0]
        weight = convolution.weight[..., 0, 0]  # (O, C, N)
        spread = torch.einsum("ocn,bct->bnto", weight, x).flatten(1, 2)  # (B, N * T, O): each step as each sample
        cells = torch.stack([Sample.apply(self.sampling, each) for each in spread])  # (B, D * T, O)
        cells = (cells + convolution.bias).view(len(x), self.durations, self.steps, -1)
        return F.relu(cells.permute(0, 3, 1, 2))


def without_mask(model: nn.Module, state: dict, *_) -> None:
    """The authors' checkpoints load: what `sampling` is comes with the options."""
    state.pop(MASK, None)


class Sample(torch.autograd.Function):
    """A sparse matrix times a dense one, by which alone it is differentiated."""

    @staticmethod
    def forward(ctx, matrix: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        ctx.matrix = matrix
        return torch.sparse.mm(matrix, dense)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return None, torch.sparse.mm(ctx.matrix.t(), gradient.contiguous())


def boundary(width: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(width, width, 3, padding=1, groups=groups), nn.ReLU(), nn.Conv1d(width, 1, 1))


def over_map(width_in: int, width: int, out: int) -> nn.Sequential:
    between = [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(nn.Conv2d(width_in, width, 1), nn.ReLU(), *between, nn.Conv2d(width, out, 1))


def sampling_matrix(steps: int, durations: int, samples: int, points: int, ratio: float) -> torch.Tensor:
    """(D * T, N * T) sparse: sample n of cell (d, t) is row d * T + t over columns n * T to (n + 1) * T - 1.

    A segment of steps t to t + d is looked at from t - ratio * (d + 1) to t + d + ratio * (d + 1), at N * points places of
    equal distance; a sample is the mean of `points` of them, each interpolated between the steps beside it. At the edges as
    the authors have it: between -1 and 0 a place counts as step 0, between T - 1 and T as its share of step T - 1, further
    out as nothing. Cells that end after the last step are 0.
    """
    d, t = (grid.reshape(-1, 1) for grid in np.mgrid[:durations, :steps])
    inside = (t + d < steps).ravel()
    d, t = d[inside], t[inside]
    margin = ratio * (d + 1)
    places = np.linspace((t - margin)[:, 0], (t + d + margin)[:, 0], samples * points, axis=1)  # (cells, N * points)
    below, above = np.trunc(places), np.ceil(places)
    share = places - below  # negative left of 0, where both neighbours are step 0
    rows = np.broadcast_to((d * steps + t), places.shape)
    columns = np.repeat(np.arange(samples), points) * steps  # (N * points,)
    parts = []
    for step, weight in ((below, 1 - share), (above, share)):
        there = (places > -1) & (step >= 0) & (step < steps) & (weight != 0)
        parts.append((rows[there], (columns + step)[there], weight[there] / points))
    rows, columns, weights = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts))
    size, index = (durations * steps, samples * steps), torch.stack([rows, columns.long()])
    return torch.sparse_coo_tensor(index, weights, size, check_invariants=True).coalesce().float()


# ---- what is to be learnt --------------------------------------------------------------------------------------------


def cells(steps: int, durations: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """begin (T,), end (D, T) of the cells in parts of the window, and mask (D, T) bool: which of them are inside.

    In float64, rounded as the authors' code does: for some T a cell that ends with the window is therefore outside.
    """
    step = 1.0 / steps
    begin = step * np.arange(steps)
    end = begin + step * np.arange(1, durations + 1)[:, None]
    return begin, end, end <= 1.0


def ground_truth(segments: np.ndarray, window: float, steps: int, durations: int, labels=None) -> dict[str, torch.Tensor]:
    """The maps of a window in which actions are: start_map, end_map (T,), iou_map, mask (D, T) float32, and with labels
    (actions, kinds) label_map (kinds, D, T) int64, of the action that a cell overlaps most.

    segments: (actions, 2) seconds from the window's begin, at least one. window: its seconds.
    """
    segments = np.asarray(segments, dtype=np.float64).reshape(-1, 2)
    if not len(segments):
        raise ValueError("A window without actions has nothing to be learnt from: leave it out.")
    first, last = (segments / window).clip(0, 1).T[..., None, None]  # (actions, 1, 1) each
    begin, end, mask = cells(steps, durations)
    iou = overlap(begin, end, first, last)  # (actions, D, T)
    width, around = 1.0 / steps, (1.0 / steps) * np.arange(steps)
    edges = []
    for at in (first[..., 0], last[..., 0]):  # how much of a step's neighbourhood is near the action's edge: (actions, T)
        low, high = around - 0.5 * width, around + 1.5 * width
        shared = (np.minimum(high, at + 1.5 * width) - np.maximum(low, at - 1.5 * width)).clip(min=0)
        edges.append((shared / (high - low)).max(0))
    found = {"start_map": edges[0], "end_map": edges[1], "iou_map": iou.max(0), "mask": mask}
    maps = {name: torch.from_numpy(value.astype(np.float32)) for name, value in found.items()}
    if labels is not None:
        nearest = np.asarray(labels, dtype=np.int64)[iou.argmax(0)]  # (D, T, kinds)
        maps["label_map"] = torch.from_numpy(nearest).permute(2, 0, 1)
    return maps


def overlap(begin, end, first, last) -> np.ndarray:
    """Intersection over union of segments, broadcast."""
    shared = np.maximum(np.minimum(end, last) - np.maximum(begin, first), 0.0)
    return shared / ((end - begin) + (last - first) - shared)


def losses(
    output: dict[str, torch.Tensor],
    labels: dict[str, torch.Tensor],
    draws: tuple[torch.Tensor, torch.Tensor],
    regression: tuple[float, float] = (0.3, 0.7),
    positive: float = 0.9,
    kinds: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """tem, pem_reg, pem_cls, and KIND_loss of each of `kinds`: () each, unweighted, of the whole batch.

    draws: two (B, D, T) uniform in [0, 1): which cells of the middle and of the low overlaps count, so that there are about
    as many of each as of the high ones. regression: overlaps between which the middle is. positive: overlap above which a
    cell is one. A mean over nothing is left out, so that no batch makes a loss that is not finite; a loss without a
    positive is 0.
    """
    mask, g = labels["mask"], labels["iou_map"] * labels["mask"]  # thresholds are compared in the labels' float32
    by_regression, by_class = output["confidence_map"].unbind(1)
    inside = torch.ones_like(labels["start_map"], dtype=torch.bool)
    tem = sum(balanced(output[name], labels[f"{name}_map"] > 0.5, inside) for name in ("start", "end"))
    found = {
        "tem": tem,
        "pem_reg": overlap_loss(by_regression, g, draws, *regression),
        "pem_cls": balanced(by_class, g > positive, mask > 0),
    }
    sure = g >= 0.75
    for place, kind in enumerate(kinds):
        # Of all cells, (B, D, T): to take out those that are sure, the host would have to wait for how many there are.
        lost = F.cross_entropy(output[f"{kind}_map"], labels["label_map"][:, place], reduction="none")
        found[f"{kind}_loss"] = (lost * sure).sum() / sure.sum().clamp(min=1)
    return found


def balanced(p: torch.Tensor, positive: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy in which positives and negatives weigh one half each, however many they are."""
    negative = counts & ~positive
    hit = (torch.log(p + EPSILON) * positive).sum() / positive.sum().clamp(min=1)
    miss = (torch.log(1 - p + EPSILON) * negative).sum() / negative.sum().clamp(min=1)
    return -0.5 * (hit + miss) * positive.any()


def overlap_loss(p: torch.Tensor, g: torch.Tensor, draws, low: float, high: float) -> torch.Tensor:
    """Squared error of the overlap, of all cells above `high` and about as many of those below, which are drawn.

    Where there are fewer of those than of the high ones, every cell of the map is taken once more, as in the authors' code.
    """
    above, middle, below = (part.to(g.dtype) for part in (g > high, (g <= high) & (g > low), (g <= low) & (g > 0)))
    weights = above
    for part, draw in ((middle, draws[0]), (below, draws[1])):
        wanted = above.sum() / part.sum().clamp(min=1 if part is middle else 0)
        weights = weights + (draw.to(g.dtype) * part > 1 - wanted)
    weights = weights.to(p.dtype)
    return 0.5 * ((p - g) * weights).square().sum() / weights.sum().clamp(min=1)
