"""What every command owes to people: names that are no text or that a terminal does not know, Ctrl-C, the version."""

from __future__ import annotations

import os
import sys
from importlib import metadata


def begin_command() -> None:
    """What every command begins with: standard output escapes what it cannot show, as standard error does, and Ctrl-C is a
    line instead of a traceback."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.excepthook = _excepthook


def _excepthook(kind, error, traceback) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(f"{os.path.basename(sys.argv[0])}: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def as_text(name: str) -> str:
    """The name with what is not text in it escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def version() -> str:
    """Of this program, as it is installed."""
    try:
        return metadata.version("i2v")
    except metadata.PackageNotFoundError:
        return "not installed"


def aligned(lines: list[list[str]]) -> list[str]:
    """A table's lines, its cells set to the right of their columns."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines]
