"""What an evaluation found video by video: kept in a file, scored again in seconds, ensembled, compared.

The file (`i2v.evaluate --scores FILE.npz`) is numpy's, read without pickle: ids, labels (n,) int64; probabilities (n, K)
float32, the views' mean; top5 (n, 5) int64; keys, paths (n,) text; about, JSON: classes, of what factors they are
combinations, and how the scores came about. Where videos have several classes, labels are (n, K) of 0 and 1.
"""

from __future__ import annotations

import functools
import io
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from i2v.atomic import write_whole
from i2v.console import refuse_pipe
from i2v.metrics import probabilities_of
from i2v.tally import Labels, Scores, SeveralScores, labels_of_factors, marginals, tally_for

VERSION = 2  # 1 where videos have one class each, which older programs read
BINS = 15  # of the confidence, for the calibration error, as Guo et al. 2017 (arXiv 1706.04599) have it
Z95 = 1.959964  # standard deviations to either side that hold 95 % of a normal distribution


@dataclass
class VideoScores:
    """Rows are videos, by id. Everything is on the CPU."""

    ids: torch.Tensor  # (n,) int64
    labels: torch.Tensor  # (n,) int64, -1: not labelled; of several classes (n, K), 0 or 1
    probabilities: torch.Tensor  # (n, K) float32
    keys: list[str]
    paths: list[str]
    classes: list[str]
    expected: int  # videos of the data set
    how: dict = field(default_factory=dict)  # model, data, views, options, step, precision, several (the model's classes)
    factors: dict[str, list[str]] = field(default_factory=dict)  # of what the classes are combinations

    @property
    def several(self) -> bool:
        """Whether a video has several classes."""
        return self.labels.ndim == 2

    @property
    def labelled(self) -> bool:
        return self.several or bool((self.labels >= 0).all())

    @functools.cached_property
    def top5(self) -> torch.Tensor:
        """(n, 5) int64, fewer where there are fewer classes; the likeliest first."""
        return self.probabilities.topk(min(5, len(self.classes)), dim=-1).indices

    @property
    def guesses(self) -> torch.Tensor:
        """(n,) int64"""
        return self.top5[:, 0]

    @property
    def correct(self) -> torch.Tensor:
        """(n,) bool; of several classes, whether the likeliest is one of them."""
        if self.several:
            return self.labels.gather(1, self.guesses[:, None])[:, 0] > 0
        return self.guesses == self.labels

    @property
    def shuffled(self) -> bool:
        """Whether the model saw each clip's frames in random order."""
        return bool(self.how.get("options", {}).get("shuffle_frames"))

    def scores(self) -> Scores | SeveralScores:
        """As the evaluation itself counted them."""
        return self._scores

    @functools.cached_property
    def _scores(self) -> Scores | SeveralScores:
        sizes = {name: len(names) for name, names in self.factors.items()}
        tally = tally_for(Labels(len(self.classes), sizes, self.several), torch.device("cpu"))
        tally.add(self.probabilities, self.labels, torch.ones(len(self.ids), dtype=torch.bool))
        return tally.scores(self.expected)

    def of_factor(self, name: str) -> VideoScores:
        """The same videos by the classes of one factor, with the sums of the probabilities of all that have each."""
        sizes, place = tuple(map(len, self.factors.values())), list(self.factors).index(name)
        labels, own = labels_of_factors(self.labels, sizes)[place], marginals(self.probabilities, sizes)[place]
        return replace(self, labels=labels, probabilities=own, classes=self.factors[name], factors={})

    def summary(self) -> dict:
        """What Scores has, ece, and the interval that holds the true top-1 with 95 % (Wilson 1927); fractions of 1. Of several
        classes only the first."""
        if self.several:
            return self.scores().summary()
        return self.scores().summary() | {
            "ece": calibration(self)["ece"],
            "top1_interval": list(wilson(int(self.correct.sum()), len(self.ids))),
        }

    def sentence(self) -> str:
        """The summary for people."""
        found = self.summary()
        if self.several:
            return f"binary cross entropy {found['cross_entropy']:.4f}"
        low, high = (100 * each for each in found["top1_interval"])
        return (
            f"mean class accuracy {100 * found['class_mean']:.2f} %   calibration error {100 * found['ece']:.2f} %   "
            f"95 % interval of top-1 {low:.2f} to {high:.2f} %"
        )

    def save(self, path: Path) -> None:
        """Raises OSError, one sentence, if there is no room."""
        about = {"format": "i2v-scores", "version": VERSION if self.several else 1, "classes": self.classes}
        about |= {"factors": self.factors, "expected": self.expected, "how": self.how}
        content = io.BytesIO()
        save = np.savez if self.factors else np.savez_compressed  # of combinations it takes minutes and gains nothing
        save(
            content,
            ids=self.ids.numpy(),
            labels=self.labels.numpy(),
            probabilities=self.probabilities.numpy(),
            top5=self.top5.numpy(),
            keys=np.array(self.keys, dtype=str),
            paths=np.array(self.paths, dtype=str),
            about=np.array(json.dumps(about)),
        )
        try:
            write_whole(path, content.getbuffer())
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror}): make room or give another place.") from error


