"""Pages that a program draws: write one, or say whether it is up to date."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def write_or_check(about: str | None, path: Path, draw: Callable[[], str]) -> int:
    """The command of a program that draws the page at `path`. Returns the exit code."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is not up to date")
    if parser.parse_args().check:
        return int(not path.exists() or path.read_text() != draw())
    path.write_text(draw())
    return 0
