"""Makings of shards that end early, and what they leave in their folder."""

import hashlib
from pathlib import Path

from i2v.shard_tools.output import Output


class Stop(Exception):
    """A making ends here, as if it had been killed."""


def stop_after(count):
    """on_progress of a making that ends when so many videos are done."""

    def on_progress(done, total, rejected):
        if done >= count:
            raise Stop

    return on_progress


def stop_publishing(monkeypatch, name, after):
    """A making ends before a file whose name begins so is seen by others, or after it is."""
    publish = Output.publish

    def publish_or_stop(self, path, *arguments, **options):
        if after or not path.name.startswith(name):
            publish(self, path, *arguments, **options)
        if path.name.startswith(name):
            raise Stop

    monkeypatch.setattr(Output, "publish", publish_or_stop)


def contents(folder: Path) -> dict[str, str]:
    """The names of the files in a folder, and their checksums."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