def load_scores(path: str | Path) -> VideoScores:
    """What save wrote. Raises ValueError with one sentence if it is not that."""
    try:
        refuse_pipe(path)
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if about.get("format") != "i2v-scores" or about["version"] > VERSION:
                raise ValueError("of another program or version")
            ids, labels, probabilities = (torch.from_numpy(file[name]) for name in ("ids", "labels", "probabilities"))
            keys, paths = file["keys"].tolist(), file["paths"].tolist()
        factors, shape = about.get("factors", {}), (len(probabilities), len(about["classes"]))
        fits = {len(ids), len(labels), len(keys), len(paths)} == {len(probabilities)} and probabilities.shape == shape
        combinations = math.prod(map(len, factors.values())) if factors else shape[1]
        if not fits or labels.shape not in (shape, shape[:1]) or combinations != shape[1]:
            raise ValueError("its parts do not fit together")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: give a file that i2v.evaluate --scores wrote.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no scores of i2v.evaluate ({' '.join(str(error).split()):.200}).") from error
    return VideoScores(ids, labels, probabilities, keys, paths, about["classes"], about["expected"], about["how"], factors)


class Collector:
    """Called with every batch and its probabilities (i2v.metrics.evaluate), it keeps those that count."""

    def __init__(self):
        self.parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def __call__(self, batch, probabilities: torch.Tensor) -> None:
        counts = (batch.weights > 0).cpu()
        labels = batch.labels.cpu()[counts]
        labels = labels.to(torch.uint8) if labels.ndim == 2 else labels
        self.parts.append((batch.ids[counts], labels, probabilities.float().cpu()[counts]))

    def gather(
        self,
        classes: list[str],
        expected: int,
        how: dict,
        name: Callable[[int], tuple[str, str]],
        factors: dict[str, list[str]] | None = None,
        several: bool = False,
    ) -> VideoScores:
        """Those of all ranks, on rank 0; elsewhere this rank's. name: (key, path) of a video's id."""
        none = torch.zeros(0, dtype=torch.int64)
        labels = torch.zeros(0, len(classes), dtype=torch.uint8) if several else none
        parts = self.parts or [(none, labels, torch.zeros(0, len(classes)))]
        mine = [torch.cat(each) for each in zip(*parts)]
        mine.append([name(i) for i in mine[0].tolist()])
        everyone = [mine]
        if dist.is_initialized():
            everyone = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
            dist.gather_object(mine, everyone)
            everyone = everyone or [mine]
        ids, labels, probabilities = (torch.cat(each) for each in list(zip(*everyone))[:3])
        names = [pair for each in everyone for pair in each[3]]
        order = ids.argsort()
        keys, paths = ([names[i][part] for i in order.tolist()] for part in (0, 1))
        return VideoScores(ids[order], labels[order], probabilities[order], keys, paths, classes, expected, how, factors or {})


def ensemble(parts: list[VideoScores], by: str = "softmax") -> VideoScores:
    """The mean of several models' probabilities, or ("logits") of their logarithms. Raises ValueError for different videos."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for other in parts[1:]:
        if other.classes != first.classes or other.keys != first.keys or not torch.equal(other.labels, first.labels):
            raise ValueError(
                f"{first.how.get('model')} and {other.how.get('model')} were not scored on the same videos and classes: "
                "score both on the same shards."
            )
    stacked = torch.stack([each.probabilities for each in parts])  # (models, n, K)
    if by != "logits":
        mean = stacked.mean(0)
    else:
        several, tiny = first.several or first.how.get("several", False), torch.finfo(torch.float32).tiny
        logits = stacked.double().logit(eps=1e-12) if several else stacked.clamp(min=tiny).log()
        mean = probabilities_of(logits.mean(0), several).float()
    models = " + ".join(str(each.how.get("model")) for each in parts)
    return replace(first, probabilities=mean, how=first.how | {"model": models, "ensembled_by": by})


def calibration(videos: VideoScores) -> dict:
    """{"ece", "count", "confidence", "accuracy"}: the expected calibration error, and its bins (None where one is empty)."""
    confidence = videos.probabilities.max(1).values.double()
    bins = (confidence * BINS).long().clamp(0, BINS - 1)
    count = torch.bincount(bins, minlength=BINS)
    sums = [torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, each) for each in (confidence, videos.correct.double())]
    ece = float((sums[0] - sums[1]).abs().sum() / max(len(confidence), 1))
    means = [[s / n if n else None for s, n in zip(each.tolist(), count.tolist())] for each in sums]
    return {"ece": ece, "count": count.tolist(), "confidence": means[0], "accuracy": means[1]}


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `hits` of `count` were seen."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = hits / count, Z95**2 / count
    middle, half = share + z2 / 2, Z95 * (share * (1 - share) / count + z2 / (4 * count)) ** 0.5
    return (middle - half) / (1 + z2), (middle + half) / (1 + z2)


def paired_bootstrap(before: torch.Tensor, after: torch.Tensor, draws: int = 10_000) -> dict:
    """Whether two models differ by more than chance: (n,) bool each, right or wrong on the same videos.

    {"difference", "low", "high", "p"}: of the accuracies, its 95 % interval, and how often (two-sided) videos drawn anew
    put the difference on the other side of 0.
    """
    change = after.long() - before.long()  # each video is one better, the same or one worse
    counts = np.array([int((change == step).sum()) for step in (-1, 0, 1)])
    drawn = np.random.default_rng(0).multinomial(len(change), counts / counts.sum(), draws) @ np.array([-1, 0, 1])
    low, high = np.quantile(drawn / len(change), (0.025, 0.975))
    p = min(1.0, 2 * min((drawn <= 0).mean(), (drawn >= 0).mean()))
    return {"difference": float(change.double().mean()), "low": float(low), "high": float(high), "p": float(p)}
