"""One page that shows what came of one or several runs; it opens from a file and needs nothing else.

    python -m i2v.evaluate --checkpoint runs/mine/best.safetensors --scores runs/mine/scores.npz
    python -m i2v.evaluate --checkpoint runs/mine/best.safetensors --scores runs/mine/shuffled.npz shuffle_frames=true
    python -m i2v.report runs/mine --out report.html
    python -m i2v.report runs/mine runs/other --out report.html      # beside one another, the first is compared with the others

What was trained on what, curves, the accuracy of every class, the confusion matrix (click a cell to see its videos), the
calibration, the most confident errors as strips of frames, the control with shuffled frames, the quarantine. What needs
scores is made of RUN/*.npz; an .npz can be given in place of a run, such as that of the zero-shot baseline. Frames are read
from the shards that were scored, if they are here.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from i2v.atomic import write_whole
from i2v.console import refuse_place
from i2v.curves import validated
from i2v.filmstrips import for_script
from i2v.page import colour, line_chart, page, percent, reliability_chart, table, text
from i2v.pipelines import ShardError
from i2v.runs import Run, read_run
from i2v.scores import VideoScores, calibration, paired_bootstrap
from i2v.session import command, parse
from i2v.trunks import shown

STRIPS = 60  # wrong clips, the most confident first, of which frames are shown
PAIRS, CHANGES = 15, 12  # rows of "most often taken for", and of classes that changed


# ---- sections: HTML of one thing each, "" if the runs do not have it ---------------------------------------------------


def summary(runs: list[Run]) -> str:
    """What each run is and came to."""
    cards = []
    for number, run in enumerate(runs):
        lines = [f'<b><span class="key" style="background:{colour(number)}"></span>{text(run.name)}</b>']
        if run.scores:
            lines += in_figures(run.scores)
        else:
            for figure, said in (("top1", "top-1"), ("map", "mAP")):
                if best := validated(run.log, figure):
                    lines.append(f'<div class="big">{percent(max(best), 2)} %</div><div>best {said} while training</div>')
        cards.append(f'<div class="card">{"".join(lines)}</div>')
    told = [(run.name, note) for run in runs for note in dict.fromkeys(run.notes)]
    notes = "".join(f'<p class="quiet">{text(name)}: {text(note)}</p>' for name, note in told)
    return f'<div class="cards">{"".join(cards)}</div>{table_of_facts(runs)}{notes}'


def in_figures(videos: VideoScores) -> list[str]:
    """The totals, as lines of a card."""
    found, scores = videos.summary(), videos.scores()
    counted = f"on {scores.counted} of {scores.expected} videos"
    if videos.several:
        return [f'<div class="big">{percent(found["map"], 2)} %</div><div>mean average precision {counted}</div>']
    low, high = found["top1_interval"]
    lines = [
        f'<div class="big">{percent(scores.top1, 2)} %</div><div>top-1 {counted}, ',
        f"95 % interval {percent(low)} to {percent(high)} %</div>",
        f"<div>top-5 {percent(scores.top5, 2)} %, mean class {percent(found['class_mean'], 2)} %</div>",
    ]
    for name, each in scores.factors.items():
        lines.append(f"<div>{text(name)} top-1 {percent(each.top1, 2)} %, top-5 {percent(each.top5, 2)} %</div>")
    return lines


def table_of_facts(runs: list[Run]) -> str:
    columns = [facts(run) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    return f'<div class="wide">{table(["", *(run.name for run in runs)], rows)}</div>'


def facts(run: Run) -> dict[str, str]:
    """What was trained on what, and how long."""
    found, config = {}, run.config
    model, train = config.get("model") or {}, config.get("train") or {}
    if model:
        found["model"] = f"{model.get('method')} on {shown(model.get('backbone'))}, {model.get('num_frames')} frames"
        found["weights"] = str(model.get("weights"))
    for split, manifest in run.manifests.items():
        about = f"{manifest['clips']:,} videos of {len(manifest['classes'])} classes, {manifest['codec']}"
        found[f"{split} data"] = f"{about}, {manifest['rejected']} rejected ({manifest['where']})"
    if train:
        found["recipe"] = f"{train.get('epochs'):g} epochs, batch {train.get('batch_size')}, learning rate {train.get('lr'):g}"
        found["command"] = f"python -m i2v.train --config {config.get('out')}/config.yaml"
    steps = [record for record in run.log if "loss" in record]
    if steps:
        found["trained"] = f"{steps[-1]['step']:,} steps, {steps[-1]['samples']:,} clips, {steps[-1]['epoch']:.1f} epochs"
        found["time in training"] = f"{run.hours():.2f} hours on each device"
        if (together := run.hours(of_devices=True)) is not None:
            found["time in training"] += f", {together:.2f} device-hours"
            found["machine"] = ", then ".join(dict.fromkeys(f"{r['devices']} x {r['machine']}" for r in steps))
    if run.scores:
        how = run.scores.how
        found["scored"] = f"{how.get('model')} after step {how.get('step')}, {how.get('views')}, {how.get('precision')}"
    return found


def curves(runs: list[Run]) -> str:
    """Over the samples seen, so that runs with other batches can be compared."""

    def of(key: str, factor: float = 1) -> list:
        found = []
        for number, run in enumerate(runs):
            records = [record for record in run.log if isinstance(record.get(key), (int, float))]
            found.append((number, [r["epoch"] for r in records], [factor * r[key] for r in records]))
        return found

    charts = [
        line_chart("loss", of("loss"), "over epochs"),
        line_chart("top-1", of("top1", 100), "%, on data.val", dots=True),
        line_chart("top-5", of("top5", 100), "%, on data.val", dots=True),
        line_chart("mean average precision", of("map", 100), "%, on data.val", dots=True),
        line_chart("learning rate", of("lr")),
        line_chart("clips/s", of("clips_per_s")),
        line_chart("waiting for data", of("data_wait", 100), "% of the time"),
    ]
    return f'<div class="cards">{"".join(charts)}</div>' if any(charts) else ""


def alike(runs: list[Run]) -> list[Run]:
    """Those with scores over the classes of the first that has scores."""
    scored = [run for run in runs if run.scores]
    return [run for run in scored if about_classes(run.scores) == about_classes(scored[0].scores)]


def about_classes(videos: VideoScores) -> tuple:
    return videos.classes, videos.factors, videos.several


def groups(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs that are scored alike; where their classes are combinations, for every factor the runs by its classes."""
    scored = alike(runs)
    factors = scored[0].scores.factors if scored else {}
    if not factors:
        return {"": scored} if scored else {}
    return {
        factor: [replace(run, name=f"{run.name}: {factor}", scores=run.scores.of_factor(factor)) for run in scored]
        for factor in factors
    }


