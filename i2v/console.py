"""Names that others chose, on their way to people: a file's name need not be text, a terminal need not know every letter."""

from __future__ import annotations

import sys
from importlib import metadata


def print_any_name() -> None:
    """Let standard output escape what it cannot show, as standard error does. Every command begins with it."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def as_text(name: str) -> str:
    """The name with what is not text in it escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def version() -> str:
    """Of this program, as it is installed."""
    try:
        return metadata.version("i2v")
    except metadata.PackageNotFoundError:
        return "not installed"
