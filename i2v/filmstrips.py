"""What page.js draws of the videos of a report: what each is and was taken for, and film strips of the worst errors."""

from __future__ import annotations

import base64
import io

import av
import numpy as np
from PIL import Image

from i2v.console import as_text
from i2v.pipelines import ShardError
from i2v.pipelines.shards import ClipError, ShardSet
from i2v.runs import Run

FRAMES, HEIGHT = 6, 90  # of a strip


def for_script(scored: list[Run], data: str | None, strips: int) -> dict:
    """Of runs whose videos have one class each: [label, guess, confidence, path] of every video, and `strips` film strips of
    the most confident errors. data: where the shards are that were scored; None: where they were."""
    found = {"runs": []}
    for run in scored:
        videos = run.scores
        confidence, guesses = videos.probabilities.max(1).values, videos.guesses
        names = [as_text(path or key) for path, key in zip(videos.paths, videos.keys)]
        rows = zip(videos.labels.tolist(), guesses.tolist(), confidence.tolist(), names)
        sure = confidence.masked_fill(videos.correct, -1).argsort(descending=True, stable=True)[:strips].tolist()
        sure = [at for at in sure if not videos.correct[at]]
        entry = {"name": as_text(run.name), "classes": [as_text(name) for name in videos.classes]}
        entry |= {"videos": [[a, b, round(c, 3), d] for a, b, c, d in rows], "wrong": sure[:24]}
        found["runs"].append(entry | {"strips": film_strips(run, sure, data)})
    return found


def film_strips(run: Run, rows: list[int], data: str | None) -> dict[int, str]:
    """row -> a JPEG as a data URL, of the rows whose videos can be read; why not becomes a note of the run."""
    where = data or run.scores.how.get("data")
    try:
        shards = ShardSet(where)
    except (ShardError, OSError, ValueError, TypeError) as error:
        if data is not None:
            raise ValueError(f"--data: {error}") from error
        run.notes.append(f"no frames are shown, as the shards that were scored cannot be read ({error})")
        return {}
    strips = {}
    for row in rows:
        clip = int(run.scores.ids[row])
        if clip >= len(shards) or shards.key(clip) != run.scores.keys[row]:
            run.notes.append(f"no frames are shown, as {where} has other videos than were scored: --data names those that were")
            return {}
        try:
            strips[row] = strip(shards.read_whole(clip))
        except (ClipError, ShardError, OSError, av.FFmpegError):
            continue  # its path is shown, and the evaluation had it
    return strips


def strip(video: bytes) -> str:
    """Frames of an mp4 side by side, from its first to its last."""
    with av.open(io.BytesIO(video)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]
    height, width = chosen[0].shape[:2]
    picture = Image.fromarray(np.concatenate(chosen, axis=1))
    content = io.BytesIO()
    picture.resize((max(1, round(width * HEIGHT / height)) * FRAMES, HEIGHT)).save(content, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