def classes(runs: list[Run]) -> str:
    """Accuracy of every class, sortable and searchable; a table for each factor."""
    found = enumerate(groups(runs).items())
    return "".join(table_of_classes(factor, scored, f"per-class-{i}" if i else "per-class") for i, (factor, scored) in found)


def table_of_classes(factor: str, scored: list[Run], ident: str) -> str:
    names, results = scored[0].scores.classes, [run.scores.scores() for run in scored]
    figure = "AP" if scored[0].scores.several else "top-1"
    heads = [factor or "class", "videos", *(f"{figure}, {run.name}" if len(scored) > 1 else figure for run in scored)]
    changes, confusion = len(scored) == 2, results[0].confusion
    heads += ["change"] * changes + ["most often taken for"] * (confusion is not None)
    accuracies = [result.per_class().tolist() for result in results]
    videos = results[0].videos if confusion is None else confusion.sum(1)
    rows = []
    for i, name in enumerate(names):
        shown = [(each[i], percent(each[i])) for each in accuracies]
        change = [signed(accuracies[1][i] - accuracies[0][i])] if changes else []
        taken = []
        if confusion is not None:
            wrong = confusion[i].clone()
            wrong[i] = 0
            taken = [f"{names[int(wrong.argmax())]} ({int(wrong.max())})" if wrong.max() else ""]
        rows.append([name, int(videos[i]), *shown, *change, *taken])
    search = f'<input type="search" data-table="{ident}" placeholder="find a class" aria-label="find a class">'
    numbers = tuple(range(1, 2 + len(scored) + changes))
    return f'{search}<div class="tall">{table(heads, rows, ident, numbers)}</div>'


def signed(change: float) -> tuple[float, str]:
    """A change of accuracy, in points, as a cell."""
    if change != change:
        return change, ""
    kind = "better" if change > 0 else "worse" if change < 0 else "quiet"
    return change, f'<span class="{kind}">{100 * change:+.1f}</span>'


def one_class(runs: list[Run]) -> list[Run]:
    """Runs with scores whose videos have one class each, in the order in which page.js has them."""
    return [run for scored in groups(runs).values() for run in scored if not run.scores.several]


