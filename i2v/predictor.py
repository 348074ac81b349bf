"""A trained model that says what videos show: whole ones, windows that slide over them, segments in them.

Programs that embed it have i2v.load and what comes back, a Predictor; i2v.predict is the command.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from i2v.distributed import init_world
from i2v.finder import Finder
from i2v.hub import find_model
from i2v.metrics import videos_at_once, view_probabilities
from i2v.pipelines import build_loader
from i2v.pipelines.memory import ClipsInMemory
from i2v.session import Session, open_classifier
from i2v.shard_tools.encode import EncodedClip, EncodeSettings
from i2v.shard_tools.live import STANDARD_INPUT, is_live, is_stream
from i2v.shard_tools.paths import exists, is_folder, join, videos_below
from i2v.shard_tools.pool import encode_videos
from i2v.shard_tools.source_video import RejectedVideo
from i2v.shard_tools.sources import Video
from i2v.watch import Answer, Answers

TIMEOUT = 86_400.0  # seconds for a video: somebody is waiting and can see how far it is
AT_ONCE, BYTES_AT_ONCE = 64, 1 << 30  # videos per round, as they are stored: results come soon, and fit into memory


class Predictor:
    """A trained model that says what videos show, for programs that embed it. Make one with i2v.load."""

    def __init__(self, session: Session):
        self.session = session

    @property
    def classes(self) -> list[str]:
        return self.session.meta.classes

    def predict(
        self, video: str | Path, top: int = 5, window: float | str | None = None, hop: float | str | None = None
    ) -> list[dict]:
        """[{"class", "probability"}, ...], the likeliest first; with window (seconds, or frames as "64f", one every `hop`) a
        list of {"start", "end", "top"} for the times of the video. Raises ValueError, one sentence, if it cannot be read."""
        if window is not None:
            return list(self.watch(video, window, hop, top))
        video = one_video(video, top)
        answer = dict(predict(self.session, [video]))[video]
        if isinstance(answer, str):
            raise ValueError(f"{video} cannot be read: {answer}")
        return named(answer, self.classes, top)

    def watch(
        self, video: str | Path, window: float | str, hop: float | str | None = None, top: int = 5, drop: bool = False
    ) -> Iterator[dict]:
        """{"start", "end", "top"} of each window of a video, as they come; of a stream (a camera's device, an address such as
        rtsp://..., or - for standard input) with "latency" in seconds and the number of windows that were "dropped" before
        it. drop: do not let standard input wait. Raises ValueError as predict, after the answers up to there."""
        video = one_video(video, top)
        with closing(watch(self.session, [video], window, hop, drop=drop)) as watched:
            for _, answers in watched:
                try:
                    for answer in answers:
                        yield said(answer, self.classes, top, is_stream(video))
                except RejectedVideo as rejected:
                    raise ValueError(f"{video} cannot be read: {rejected.reason}") from rejected


def load(source: str | Path, *, device: str = "auto", precision: str = "auto", weights: str | None = None) -> Predictor:
    """The model of a run's folder, of a checkpoint, of a folder that i2v.push made, or of "org/name" on the Hugging Face hub.

    device: auto, cpu or gpu. precision: auto, bf16 or float32. weights: the backbone's file or tag, if it is not where the
    run had it. Raises ValueError or OSError, one sentence.
    """
    session = open_classifier(argparse.Namespace(checkpoint=find_model(source), config=None, weights=weights))
    session.place(init_world(device).device, precision)
    return Predictor(session)


def named(answer: Answer, classes: list[str], top: int) -> list[dict]:
    """The likeliest classes and their probabilities."""
    best = answer.probabilities.topk(min(top, len(classes)))
    return [{"class": classes[i], "probability": p} for p, i in zip(best.values.tolist(), best.indices.tolist())]


def said(answer: Answer, classes: list[str], top: int, live: bool) -> dict:
    """A window's answer as JSON has it."""
    found = {"start": answer.start, "end": answer.end, "top": named(answer, classes, top)}
    return found | ({"latency": round(answer.latency, 6), "dropped": answer.dropped} if live else {})


def find_videos(places: Iterable[str | Path]) -> list[str]:
    """Files and streams as given, folders searched for video files that are not hidden; files and folders on this machine or
    fsspec URLs. Raises ValueError if there is nothing."""
    places, videos = list(map(str, places)), []
    for place in places:
        if is_stream(place):
            videos.append(place)
        elif is_folder(place):
            videos += [join(place, name) for name in videos_below(place)]
        elif exists(place):
            videos.append(place)
        else:
            raise ValueError(f"{place} does not exist: give video files, folders or fsspec URLs of them.")
    if not videos:
        raise ValueError(f"{', '.join(places) or 'standard input'} holds no video files.")
    return list(dict.fromkeys(videos))


def one_video(place: str | Path, top: int) -> str:
    """The only video of a place; top: how many classes are asked for. Raises ValueError."""
    if top < 1:
        raise ValueError(f"top is {top}: it must be at least 1.")
    videos = find_videos([place])
    if len(videos) > 1:
        raise ValueError(f"{place} is a folder of {len(videos)} videos: give one of them at a time.")
    return videos[0]


def predict(
    session: Session,
    videos: Iterable[str | Path],
    workers: int = 0,
    tell: Callable[[str], None] | None = None,
    finder: Finder | None = None,
) -> Iterator[tuple[str, Answer | list | str]]:
    """Every video, in order, with the answer for all of it: the views of the run's evaluation, averaged; or with why it could
    not be read. tell: called very often, with how far it is, in words. finder: then the answer is the list that it finds.
    """
    tell = tell or (lambda text: None)
    look = partial(segments_in, finder) if finder else look_at
    settings, chunk = EncodeSettings(**session.meta.stored | ({"max_seconds": None} if finder else {})), {}
    sources = (Video(str(video)) for video in videos)

    def read(video: Video, second: float) -> None:
        tell(f"{video.path}: read up to {timedelta(seconds=int(second))}")

    with closing(encode_videos(sources, settings, workers, TIMEOUT, read)) as outcomes:
        for video, outcome in zip(videos, outcomes):
            chunk[str(video)] = outcome
            size = sum(len(clip.data) for clip in chunk.values() if isinstance(clip, EncodedClip))
            if len(chunk) == AT_ONCE or size >= BYTES_AT_ONCE:
                yield from look(session, chunk, settings, tell)
                chunk = {}
    yield from look(session, chunk, settings, tell)


@torch.no_grad()
def look_at(
    session: Session, outcomes: dict[str, object], settings: EncodeSettings, tell: Callable[[str], None]
) -> list[tuple[str, Answer | str]]:
    """The answers for some videos, each encoded or rejected."""
    clips = {video: clip for video, clip in outcomes.items() if isinstance(clip, EncodedClip)}
    names = list(clips)
    found = {video: None if video in clips else outcome.reason for video, outcome in outcomes.items()}
    if clips:
        shards, views = ClipsInMemory(list(clips.values()), names, settings.codec, settings.gop), session.views()
        loader = build_loader(shards, batch_size=min(videos_at_once(views["options"]), len(clips)), **views)
        for batch in loader:
            tell(f"looking at {min(batch.samples_seen, len(loader.plan))} of {len(loader.plan)} videos")
            with session.autocast():
                probabilities = view_probabilities(session.model, batch, several=session.meta.several).cpu()
            for i in batch.weights.nonzero().flatten().tolist():
                clip = int(batch.ids[i])
                length = float(shards.clips["frames"][clip] / shards.clips["fps"][clip])
                begin = round(clips[names[clip]].begin, 6)  # as shards say it
                found[names[clip]] = Answer(begin, begin + length, probabilities[i])
        found |= {names[clip]: reason for clip, reason in loader.bad.items()}
    return list(found.items())


@torch.no_grad()
def segments_in(
    finder: Finder, session: Session, outcomes: dict[str, object], settings: EncodeSettings, tell: Callable[[str], None]
) -> list[tuple[str, list | str]]:
    """What a finder finds in some videos, each encoded or rejected."""
    clips = {video: clip for video, clip in outcomes.items() if isinstance(clip, EncodedClip)}
    names, windows = list(clips), {video: [] for video in clips}
    found = {video: None if video in clips else outcome.reason for video, outcome in outcomes.items()}
    if clips:
        shards = ClipsInMemory(list(clips.values()), names, settings.codec, settings.gop)
        views = session.views() | {"split": "windows", "options": finder.options}
        loader = build_loader(shards, batch_size=videos_at_once(finder.options), **views)
        rows = finder.rows(session.model, loader.plan)
        for batch in loader:
            tell(f"looking at {min(batch.samples_seen, len(loader.plan))} of {len(loader.plan)} windows")
            with session.autocast():
                made = rows.of(batch)
            for i in batch.weights.nonzero().flatten().tolist():
                clip = int(batch.ids[i])
                start, end = loader.plan.window(int(batch.positions[i]))
                end = min(end, float(shards.clips["frames"][clip] / shards.clips["fps"][clip]))
                begin = round(clips[names[clip]].begin, 6)  # as shards say it
                windows[names[clip]].append((begin + start, begin + end, {name: value[i] for name, value in made.items()}))
        found |= {video: finder.find(video, windows[video]) for video in names if windows[video]}
        found |= {names[clip]: reason for clip, reason in loader.bad.items()}
    return list(found.items())


def watch(
    session: Session,
    videos: Iterable[str],
    window: float | str,
    hop: float | str | None = None,
    ahead: int = 0,
    drop: bool = False,
) -> Iterator[tuple[str, Answers]]:
    """Every video, in order, with its answers as they come (see i2v.watch); take them before the next video.

    ahead: videos that are read while another one is looked at. drop: do not let standard input wait.
    """
    videos, opened = iter(videos), deque()
    try:
        while True:
            while len(opened) <= ahead and (video := next(videos, None)) is not None:
                at_once = 1 if is_stream(video) else videos_at_once(session.views((), window, hop)["options"])
                drops = is_live(video) or drop and video == STANDARD_INPUT
                opened.append(Answers(session, video, window, hop, drops, at_once))
            if not opened:
                return
            yield opened[0].place, opened[0]
            opened.popleft().close()
    finally:
        for answers in opened:
            answers.close()


class Patience:
    """Of what it is told it prints a line every ten seconds, on standard error: a film takes minutes."""

    EVERY = 10  # seconds

    def __init__(self):
        self.told = time.monotonic()

    def __call__(self, text: str) -> None:
        if time.monotonic() - self.told >= self.EVERY:
            print(text, file=sys.stderr, flush=True)
            self.told = time.monotonic()
