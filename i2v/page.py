"""Pieces of a report's page: charts as SVG, tables, the frame around them. Plain text in, HTML out; nothing from elsewhere."""

from __future__ import annotations

import json
import math
from html import escape
from pathlib import Path

from i2v.console import as_text

COLOURS = ("#1d4ed8", "#c2410c", "#15803d", "#7c3aed", "#0e7490", "#a16207")  # of the runs, in order
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 420, 230, 52, 18, 26, 8  # of a chart, and what its axes take, in its own units
MOST_POINTS = 400  # of a curve: more cannot be told apart


def text(value: object) -> str:
    """Anything, safe in HTML; what is not text in a name is escaped."""
    return escape(as_text(str(value)))


def percent(share: float | None, digits: int = 1) -> str:
    return "" if share is None or share != share else f"{100 * share:.{digits}f}"


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def line_chart(title: str, curves: list[tuple[int, list[float], list[float]]], unit: str = "", dots: bool = False) -> str:
    """A card with one curve for each (number of the run, x, y); "" if there is nothing to draw."""
    curves = [(run, *_thin(xs, ys)) for run, xs, ys in curves]
    curves = [(run, xs, ys) for run, xs, ys in curves if xs]
    if not curves:
        return ""
    across = ticks(min(min(xs) for _, xs, _ in curves), max(max(xs) for _, xs, _ in curves))
    upward = ticks(min(min(ys) for *_, ys in curves), max(max(ys) for *_, ys in curves))
    if unit.startswith("%"):  # a curve that is flat has room around it, but there is nothing above 100 or below 0
        upward = [tick for tick in upward if 0 <= tick <= 100]
    marks = _axes(across, upward)
    for run, xs, ys in curves:
        points = [(_x(x, across), _y(y, upward)) for x, y in zip(xs, ys)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        marks.append(f'<polyline points="{path}" fill="none" stroke="{colour(run)}" stroke-width="1.6"/>')
        if dots or len(points) == 1:
            marks += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour(run)}"/>' for x, y in points]
    return card(f"{text(title)}{f' <span class=quiet>{text(unit)}</span>' if unit else ''}", svg(marks, title))


def reliability_chart(bins: list[tuple[int, dict]]) -> str:
    """A card with a bar for each bin (i2v.scores.calibration) of one run, or points and lines of several."""
    unit = ticks(0, 1)
    marks = _axes(unit, unit)
    marks.append(
        f'<line x1="{_x(0, unit)}" y1="{_y(0, unit)}" x2="{_x(1, unit)}" y2="{_y(1, unit)}" stroke="#98a2b3" '
        'stroke-dasharray="4 4"/>'
    )
    for run, found in bins:
        pairs = [(c, a) for c, a in zip(found["confidence"], found["accuracy"]) if c is not None]
        largest = max(found["count"]) or 1
        for i, (count, accuracy) in enumerate(zip(found["count"], found["accuracy"])):
            if accuracy is not None and len(bins) == 1:
                left, right = (_x(each / len(found["count"]), unit) for each in (i, i + 1))
                top, opacity = _y(accuracy, unit), 0.25 + 0.6 * count / largest
                marks.append(
                    f'<rect x="{left + 0.5:.1f}" y="{top:.1f}" width="{right - left - 1:.1f}" height="{_y(0, unit) - top:.1f}" '
                    f'fill="{colour(run)}" fill-opacity="{opacity:.2f}"><title>{count} videos</title></rect>'
                )
        points = " ".join(f"{_x(c, unit):.1f},{_y(a, unit):.1f}" for c, a in pairs)
        marks.append(f'<polyline points="{points}" fill="none" stroke="{colour(run)}" stroke-width="1.6"/>')
    return card("accuracy over confidence", svg(marks, "reliability diagram"))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that take in low and high."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-12):
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _thin(xs: list[float], ys: list[float]) -> tuple[list[float], list[float]]:
    """At most MOST_POINTS, each the mean of its neighbours; numbers that are none are left out."""
    pairs = [(x, y) for x, y in zip(xs, ys) if math.isfinite(x) and math.isfinite(y)]
    size = math.ceil(len(pairs) / MOST_POINTS) or 1
    groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    return [g[-1][0] for g in groups], [sum(y for _, y in g) / len(g) for g in groups]


def _x(value: float, across: list[float]) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (value - across[0]) / (across[-1] - across[0])


def _y(value: float, upward: list[float]) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - upward[0]) / (upward[-1] - upward[0])


def _axes(across: list[float], upward: list[float]) -> list[str]:
    marks = []
    for value in upward:
        y = _y(value, upward)
        marks.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#e2e6ec"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" font-size="11" fill="#667085">{value:.4g}</text>')
    for value in across:
        x = _x(value, across)
        marks.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle" font-size="11" fill="#667085">{value:.4g}</text>'
        )
    return marks


def svg(marks: list[str], title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">{"".join(marks)}</svg>'


def card(title: str, content: str) -> str:
    return f'<div class="card"><b>{title}</b>{content}</div>'


def table(heads: list[str], rows: list[list], name: str = "", numbers: tuple[int, ...] = (), attributes: list[str] = ()) -> str:
    """Rows of plain values, or of (value to sort by, HTML). A `name` makes it sortable. numbers: columns that are."""
    kinds = ["n" if i in numbers else "" for i in range(len(heads))]
    sort = ["" if not name else f' data-sort="{kind or "t"}"' for kind in kinds]
    lines = [f"<table{f' id={name}' if name else ''}><thead><tr>"]
    lines += [f'<th class="{kind}"{by}>{text(head)}</th>' for head, kind, by in zip(heads, kinds, sort)]
    lines.append("</tr></thead><tbody>")
    for i, row in enumerate(rows):
        cells = []
        for value, kind in zip(row, kinds):
            by, shown = value if isinstance(value, tuple) else (None, text(value))
            cells.append(f'<td class="{kind}"{"" if by is None else f" data-v={by:.6g}"}>{shown}</td>')
        lines.append(f"<tr{f' {attributes[i]}' if attributes else ''}>{''.join(cells)}</tr>")
    return "".join([*lines, "</tbody></table>"])


def section(name: str, title: str, *parts: str) -> str:
    return f'<section id="{name}"><h2>{text(title)}</h2>{"".join(parts)}</section>'


def page(title: str, sections: list[tuple[str, str, str]], data: dict) -> str:
    """The whole file. sections: (id, title, HTML), empty ones left out. data: for page.js."""
    folder = Path(__file__).parent
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    filled = [each for each in sections if each[2]]
    links = " ".join(f'<a href="#{name}">{text(head)}</a>' for name, head, _ in filled)
    held = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # nothing in it can end the script
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{style}</style></head><body><h1>{text(title)}</h1><nav>{links}</nav>"
        + "".join(section(*each) for each in filled)
        + f'<script type="application/json" id="data">{held}</script><script>{script}</script></body></html>\n'
    )
