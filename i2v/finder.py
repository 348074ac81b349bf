"""A trained localiser on the features that a model makes right now: names of segments of a video, without files between."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from i2v.checkpoint import weights_of
from i2v.config import build_config
from i2v.localise_config import LocaliseConfig
from i2v.localiser import load_into, make_localiser, read_localiser, segments_of
from i2v.long_videos import long_video
from i2v.proposals import ClassScores
from i2v.rows import Rows
from i2v.segments import Annotated


class Finder:
    """The network of a checkpoint of i2v.localise, for the model whose features it was trained on.

    options: of the windows of which it needs features. Make it before the model is placed. Raises ValueError if its features
    are those of another model, or it is not known how they were made.
    """

    def __init__(self, source, session):
        tensors, header = read_localiser(source)
        how = header.get("features") or {}
        if "weights" not in how or how.get("options", {}).get("window") is None:
            raise ValueError(f"{source} was not trained on features that i2v.features --window made into one folder.")
        if how["weights"] != session.fingerprint():
            raise ValueError(f"{source} was trained on features of another model, {how.get('model')}: give that one.")
        config = build_config(LocaliseConfig, header["config"], source)
        self.localiser = make_localiser(config, header["channels"], header["row_seconds"], header["classes"], session.device)
        load_into(self.localiser.model, weights_of(tensors), str(source))
        self.options, self.beside = how["options"], how.get("crops_as") == "beside"
        self.kinds, self.several = how.get("scores", {}).get("classes"), session.meta.several
        if not self.kinds and not config.model.class_maps:
            raise ValueError(
                f"{source} was trained on features without class scores of this model: there is nothing to name by."
            )

    def place(self, device: torch.device) -> None:
        self.localiser = replace(self.localiser, model=self.localiser.model.to(device).eval(), device=device)

    def rows(self, model: torch.nn.Module, plan) -> Rows:
        return Rows(model, plan, self.beside, self.kinds, self.several)

    @torch.no_grad()
    def find(self, name: str, pieces: list[tuple[float, float, dict[str, np.ndarray]]]) -> list[dict]:
        """[{"start", "end", "score", "class"}, ...], the best first, of (start, end, rows) of every window of a video."""
        arrays = {key: np.concatenate([rows[key] for _, _, rows in pieces]) for key in pieces[0][2]}
        times = np.array([[start, end] for start, end, _ in pieces])
        scores = {key.removeprefix("scores."): array for key, array in arrays.items() if key}
        apart, nothing = self.localiser.cut.row_seconds, Annotated(np.zeros((0, 2)), [])
        video = long_video(name, (arrays[""],), scores, times, nothing, apart)
        if len(times) > 1 and abs(video.row_seconds / apart - 1) > 0.01:
            raise ValueError(f"Rows of {name} are {video.row_seconds:.4g} s apart, the network takes {apart:.4g} s.")
        looks = ClassScores(self.localiser.cut.steps, self.localiser.cut.durations, self.several)
        found = segments_of(self.localiser, replace(video, row_seconds=apart), looks)
        classes = list(self.localiser.labels.classes.values())
        answers = [
            {"start": start, "end": end, "score": score, "class": " / ".join(names[i] for names, i in zip(classes, labels))}
            for (start, end), score, labels in zip(found.segments.tolist(), found.scores.tolist(), found.labels.tolist())
        ]
        return sorted(answers, key=lambda answer: -answer["score"])
