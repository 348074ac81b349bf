"""Write the README's tables from benchmarks/results: python benchmarks/report.py. Nobody types a number."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def results(pattern: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(pattern))]


def demo_table() -> str:
    lines = ["| method | top-1 | the same, frames in random order | chance | training |", "| --- | --- | --- | --- | --- |"]
    for r in results("demo_*.json"):
        lines.append(
            f"| `{r['method']}` | {100 * r['top1']:.1f} % | {100 * r['top1_shuffled']:.1f} % | 12.5 % | "
            f"{r['seconds']['training']:.0f} s on {where(r)} |"
        )
    return "\n".join(lines)


def throughput_table() -> str:
    lines = ["| config | on | loader | model | end to end, clips/s |", "| --- | --- | --- | --- | --- |"]
    for r in results("throughput_*.json"):
        rates = [f"{r['clips_per_s'][name]['median']:.1f}" for name in ("loader", "model", "end_to_end")]
        lines.append(f"| `{r['command'].split('throughput.py ')[1].split(' --json')[0]}` | {r['devices']} x {where(r)} | {' | '.join(rates)} |")
    return "\n".join(lines)


def where(result: dict) -> str:
    machine = result["machine"]
    return machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"


def fill(text: str) -> str:
    """The README with the tables between its markers."""
    for name, table in (("demo", demo_table()), ("throughput", throughput_table())):
        text = re.sub(f"<!-- {name} -->.*<!-- /{name} -->", f"<!-- {name} -->\n{table}\n<!-- /{name} -->", text, flags=re.S)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text()))
