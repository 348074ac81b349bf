"""What i2v.predict tells: results as they come, printed and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from i2v.predictor import named, said
from i2v.shard_tools.live import is_stream
from i2v.watch import Answer, Answers


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
