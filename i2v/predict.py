"""What do these videos show?

    python -m i2v.predict --checkpoint runs/st_adapter/k400_vit-b16_8f/best.safetensors video.mp4 folder/ --top 5

Each video is stored as training stored its videos, cut and looked at from the views of the run's evaluation, and named
with the classes in the checkpoint: the prediction is the one that an evaluation of that video would count. Needs the
checkpoint and the backbone's weights, nothing else.

    python -m i2v.predict --checkpoint ... film.mp4 --segments runs/bmn    # what happens when, by what i2v.localise trained
    find films -name '*.mp4' | python -m i2v.predict --checkpoint ... --list s3://bucket/more

What happens when, in films and live: a window slides over the video, and there is an answer every hop, as it comes.

    python -m i2v.predict --checkpoint ... film.mp4 --window 2 --hop 1 --annotate named.mp4 # a copy with the answers in it
    python -m i2v.predict --checkpoint ... rtsp://camera/1 --window 2 --hop 0.5 --jsonl -   # or /dev/video0
    ffmpeg -i ... -f mpegts - | python -m i2v.predict --checkpoint ... - --window 2         # encoded video on standard input

A camera or an address does not wait: windows that the model is too slow for are dropped, and the answer after them says
how many. Standard input waits, unless --live says that it must not. An answer's latency is the time from when the last of
its frames was decoded. Memory does not grow with the length of the video (but --json keeps all answers to the end).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from i2v.annotate import annotated
from i2v.console import as_sentence, refuse_place
from i2v.distributed import init_world
from i2v.finder import Finder
from i2v.hub import find_model
from i2v.metrics import videos_at_once, view_probabilities
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.memory import ClipsInMemory
from i2v.session import Session, add_flags, command, open_session, parse
from i2v.shard_tools.encode import EncodedClip, EncodeSettings
from i2v.shard_tools.live import STANDARD_INPUT, is_live, is_stream
from i2v.shard_tools.paths import exists, is_folder, join, videos_below
from i2v.shard_tools.pool import WorkerError, encode_videos
from i2v.shard_tools.source_video import RejectedVideo
from i2v.shard_tools.sources import Video
from i2v.watch import Answer, Answers

TIMEOUT = 86_400.0  # seconds for a video: somebody is waiting and can see how far it is
MEMORY = 4.0  # GB for clips
AT_ONCE, BYTES_AT_ONCE = 64, 1 << 30  # videos per round, as they are stored: results come soon, and fit into memory


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


def listed(lines: Iterable[bytes]) -> list[str]:
    """The places that a list names, one a line; empty lines are none."""
    return [os.fsdecode(line.rstrip(b"\r\n")) for line in lines if line.strip()]


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
        loader = build_loader(shards, batch_size=min(videos_at_once(views["options"], MEMORY), len(clips)), **views)
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
        loader = build_loader(shards, batch_size=videos_at_once(finder.options, MEMORY), **views)
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
    session: Session, videos: Iterable[str], window: float, hop: float | None = None, ahead: int = 0, drop: bool = False
) -> Iterator[tuple[str, Answers]]:
    """Every video, in order, with its answers as they come (see i2v.watch); take them before the next video.

    ahead: videos that are read while another one is looked at. drop: do not let standard input wait.
    """
    videos, opened = iter(videos), deque()
    try:
        while True:
            while len(opened) <= ahead and (video := next(videos, None)) is not None:
                at_once = 1 if is_stream(video) else videos_at_once(session.views((), window, hop)["options"], MEMORY)
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
        if window is not None:
            return list(self.watch(video, window, hop, top))
        (video,) = find_videos([video])
        answer = dict(predict(self.session, [video]))[video]
        if isinstance(answer, str):
            raise ValueError(f"{video} cannot be read: {answer}")
        return named(answer, self.classes, top)

    def watch(
        self, video: str | Path, window: float, hop: float | None = None, top: int = 5, drop: bool = False
    ) -> Iterator[dict]:
        """{"start", "end", "top"} of each window of a video, as they come; of a stream (a camera's device, an address such as
        rtsp://..., or - for standard input) with "latency" in seconds and the number of windows that were "dropped" before
        it. drop: do not let standard input wait. Raises ValueError as predict, after the answers up to there."""
        (video,) = find_videos([video])
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
    session = open_session(argparse.Namespace(checkpoint=find_model(source), config=None, weights=weights))
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


def main() -> None:
    parser = command("i2v.predict", __doc__)
    about = "best.safetensors or last.safetensors of a run, or its folder"
    parser.add_argument("--checkpoint", required=True, type=Path, help=about)
    about = "files, folders that are searched for them, or URLs of both; or one stream: - , /dev/video0, rtsp://..."
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help=about)
    parser.add_argument("--list", action="store_true", help="read more of them from standard input, one a line")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name")
    add_flags(parser, "--window", "--hop", window="an answer for every so many seconds of a video")
    about = "name segments, by the network in this run or checkpoint of i2v.localise; --top is then how many"
    parser.add_argument("--segments", type=Path, metavar="RUN", help=about)
    parser.add_argument("--live", action="store_true", help="drop what the model is too slow for, also of standard input")
    add_flags(parser, "--weights", "--device", "--precision")
    about = "processes that prepare videos, or with --window threads that read the next ones (default: none besides this)"
    parser.add_argument("--workers", type=int, default=0, help=about)
    add_flags(parser, "--json", json="write all of it here as well, at the end")
    about = "write it here as it comes, a JSON object a line; - is standard output, which then has nothing else"
    parser.add_argument("--jsonl", metavar="FILE", help=about)
    parser.add_argument(
        "--annotate", metavar="FILE", type=Path, help="write a copy of the one video (.mp4) with the answers in it"
    )
    args = parse(parser)
    try:
        check(args)
        videos = find_videos(args.videos + (listed(sys.stdin.buffer) if args.list else []))
        check_videos(args, videos)
        session = open_session(args)
        finder = Finder(args.segments, session) if args.segments else None
        session.place(init_world(args.device).device, args.precision)
        with closing(Told(args, session.meta.classes)) as told:
            if finder is not None:
                finder.place(session.device)
                tell_segments(args, session, videos, told, finder)
            else:
                (tell_windows if args.window is not None else tell_videos)(args, session, videos, told)
    except (ValueError, TypeError, OSError, ShardError, WorkerError) as error:
        sys.exit(f"i2v.predict: {as_sentence(error)}")
    if told.unread:
        sys.exit(f"i2v.predict: {told.unread} of {len(videos)} videos could not be read.")


def check(args) -> None:
    """Raises ValueError, one sentence, for flags that cannot be meant."""
    if args.top < 1:
        raise ValueError(f"--top is {args.top}: it must be at least 1.")
    if args.workers < 0:
        raise ValueError(f"--workers is {args.workers}: it must be at least 0.")
    if not args.videos and not args.list:
        raise ValueError(
            "there is nothing to look at: give videos, folders or URLs, or --list and their names on standard input."
        )
    if args.segments and args.window is not None:
        raise ValueError("--segments looks at the windows that its features were made of: leave out --window.")
    if args.segments and args.annotate is not None:
        raise ValueError("--annotate writes the answers of --window, or of whole videos: leave out --segments.")
    if args.list and STANDARD_INPUT in args.videos:
        raise ValueError("standard input cannot be both a video (-) and a list of them (--list).")
    if args.live and STANDARD_INPUT not in args.videos:
        raise ValueError("--live is for standard input (-): cameras and addresses are live, and files wait.")
    refuse_place("--jsonl", None if args.jsonl == "-" else args.jsonl)
    if args.annotate is not None and (args.annotate.suffix != ".mp4" or not args.annotate.parent.is_dir()):
        raise ValueError(f"--annotate {args.annotate}: give a name that ends in .mp4, in a folder that exists.")


def check_videos(args, videos: list[str]) -> None:
    stream = next(filter(is_stream, videos), None)
    if stream is not None and len(videos) > 1:
        raise ValueError(f"{stream} is a stream and may have no end: give it alone.")
    if stream is not None and args.window is None:
        raise ValueError(f"{stream} is a stream: say with --window how many seconds an answer is about.")
    if args.annotate is not None and (stream is not None or len(videos) > 1):
        raise ValueError(f"--annotate copies one video file: there {'is a stream' if stream else f'are {len(videos)}'}.")
    if args.annotate is not None and args.annotate.exists() and os.path.realpath(videos[0]) == os.path.realpath(args.annotate):
        raise ValueError(f"--annotate {args.annotate} is the video itself, which would be lost: give another name.")


def tell_videos(args, session: Session, videos: list[str], told: Told) -> None:
    for video, answer in predict(session, videos, args.workers, Patience()):
        try:
            if isinstance(answer, str):
                raise RejectedVideo(answer)
            for _ in annotated(video, args.annotate, [answer], told.lines):
                told.whole(video, answer)
        except RejectedVideo as rejected:
            told.cannot_be_read(video, rejected.reason)


def tell_segments(args, session: Session, videos: list[str], told: Told, finder: Finder) -> None:
    for video, answer in predict(session, videos, args.workers, Patience(), finder):
        if isinstance(answer, str):
            told.cannot_be_read(video, answer)
        else:
            told.segments(video, answer)


def tell_windows(args, session: Session, videos: list[str], told: Told) -> None:
    with closing(watch(session, videos, args.window, args.hop, args.workers, args.live)) as watched:
        for video, answers in watched:
            told.begins(video)
            try:
                for answer in annotated(video, args.annotate, answers, told.lines):
                    told.window(answer)
            except RejectedVideo as rejected:
                told.cannot_be_read(video, rejected.reason)
            finally:
                told.ends(answers)


class Told:
    """Prints results as they come, and writes them where they are wanted: --jsonl as they come too, --json at the end."""

    def __init__(self, args, classes: list[str]):
        self.unread, self._classes, self._top, self._json, self._all = 0, classes, args.top, args.json, []
        self._prints = args.jsonl != "-"
        self._jsonl = open(args.jsonl, "w") if args.jsonl and self._prints else sys.stdout if args.jsonl else None
        self._video, self._windows, self._latency, self._longest, self._dropped = "", 0, 0.0, 0.0, 0

    def lines(self, answer: Answer) -> tuple[tuple[str, float], ...]:
        """What a picture can say of an answer: classes and their probabilities."""
        return tuple((one["class"], one["probability"]) for one in named(answer, self._classes, self._top))

    def whole(self, video: str, answer: Answer) -> None:
        self._print(video)
        self._print_lines(answer)
        self._write({"video": video, "top": named(answer, self._classes, self._top)})

    def segments(self, video: str, segments: list[dict]) -> None:
        """The best of them are printed, in the order of time; all are written, the best first."""
        self._print(video)
        for found in sorted(segments[: self._top], key=lambda found: found["start"]):
            self._print(f"  {found['start']:.2f} to {found['end']:.2f} s  {100 * found['score']:5.1f} %  {found['class']}")
        self._write({"video": video, "segments": segments})

    def begins(self, video: str) -> None:
        self._video, self._windows, self._latency, self._longest, self._dropped = video, 0, 0.0, 0.0, 0
        self._print(video)

    def window(self, answer: Answer) -> None:
        live = is_stream(self._video)
        self._windows, self._dropped = self._windows + 1, self._dropped + answer.dropped
        self._latency, self._longest = self._latency + answer.latency, max(self._longest, answer.latency)
        late = f", {1000 * answer.latency:.0f} ms later" if live else ""
        late += f", after {answer.dropped} dropped" if answer.dropped else ""
        self._print(f"  {answer.start:.2f} to {answer.end:.2f} s{late}")
        self._print_lines(answer)
        self._write({"video": self._video} | said(answer, self._classes, self._top, live))

    def ends(self, answers: Answers) -> None:
        """What came of a stream, on standard error."""
        if not is_stream(self._video) or not self._windows:
            return
        mean = self._latency / self._windows
        text = f"{self._video}: {self._windows} answers, {mean:.3f} s late on average and {self._longest:.3f} s at most"
        if self._dropped:
            text += f"; {self._dropped} windows were dropped, because the model needs longer than a hop"
        if answers.damaged:
            text += f"; {answers.damaged} damaged pictures were left out"
        print(text, file=sys.stderr)

    def cannot_be_read(self, video: str, reason: str) -> None:
        self.unread += 1
        if video != self._video:
            self._print(video)
        self._print(f"    cannot be read: {reason}")
        self._write({"video": video, "error": reason})

    def close(self) -> None:
        if self._json:
            self._json.write_text(json.dumps(list(self._by_video()), indent=1))
        if self._jsonl and self._prints:
            self._jsonl.close()

    def _by_video(self) -> Iterator[dict]:
        """Each video once, its windows in a list."""
        found: dict[str, dict] = {}
        for result in self._all:
            video = found.setdefault(result["video"], {"video": result["video"]})
            if "start" in result:
                video.setdefault("windows", []).append({key: value for key, value in result.items() if key != "video"})
            else:
                video |= result
        yield from found.values()

    def _print(self, text: str) -> None:
        if self._prints:
            print(text, flush=True)

    def _print_lines(self, answer: Answer) -> None:
        for name, probability in self.lines(answer):
            self._print(f"    {100 * probability:5.1f} %  {name}")

    def _write(self, result: dict) -> None:
        if self._json:
            self._all.append(result)
        if self._jsonl:
            print(json.dumps(result), file=self._jsonl, flush=True)


if __name__ == "__main__":
    main()
