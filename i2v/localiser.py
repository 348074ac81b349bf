"""A boundary-matching network at work: videos of features in, segments out, as JSON and as a table."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from i2v.archive import read_file
from i2v.average_precision import Precision
from i2v.bmn import BMN, MASK, cells
from i2v.checkpoint import of_folder, read_tensors, weights_of
from i2v.config import with_defaults
from i2v.feature_folder import FeatureFolder
from i2v.foreign import unwrap
from i2v.localise_config import FeatureData, LocaliseConfig
from i2v.long_videos import Labels, LongVideo, LongVideos
from i2v.progress import Progress
from i2v.proposals import ClassScores, Detections, best_labels, detect, join_classes, join_windows, propose, soft_nms
from i2v.windows import Cut

FORMAT = "i2v-localise"
CHALLENGE = {"version": "0.2", "challenge": "action_detection", "sls_pt": 2, "sls_tl": 3, "sls_td": 3}


@dataclass(frozen=True)
class Localiser:
    """A network with what it takes to use it."""

    model: BMN
    labels: Labels
    cut: Cut
    channels: int
    config: LocaliseConfig
    device: torch.device
    stream: str | None = None  # which windows it trains on
    features: dict | None = None  # how its features were made, as features.json has it; None: of several folders, or not known

    def header(self, progress: Progress, **more) -> dict:
        about = {"channels": self.channels, "row_seconds": self.cut.row_seconds, "classes": self.labels.classes}
        about |= {"stream": self.stream, "features": self.features}
        return {"format": FORMAT, "version": 1} | about | {"config": asdict(self.config), "progress": progress.as_dict()} | more


def make_localiser(config: LocaliseConfig, channels: int, row_seconds: float, classes: dict, device: torch.device) -> Localiser:
    """With fresh weights."""
    counts = {kind: len(names) for kind, names in classes.items()}
    torch.manual_seed(config.train.seed)
    model = BMN(channels, counts, **asdict(config.model))
    cut = Cut(model.steps, model.durations, config.data.rows_per_step, row_seconds)
    return Localiser(model.to(device), Labels(classes), cut, channels, config, device)


def read_localiser(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, header) of a checkpoint of i2v.localise, or of a run's folder; what its configuration lacks has its default.

    Raises ValueError, one sentence.
    """
    path = of_folder(path)
    tensors, header = read_tensors(path)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by i2v.localise: give the best.safetensors or last.safetensors of its run.")
    return tensors, header | {"config": with_defaults(header["config"], LocaliseConfig)}


def load_into(model: BMN, state: dict[str, torch.Tensor], where: str) -> None:
    """All of a network's weights; the mask that the authors' checkpoints hold is no weight. Raises ValueError."""
    state = {name: tensor for name, tensor in state.items() if name != MASK}
    wanted = model.state_dict()
    wrong = [name for name in wanted.keys() | state.keys() if name not in state or name not in wanted]
    wrong += [name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape]
    if wrong:
        raise ValueError(
            f"{where} does not fit this network: {len(wrong)} tensors are missing, unexpected or of another shape, such as "
            f"{min(wrong)}; set model.* and use features as it was trained with."
        )
    model.load_state_dict(state)


def unwrap_weights(path: str) -> dict[str, torch.Tensor]:
    return weights_of(unwrap(read_file(path), path)[0])


def check_val(val: LongVideos | None, localiser: Localiser) -> None:
    """Raises ValueError if the network cannot look at these videos."""
    if val is None:
        return
    if val.channels != localiser.channels:
        raise ValueError(
            f"Features of {val.path} have {val.channels} channels, the network takes {localiser.channels}: use the same ones."
        )
    if abs(val.row_seconds / localiser.cut.row_seconds - 1) > 0.01:
        raise ValueError(
            f"Rows of features of {val.path} are {val.row_seconds:.4g} s apart, the network takes "
            f"{localiser.cut.row_seconds:.4g} s: use the same ones."
        )
    if val.kinds and val.kinds != tuple(localiser.labels.classes):
        theirs, ours = (" and ".join(kinds) for kinds in (val.kinds, localiser.labels.classes))
        raise ValueError(
            f"{val.path} has labels of {theirs}, the network knows {ours}: give a list like the one it trained with."
        )
    localiser.labels.truth(val)
    for kind, names in localiser.labels.classes.items():
        for video in val.videos:
            if len(names) > 1 and not localiser.config.model.class_maps and kind not in video.scores:
                raise ValueError(
                    f"There are no class scores of {kind} for {video.name}: make features with i2v.features --scores, set "
                    "data.scores, or train with model.class_maps=true."
                )
            if kind in video.scores and video.scores[kind].shape[1] % len(names):
                raise ValueError(
                    f"Scores of {kind} for {video.name} have {video.scores[kind].shape[1]} columns, which is no multiple of "
                    f"{len(names)} classes: use scores of these classes."
                )


