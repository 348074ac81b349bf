"""The file that EPIC-KITCHENS-100's action recognition challenge takes, of scores video by video."""

from __future__ import annotations

import json
from pathlib import Path

from i2v.atomic import write_whole
from i2v.scores import VideoScores

ACTIONS = 100  # combinations of a video that are written, the likeliest
SUPERVISION = {"sls_pt": 2, "sls_tl": 3, "sls_td": 3}  # of pre-training, labels and data, as the challenge's rules count them


def submission(videos: VideoScores) -> dict:
    """As JSON: of every narration the score of each verb and noun, and of its likeliest actions. Raises ValueError."""
    if list(videos.factors) != ["verb", "noun"]:
        of = " and ".join(videos.factors) or "no factors"
        raise ValueError(
            f"A submission has scores of verb and noun, in this order, but these are of {of}: leave --submission out."
        )
    unknown = next((key for key, path in zip(videos.keys, videos.paths) if not path), None)
    if unknown is not None:
        raise ValueError(f"Video {unknown} has no narration_id: its json in the shards cannot be read, or names no source.")
    if len(videos.ids) != videos.expected:
        raise ValueError(
            f"Only {len(videos.ids)} of {videos.expected} videos have scores, and a submission needs those of all."
        )
    nouns = len(videos.factors["noun"])
    by_factor = {name: videos.of_factor(name).probabilities.tolist() for name in videos.factors}
    best = videos.probabilities.topk(min(ACTIONS, len(videos.classes)), dim=-1)
    results = {}
    for i, (scores, actions) in enumerate(zip(best.values.tolist(), best.indices.tolist())):
        found = {name: {str(each): score for each, score in enumerate(rows[i])} for name, rows in by_factor.items()}
        found["action"] = {f"{action // nouns},{action % nouns}": score for action, score in zip(actions, scores)}
        results[videos.paths[i]] = found
    return {"version": "0.2", "challenge": "action_recognition", **SUPERVISION, "results": results}


def write_submission(path: Path, videos: VideoScores) -> None:
    """Raises OSError, one sentence, if there is no room."""
    content = json.dumps(submission(videos))
    try:
        write_whole(path, content)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}): make room or give another place.") from error
