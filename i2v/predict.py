"""What do these videos show?

    python -m i2v.predict --checkpoint runs/st_adapter/k400_vit-b16_8f/best.safetensors video.mp4 folder/ --top 5

Each video is stored as training stored its videos, cut and looked at from the views of the run's evaluation, and named
with the classes in the checkpoint: the prediction is the one that an evaluation of that video would count. Needs the
checkpoint and the backbone's weights, nothing else.

    python -m i2v.predict --checkpoint ... film.mp4 --window 2 --hop 1     # what happens when: a window slides over the film
    python -m i2v.predict --checkpoint ... film.mp4 --segments runs/bmn    # the same, by a network that i2v.localise trained
    find films -name '*.mp4' | python -m i2v.predict --checkpoint ... --list s3://bucket/more
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import torch

from i2v.distributed import init_world
from i2v.finder import Finder
from i2v.hub import find_model
from i2v.metrics import videos_at_once, view_probabilities
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.memory import ClipsInMemory
from i2v.session import Session, add_flags, command, open_session, parse
from i2v.shard_tools.encode import EncodedClip, EncodeSettings
from i2v.shard_tools.paths import exists, is_folder, join, videos_below
from i2v.shard_tools.pool import encode_videos
from i2v.shard_tools.sources import Video

TIMEOUT = 86_400.0  # seconds for a video: somebody is waiting and can see how far it is
MEMORY = 4.0  # GB for clips
AT_ONCE, BYTES_AT_ONCE = 64, 1 << 30  # videos per round, as they are stored: results come soon, and fit into memory


def find_videos(places: Iterable[str | Path]) -> list[str]:
    """Files as given, folders searched for video files that are not hidden; both on this machine or fsspec URLs. Raises
    ValueError if there is nothing."""
    places, videos = list(map(str, places)), []
    for place in places:
        if is_folder(place):
            videos += [join(place, name) for name in videos_below(place)]
        elif exists(place):
            videos.append(place)
        else:
            raise ValueError(f"{place} does not exist: give video files, folders or fsspec URLs of them.")
    if not videos:
        raise ValueError(f"{', '.join(places) or 'standard input'} holds no video files.")
    return list(dict.fromkeys(videos))


def listed(lines: Iterable[bytes]) -> list[str]:
    """The places that a list names, one a line; empty lines are none."""
    return [os.fsdecode(line.rstrip(b"\r\n")) for line in lines if line.strip()]


def predict(
    session: Session,
    videos: Iterable[str | Path],
    workers: int = 0,
    window=None,
    hop=None,
    tell: Callable[[str], None] | None = None,
    finder: Finder | None = None,
) -> Iterator[tuple[str, list | str]]:
    """Every video, in order, with a list of (start, end, probabilities): seconds as players count them, and a (K,) tensor;
    or with why it could not be read.

    window, hop: seconds; None: the views of the run's evaluation, averaged, are one answer for the whole video.
    finder: then the list is what it finds.
    tell: called very often, with how far it is, in words.
    """
    tell = tell or (lambda text: None)
    stored = dict(session.meta.stored)
    if window is not None or finder is not None:
        stored["max_seconds"] = None
    settings, chunk = EncodeSettings(**stored), {}
    sources = (Video(str(video)) for video in videos)

    def read(video: Video, second: float) -> None:
        tell(f"{video.path}: read up to {timedelta(seconds=int(second))}")

    with closing(encode_videos(sources, settings, workers, TIMEOUT, read)) as outcomes:
        for video, outcome in zip(videos, outcomes):
            chunk[str(video)] = outcome
            size = sum(len(clip.data) for clip in chunk.values() if isinstance(clip, EncodedClip))
            if len(chunk) == AT_ONCE or size >= BYTES_AT_ONCE:
                yield from look_at(session, chunk, settings, window, hop, tell, finder)
                chunk = {}
    yield from look_at(session, chunk, settings, window, hop, tell, finder)


@torch.no_grad()
def look_at(
    session: Session,
    outcomes: dict[str, object],
    settings: EncodeSettings,
    window,
    hop,
    tell: Callable[[str], None],
    finder: Finder | None = None,
) -> list[tuple[str, list | str]]:
    """The answers for some videos, each encoded or rejected."""
    clips = {video: clip for video, clip in outcomes.items() if isinstance(clip, EncodedClip)}
    names = list(clips)
    found = {video: [] if video in clips else outcome.reason for video, outcome in outcomes.items()}
    if clips:
        shards, views = ClipsInMemory(list(clips.values()), names, settings.codec, settings.gop), session.views((), window, hop)
        if finder is not None:
            views |= {"split": "windows", "options": finder.options}
        loader = build_loader(shards, batch_size=min(videos_at_once(views["options"], MEMORY), len(clips)), **views)
        rows = finder.rows(session.model, loader.plan) if finder else None
        for batch in loader:
            tell(f"looking at {min(batch.samples_seen, len(loader.plan))} of {len(loader.plan)} views")
            with session.autocast():
                made = rows.of(batch) if rows else view_probabilities(session.model, batch).cpu()
            for i in batch.weights.nonzero().flatten().tolist():
                clip = int(batch.ids[i])
                length = float(shards.clips["frames"][clip] / shards.clips["fps"][clip])
                begin = round(clips[names[clip]].begin, 6)  # as shards say it
                windowed = views["split"] == "windows"
                start, end = loader.plan.window(int(batch.positions[i])) if windowed else (0.0, length)
                answer = {name: values[i] for name, values in made.items()} if rows else made[i]
                found[names[clip]].append((begin + start, begin + min(end, length), answer))
        if finder is not None:
            found |= {video: finder.find(video, found[video]) for video in names if found[video]}
        found |= {names[clip]: reason for clip, reason in loader.bad.items()}
    return list(found.items())


class Patience:
    """Of what it is told it prints a line every ten seconds, on standard error: a film takes minutes."""

    EVERY = 10  # seconds

    def __init__(self):
        self.told = time.monotonic()

    def __call__(self, text: str) -> None:
        if time.monotonic() - self.told >= self.EVERY:
            print(text, file=sys.stderr, flush=True)
            self.told = time.monotonic()


class Predictor:
    """A trained model that says what videos show, for programs that embed it. Make one with i2v.load."""

    def __init__(self, session: Session):
        self.session = session

    @property
    def classes(self) -> list[str]:
        return self.session.meta.classes

    def predict(self, video: str | Path, top: int = 5, window: float | None = None, hop: float | None = None) -> list[dict]:
        """[{"class", "probability"}, ...], the likeliest first; with window (seconds, one every `hop`) a list of {"start",
        "end", "top"} for the times of the video. Raises ValueError, one sentence, if the video cannot be read."""
        (video,) = find_videos([video])
        answer = dict(predict(self.session, [video], 0, window, hop))[video]
        if isinstance(answer, str):
            raise ValueError(f"{video} cannot be read: {answer}")
        found = []
        for start, end, probabilities in answer:
            best = probabilities.topk(min(top, len(self.classes)))
            named = [{"class": self.classes[i], "probability": p} for p, i in zip(best.values.tolist(), best.indices.tolist())]
            found.append({"start": start, "end": end, "top": named})
        return found if window is not None else found[0]["top"]


def load(source: str | Path, *, device: str = "auto", precision: str = "auto", weights: str | None = None) -> Predictor:
    """The model of a run's folder, of a checkpoint, of a folder that i2v.push made, or of "org/name" on the Hugging Face hub.

    device: auto, cpu or gpu. precision: auto, bf16 or float32. weights: the backbone's file or tag, if it is not where the
    run had it. Raises ValueError or OSError, one sentence.
    """
    session = open_session(argparse.Namespace(checkpoint=find_model(source), config=None, weights=weights))
    session.place(init_world(device).device, precision)
    return Predictor(session)


def main() -> None:
    parser = command("i2v.predict", __doc__)
    about = "best.safetensors or last.safetensors of a run, or its folder"
    parser.add_argument("--checkpoint", required=True, type=Path, help=about)
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="files, folders that are searched for them, or URLs of both")
    parser.add_argument("--list", action="store_true", help="read more of them from standard input, one a line")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name")
    add_flags(parser, "--window", "--hop", window="an answer for every so many seconds of a video")
    about = "name segments, by the network in this run or checkpoint of i2v.localise; --top is then how many"
    parser.add_argument("--segments", type=Path, metavar="RUN", help=about)
    add_flags(parser, "--weights", "--device", "--precision")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare videos (default: this one)")
    add_flags(parser, "--json", json="write all of it here as well")
    args = parse(parser)
    try:
        if args.top < 1:
            raise ValueError(f"--top is {args.top}: it must be at least 1.")
        if args.workers < 0:
            raise ValueError(f"--workers is {args.workers}: it must be at least 0.")
        if not args.videos and not args.list:
            raise ValueError(
                "there is nothing to look at: give videos, folders or URLs, or --list and their names on standard input."
            )
        videos = find_videos(args.videos + (listed(sys.stdin.buffer) if args.list else []))
        if args.segments and args.window is not None:
            raise ValueError("--segments looks at the windows that its features were made of: leave out --window.")
        session = open_session(args)
        finder = Finder(args.segments, session) if args.segments else None
        session.place(init_world(args.device).device, args.precision)
        if finder is not None:
            finder.place(session.device)
        classes, results = session.meta.classes, []
        for video, answer in predict(session, videos, args.workers, args.window, args.hop, Patience(), finder):
            if finder is not None and not isinstance(answer, str):
                results.append(show_segments(video, answer, args.top))
            else:
                results.append(show(video, answer, classes, args.top, args.window is not None))
    except (ValueError, TypeError, OSError, ShardError) as error:
        sys.exit(f"i2v.predict: {error}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    unread = sum("error" in result for result in results)
    if unread:
        sys.exit(f"i2v.predict: {unread} of {len(results)} videos could not be read.")


def show(video: str, answer, classes: list[str], top: int, windowed: bool) -> dict:
    """Print one video's result, and return it."""
    print(video)
    if isinstance(answer, str):
        print(f"    cannot be read: {answer}")
        return {"video": video, "error": answer}
    windows = []
    for start, end, probabilities in answer:
        best = probabilities.topk(min(top, len(classes)))
        named = [(classes[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist())]
        if windowed:
            print(f"  {start:.2f} to {end:.2f} s")
        for name, probability in named:
            print(f"    {100 * probability:5.1f} %  {name}")
        windows.append({"start": start, "end": end, "top": [{"class": name, "probability": p} for name, p in named]})
    return {"video": video, "windows": windows} if windowed else {"video": video, "top": windows[0]["top"]}


def show_segments(video: str, segments: list[dict], top: int) -> dict:
    """Print the best of a video's segments, in the order of time; return all of them, the best first."""
    print(video)
    for found in sorted(segments[:top], key=lambda found: found["start"]):
        print(f"  {found['start']:.2f} to {found['end']:.2f} s  {100 * found['score']:5.1f} %  {found['class']}")
    return {"video": video, "segments": segments}


if __name__ == "__main__":
    main()
