"""Draw docs/architecture.md from the imports: which file stands on which, floor by floor.

python benchmarks/floor_plan.py           # write it
python benchmarks/floor_plan.py --check   # is it up to date?
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file: import from the repository

from benchmarks.pages import write_or_check

PAGE = ROOT / "docs" / "architecture.md"
ROOMS = {
    "shard_tools": "offline: source videos to shards",
    "pipelines": "shards to batches of clips",
    "i2v": "models and the programs that train and use them",
    "benchmarks": "what is measured and drawn",
}
HEAD = """\
<!-- python benchmarks/floor_plan.py -->

# The floor plan

Read it from the bottom: a file uses files of its own room that are on lower floors, and what the arrows between rooms
say; nothing points back up. `tests/test_imports.py` holds the rules, this page is drawn from the imports.
"""


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every file in a room."""
    files = (path.relative_to(ROOT) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the rooms that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            name = name.removeprefix("i2v.") if name.startswith(("i2v.pipelines", "i2v.shard_tools")) else name
            name = name if name in known else name.rpartition(".")[0]
            if name in known:
                found.add(name)
    return found


def floors(uses: dict[str, set[str]]) -> dict[str, int]:
    """Module -> its floor: 0 uses nothing of its room, others are one above the highest that they use."""
    heights: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in heights:
            heights[name] = 0  # a circle, which there should be none of, would end here
            below = [other for other in uses[name] if room_of(other) == room_of(name) and other != name]
            heights[name] = max((height(other) + 1 for other in below), default=0)
        return heights[name]

    for name in uses:
        height(name)
    return heights


def room_of(name: str) -> str:
    return name.split(".")[0]


def page() -> str:
    known = modules()
    uses = {name: imports(path, known) - {name} for name, path in known.items()}
    heights = floors(uses)
    lines = [HEAD, "```mermaid", "graph BT"]
    lines += [f'  {room}["{room}/<br>{what}"]' for room, what in ROOMS.items()]
    arrows = {(room_of(name), room_of(other)) for name, others in uses.items() for other in others}
    lines += [f"  {one} --> {other}" for one, other in sorted(arrows) if one != other]
    lines += ["```"]
    for room, what in ROOMS.items():
        lines += ["", f"## {room}/: {what}", "", "| floor | file | what it is | stands on |", "| ---: | --- | --- | --- |"]
        rows = [name for name in known if room_of(name) == room and summary(known[name])]
        for name in sorted(rows, key=lambda name: (-heights[name], name)):
            own = sorted(short(other) for other in uses[name] if room_of(other) == room)
            elsewhere = sorted(other for other in uses[name] if room_of(other) != room)
            file = known[name].relative_to(room)
            lines.append(f"| {heights[name]} | `{file}` | {summary(known[name])} | {', '.join(own + elsewhere)} |")
    return "\n".join(lines) + "\n"


def short(name: str) -> str:
    return name.partition(".")[2] or name


def summary(path: Path) -> str:
    """The first line of a file's docstring, as a table's cell."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    return text.partition("\n")[0].replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(write_or_check(__doc__, PAGE, page))