def confusion(runs: list[Run]) -> str:
    """The matrix, which page.js draws, and its worst pairs by name."""
    scored = one_class(runs)
    if not scored:
        return ""
    choice = ""
    if len(scored) > 1:
        options = "".join(f"<option>{text(run.name)}</option>" for run in scored)
        choice = f'<select id="run" aria-label="run">{options}</select>'
    pairs = "".join(worst_pairs(number, run, len(scored) > 1) for number, run in enumerate(scored))
    return (
        "<p>Rows are what videos show, columns what the model took them for; the stronger, the more of the row. "
        f'A click on a cell shows its videos. <span id="hint" class="quiet"></span></p>{choice}<div id="matrix"></div>'
        f'<div id="clips"></div><h3>Confused most often</h3>{pairs}'
    )


def worst_pairs(number: int, run: Run, named: bool) -> str:
    matrix, names = run.scores.scores().confusion, run.scores.classes
    wrong = matrix.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:PAIRS].tolist()
    cells = [(i // len(names), i % len(names)) for i in order if wrong.flatten()[i]]
    rows = [[names[i], names[j], int(wrong[i, j]), percent(float(wrong[i, j] / matrix[i].sum()))] for i, j in cells]
    if not rows:
        return "<p>None.</p>"
    marks = [f'data-pair="{number} {i} {j}" style="cursor:pointer"' for i, j in cells]
    title = f"<h3>{text(run.name)}</h3>" if named else ""
    made = table(["shows", "taken for", "videos", "% of the class"], rows, numbers=(2, 3), attributes=marks)
    return f'{title}<div class="wide">{made}</div>'


def reliability(runs: list[Run]) -> str:
    """How far the model's confidence can be believed."""
    bins = [(number, calibration(run.scores)) for number, run in enumerate(runs) if run.scores and not run.scores.several]
    if not bins:
        return ""
    rows = [[runs[number].name, percent(found["ece"], 2)] for number, found in bins]
    note = "<p>On the dashed line a model that is 70 % sure is right in 70 % of the cases.</p>"
    made = table(["", "expected calibration error, %"], rows, numbers=(1,))
    return f'{note}<div class="cards">{reliability_chart(bins)}<div class="card">{made}</div></div>'


def control(runs: list[Run]) -> str:
    """What is lost without the order of frames was learnt from time."""
    rows = []
    for run in runs:
        if run.scores and run.shuffled:
            both, figure = (run.scores.scores(), run.shuffled.scores()), "map" if run.scores.several else "top1"
            rows.append(lost(run.name, figure, *(each.summary() for each in both), len(run.scores.classes)))
            for name, classes in run.scores.factors.items():
                found = (each.factors[name].summary() for each in both)
                rows.append(lost(f"{run.name}: {name}", "top1", *found, len(classes)))
    several = any(run.scores.several for run in runs if run.scores)
    heads = ["", f"{'mAP' if several else 'top-1'}, frames in order", "in random order", "lost", "chance (%)"]
    return f'<div class="wide">{table(heads, rows, numbers=(1, 2, 3, 4))}</div>' if rows else ""


def lost(name: str, figure: str, ordered: dict, shuffled: dict, classes: int) -> list[str]:
    values = [ordered[figure], shuffled[figure], ordered[figure] - shuffled[figure]]
    return [name, *map(percent, values), percent(1 / classes) if figure == "top1" else ""]


def compare(runs: list[Run]) -> str:
    """The first run against each of the others, on the same videos, with one class each."""
    scored = [run for run in runs if run.scores and not run.scores.several]
    return "".join(compare_two(scored[0], other) for other in scored[1:])


def compare_two(first: Run, other: Run) -> str:
    a, b = first.scores, other.scores
    title = f"<h3>{text(first.name)} → {text(other.name)}</h3>"
    at = {key: i for i, key in enumerate(b.keys)}
    pairs = [(i, at[key]) for i, key in enumerate(a.keys) if key in at]
    mine, theirs = (torch.tensor([pair[side] for pair in pairs], dtype=torch.int64) for side in (0, 1))
    if a.classes != b.classes or not pairs or not torch.equal(a.labels[mine], b.labels[theirs]):
        return f"{title}<p>They were not scored on the same videos, so they cannot be compared.</p>"
    before, after, labels = a.correct[mine], b.correct[theirs], a.labels[mine]
    found = paired_bootstrap(before, after)
    kind = "more than chance" if found["p"] < 0.05 else "no more than chance may give"
    changes = torch.zeros(len(a.classes)).index_add_(0, labels, after.float() - before.float())
    counts = torch.bincount(labels, minlength=len(a.classes))
    order = changes.argsort(stable=True).tolist()
    tables = []
    for head, chosen in (
        ("got better", [i for i in reversed(order) if changes[i] > 0]),
        ("got worse", [i for i in order if changes[i] < 0]),
    ):
        rows = [
            [a.classes[i], signed(float(changes[i] / counts[i])), f"{int(changes[i]):+d} of {int(counts[i])}"] for i in chosen
        ]
        made = table(["class", "points", "videos"], rows[:CHANGES], numbers=(1, 2)) if rows else "<p>None.</p>"
        tables.append(f'<div class="card"><b>{len(rows)} classes {head}</b><div class="wide">{made}</div></div>')
    p = "less than 0.001" if found["p"] < 0.001 else f"{found['p']:.3f}"
    return (
        f"{title}<p><b>{100 * found['difference']:+.2f} points</b> on {len(pairs)} videos, 95 % interval "
        f"{100 * found['low']:+.2f} to {100 * found['high']:+.2f}, p {p}: {kind} (paired bootstrap over videos). "
        f"{int((after & ~before).sum())} videos are right only in the second, {int((before & ~after).sum())} only in the "
        "first.</p>"
        f'<div class="cards">{"".join(tables)}</div>'
    )


def wrong(runs: list[Run]) -> str:
    if not one_class(runs):
        return ""
    return '<p>Wrong, and sure of it: the place to look for labels that are wrong, too.</p><div id="wrong-clips"></div>'


def quarantine(runs: list[Run]) -> str:
    if not any(run.log or run.config for run in runs):
        return ""
    rows = [[run.name, row.get("split"), row.get("key"), row.get("reason")] for run in runs for row in run.quarantine]
    if not rows:
        return "<p>No clip was bad.</p>"
    return f'<div class="tall">{table(["run", "split", "clip", "reason"], rows, "bad-clips")}</div>'


def configuration(runs: list[Run]) -> str:
    shown = [(run.name, yaml.safe_dump(run.config, sort_keys=False)) for run in runs if run.config]
    return "".join(f"<details><summary>{text(name)}</summary><pre>{text(content)}</pre></details>" for name, content in shown)


# ---- the page ---------------------------------------------------------------------------------------------------------


def make_report(runs: list[Run], data: str | None = None, strips: int = STRIPS) -> str:
    """The page, as text."""
    held = for_script(one_class(runs), data, strips)  # first: it finds out what cannot be shown
    sections = [
        ("summary", "Summary", summary(runs)),
        ("compare", "Better or worse", compare(runs)),
        ("curves", "Curves", curves(runs)),
        ("classes", "Classes", classes(runs)),
        ("confusion", "Confusion", confusion(runs)),
        ("calibration", "Calibration", reliability(runs)),
        ("wrong", "Wrong with most confidence", wrong(runs)),
        ("control", "Without the order of frames", control(runs)),
        ("quarantine", "Quarantine", quarantine(runs)),
        ("configuration", "Configuration", configuration(runs)),
    ]
    return page(", ".join(run.name for run in runs), sections, held)


def main() -> None:
    parser = command("i2v.report", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that i2v.train wrote, or .npz of scores")
    parser.add_argument("--out", type=Path, required=True, help="the .html file to write")
    parser.add_argument("--data", help="shards that were scored, if they are not where they were")
    parser.add_argument("--strips", type=int, default=STRIPS, help="errors of which frames are shown (default: %(default)s)")
    args = parse(parser)
    try:
        refuse_place("--out", args.out)
        if args.strips < 0:
            raise ValueError(f"--strips is {args.strips}: it must be at least 0.")
        runs = [read_run(path) for path in args.runs]
        content = make_report(runs, args.data, args.strips)
        write_whole(args.out, content)
    except OSError as error:
        sys.exit(f"i2v.report: {error.filename or args.out} cannot be read or written ({error.strerror or error}).")
    except (ValueError, ShardError) as error:
        sys.exit(f"i2v.report: {error}")
    if not any(run.scores for run in runs):
        print("note: no run has scores, so there are curves only: i2v.evaluate --scores RUN/scores.npz makes them")
    print(f"wrote {args.out}, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
