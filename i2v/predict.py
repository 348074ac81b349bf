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

import os
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from i2v.annotate import annotated
from i2v.console import as_sentence, refuse_place
from i2v.distributed import init_world
from i2v.finder import Finder
from i2v.pipelines import ShardError
from i2v.predictor import Patience, find_videos, predict, watch
from i2v.session import Session, add_flags, command, open_classifier, parse
from i2v.shard_tools.live import STANDARD_INPUT, is_stream
from i2v.shard_tools.pool import WorkerError
from i2v.shard_tools.source_video import RejectedVideo
from i2v.told import Told


def main() -> None:
    parser = command("i2v.predict", __doc__)
    about = "best.safetensors or last.safetensors of a run, or its folder"
    parser.add_argument("--checkpoint", required=True, type=Path, help=about)
    about = "files, folders that are searched for them, or URLs of both; or one stream: - , /dev/video0, rtsp://..."
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help=about)
    parser.add_argument("--list", action="store_true", help="read more of them from standard input, one a line")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name")
    add_flags(parser, "--window", "--hop", window="an answer for every so many seconds of a video; or frames: 64f")
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
        session = open_classifier(args)
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


def listed(lines: Iterable[bytes]) -> list[str]:
    """The places that a list names, one a line; empty lines are none."""
    return [os.fsdecode(line.rstrip(b"\r\n")) for line in lines if line.strip()]


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


if __name__ == "__main__":
    main()