def ahead(make, items: Iterable) -> Iterator:
    """make(item) of each, in order, the next two made in a thread while one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = []
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > 2:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def open_folders(data: FeatureData) -> tuple[list[FeatureFolder], FeatureFolder]:
    """Those of the features, and the one of class scores."""
    places = data.features if isinstance(data.features, list) else [data.features]
    if not places or not all(isinstance(place, str) for place in places):
        raise ValueError(f"data.features is {data.features!r}: it must be a folder, or a list of folders.")
    folders = [FeatureFolder(place) for place in places]
    return folders, FeatureFolder(data.scores) if data.scores else folders[0]


@torch.no_grad()
def find_segments(localiser: Localiser, videos: LongVideos) -> dict[str, Detections]:
    """What happens when in every video."""
    looks = ClassScores(localiser.cut.steps, localiser.cut.durations, videos.several)
    localiser.model.eval()
    progress = tqdm(videos.videos, unit="video", disable=not sys.stderr.isatty(), leave=False)
    found = {video.name: segments_of(localiser, video, looks) for video in progress}
    localiser.model.train()
    return found


def segments_of(localiser: Localiser, video: LongVideo, looks: ClassScores) -> Detections:
    """The segments of a video: the maps of its windows joined, proposals of these, the best of them with their classes."""
    cut, options = localiser.cut, localiser.config.detect
    firsts = [first for first in cut.firsts(video.seconds) if first < video.rows]
    places, mask = [cut.place(first, video.rows) for first in firsts], cells(cut.steps, cut.durations)[2]
    outputs = []
    size = localiser.config.train.batch_size
    parts = [firsts[i : i + size] for i in range(0, len(firsts), size)]
    for x in ahead(lambda part: torch.stack([video.window(cut, first) for first in part]), parts):
        maps = {name: value.cpu() for name, value in localiser.model(x.to(localiser.device)).items()}
        outputs += [{name: value[i] for name, value in maps.items()} for i in range(len(x))]
    boundaries = [{name: output[name].double().numpy() for name in ("start", "end", "confidence_map")} for output in outputs]
    proposals = propose(join_windows(boundaries, places, mask, cut.grid(video.rows)))
    ranked = proposals.scores(options.class_power, options.overlap_power)
    wanted = np.flatnonzero(ranked > 0)
    most = int(video.seconds / options.seconds_per_proposal) + 1
    taken, values = soft_nms(
        proposals.segments[wanted], ranked[wanted], most, options.nms_alpha, options.nms_low, options.nms_high
    )
    taken = wanted[taken]

    classes = localiser.labels.classes
    probabilities = partial(class_probabilities, localiser, video, looks, firsts, outputs)
    joined = join_classes(probabilities, places, proposals.cells[taken], mask, [len(names) for names in classes.values()])
    candidates = [*options.candidates, *[options.candidates[-1]] * len(classes)]
    labels, products = best_labels(joined, candidates[: len(classes)], options.labels)
    return detect(proposals, taken, values, labels, products, video.seconds)


def class_probabilities(
    localiser: Localiser, video: LongVideo, looks, firsts, outputs, window: int, cells: np.ndarray
) -> list[np.ndarray]:
    """(n, K) of each kind for cells (n, 2) of a window: by class scores, else by the network's own maps, else the only one."""
    found = []
    for kind, names in localiser.labels.classes.items():
        if kind in video.scores:
            found.append(looks.of(video.scores_in(localiser.cut, firsts[window], kind, len(names)), cells))
        elif localiser.config.model.class_maps:
            found.append(outputs[window][f"{kind}_map"].softmax(0)[:, cells[:, 0], cells[:, 1]].T.numpy())
        else:
            found.append(np.ones((len(cells), 1)))
    return found


def as_json(found: dict[str, Detections], labels: Labels, has_truth: bool) -> dict:
    """As the challenge wants it: "label" of a validation set is "action" of a test set."""
    kinds, key = labels.classes, "label" if has_truth else "action"
    results = {}
    for video, there in found.items():
        results[video] = []
        for segment, score, numbers in zip(there.segments.tolist(), there.scores.tolist(), there.labels.tolist()):
            names = [names[number] for names, number in zip(kinds.values(), numbers)]
            entry = {"score": score, key: ",".join(names)}
            if len(kinds) > 1:
                entry |= {kind: int(name) if name.isdecimal() else name for kind, name in zip(kinds, names)}
            results[video].append(entry | {"segment": segment})
    return CHALLENGE | {"results": results}


def table(results: dict[str, Precision], thresholds: list) -> str:
    """A row per kind: mean average precision in %, at each overlap and their mean."""
    text = io.StringIO()
    rows = [[kind, *(f"{100 * value:.4f}" for value in [*found.mean, found.mean.mean()])] for kind, found in results.items()]
    csv.writer(text, lineterminator="\n").writerows([["labels", *(f"map@{level:g}" for level in thresholds), "mean"], *rows])
    return text.getvalue()


def as_lines(results: dict[str, Precision], thresholds: list) -> str:
    """The same, for the terminal."""
    header, *rows = (line.split(",") for line in table(results, thresholds).splitlines())
    rows = [[kind, *(f"{float(value):.2f}" for value in values)] for kind, *values in rows]
    return "\n".join(f"{kind:8}" + "".join(f"{cell:>9}" for cell in cells) for kind, *cells in [header, *rows])
