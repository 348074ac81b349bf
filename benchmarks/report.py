"""Write the tables of the documents from benchmarks/results: python benchmarks/report.py. Nobody types a number.

    python benchmarks/report.py [FILE ...]        # default: README.md and docs/*.md

A table stands between `<!-- name -->` and `<!-- /name -->`; names are the keys of TABLES. Where a result is missing, the
table is a sentence that says how to get it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file: import from the repository

from benchmarks.measure import mean_of, percent, strongest_others

RESULTS = ROOT / "benchmarks" / "results"


def results(pattern: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(pattern))]


def demo_table() -> str:
    rows = []
    for r in sorted(results("demo_*.json"), key=lambda r: (r["method"], r["backbone"], r["overrides"])):
        ordered, shuffled, chance = r["figures"]["top-1"]
        own = [r["backbone"]] * (r["backbone"] != "clip") + [f"`{each}`" for each in r["overrides"]]
        training = f"{r['seconds']['training']:.0f} s on {where(r)}"
        rows.append([", ".join([f"`{r['method']}`", *own]), percent(ordered), percent(shuffled), percent([chance]), training])
    return table(["method", "top-1", "the same, frames in random order", "chance", "training"], rows)


def factors_table() -> str:
    parts = []
    for r in results("factors_*.json"):
        rows = [
            ["both, top-1" if name == "top-1" else name, percent(ordered), percent(shuffled), percent([chance])]
            for name, (ordered, shuffled, chance) in r["figures"].items()
        ]
        made = table([f"`{r['method']}`, {r['videos']} videos", "frames in order", "in random order", "chance"], rows)
        parts.append(f"{made}\n\nTraining took {r['seconds']['training']:.0f} s on {where(r)}.")
    return "\n\n".join(parts)


def mosi_table() -> str:
    parts = []
    for r in results("mosi.json"):
        names = {"fresh": "adapters fresh", "mosi": "adapters from MoSI"}
        rows = []
        for name, runs in r["top1"].items():
            rows.append([names[name], *(percent(epoch) for epoch in zip(*runs))])
        heads = [f"`{r['method']}`, top-1", *(f"epoch {i + 1}" for i in range(len(rows[0]) - 1))]
        open_, masked = (percent(of["motions_top1"][-1:]) for of in (r, r["masked"]))
        parts.append(
            f"{table(heads, rows)}\n\nMean, lowest and highest of {len(r['top1']['fresh'])} seeds; chance is 12.5 %. Before, "
            f"MoSI had gone over the videos {len(r['motions_top1'])} x, nine clips of each, without mask and colour jitter, "
            f"and told {open_} of the motions of the validation's stills; with the authors' mask and jitter it told {masked}, "
            f"where chance is 11.1 %. On {where(r)}."
        )
    return "\n\n".join(parts)


def throughput_table() -> str:
    rows = []
    for r in results("throughput_*.json"):
        rates = [f"{r['clips_per_s'][name]['median']:.1f}" for name in ("loader", "model", "end_to_end")]
        config = r["command"].split("throughput.py ")[1].split(" --json")[0]
        rows.append([f"`{config}`", f"{r['devices']} x {where(r)}", *rates])
    return table(["config", "on", "loader", "model", "end to end, clips/s"], rows)


def loader_table() -> str:
    """Clips per second of every way to store and read; of ours, times the strongest others."""
    parts = []
    for r in results("loader_speed*.json"):
        rows = []
        for name, size in r["bytes"].items():
            cells = [_rate_and_times(r, s, name) for s in r["clips_per_s"]]
            cpu = f"{r['clips_per_cpu_s'][next(iter(r['clips_per_s']))][name]['median']:.0f}"
            rows.append([name, f"{size / r['videos']['videos'] / 1e3:,.0f}", *cells, cpu])
        first = next(iter(r["clips_per_s"]))
        parts.append(
            table(["clips/s", "KB per video", *r["clips_per_s"], f"{first} per CPU second"], rows)
            + f"\n\nOne core of {r['machine']['cpu']}, {r['size']} pixels, {of_what(r)}; median of {r['rounds']} rounds. "
            "In brackets times pyav / the fastest other on the original files / the fastest other on files made from them; "
            f"in {first} these are {' and '.join(strongest_others(r, first)[1:])}."
        )
    return "\n\n".join(parts)


def _rate_and_times(r: dict, sampling: str, name: str) -> str:
    shown, times = f"{r['clips_per_s'][sampling][name]['median']:.1f}", r["times"][sampling].get(name)
    if times is None:
        return shown
    return f"{shown} ({' / '.join(f'{times[other]:.1f}' for other in strongest_others(r, sampling))})"


def overhead_table() -> str:
    """What the loader costs besides decoding, and what a second core gives."""
    parts = []
    for r in results("overhead*.json"):
        rows = [
            [
                f"a constant for every clip, {dtype}",
                f"{of['ms']:.2f}",
                f"{of['asking_ms']:.2f}",
                f"{1e3 / of['asking_ms']:,.0f}",
                *[""] * 4,
            ]
            for dtype, of in r["constant"].items()
        ]
        for name, of in r["decoding"].items():
            one, rate = of["1"], of["1"]["clips_per_s"]
            gains = [f"{of[cores]['clips_per_s']:.1f}, {of['times'][cores]:.2f} times" for cores in ("2", "apart")]
            gains.insert(1, f"{one['waits']:.0f} -> {of['2']['waits']:.0f}")
            costs = [f"{one['ms']:.2f}", f"{one['asking_ms']:.2f}", f"{1e3 / one['asking_ms']:,.0f}"]
            rows.append([f"{name}, decoded", *costs, f"{rate:.1f}", *gains])
        heads = [
            "",
            "ms per clip",
            "of it serial",
            "so at most, clips/s",
            "on one core",
            "on two",
            "waits a clip",
            "two processes",
        ]
        parts.append(table(heads, rows) + f"\n\n{r['machine']['cpu']}, {r['size']} pixels, 8x16, {of_what(r)}.")
    return "\n\n".join(parts)


def memory_table() -> str:
    rows = []
    for r in results("loader_memory*.json"):
        (early, first), (late, last) = r["training"]["after_batches_mb"].items()
        rows.append([f"training, after {int(early):,} and {int(late):,} batches", f"{first:.0f} and {last:.0f}"])
        e = r["evaluation"]
        rows.append([f"evaluation, {e['views']} views of {e['frames']} frames, at most", f"{e['peak_mb']:.0f}"])
        rows.append(["of either, the libraries", f"{r['training']['before_mb']:.0f}"])
    return table(["resident memory of the process", "MB"], rows)


def sharding_table() -> str:
    parts = []
    for r in results("sharding*.json"):
        rows = []
        for codec, of in r["codecs"].items():
            for name, rate in of["videos_per_s"].items():
                share = f"{100 * of['make_shards_of'][name]:.0f}" if name in of["make_shards_of"] else ""
                rows.append([codec, name, f"{rate['median']:.2f}", f"{of['frames_per_s'][name]['median']:,.0f}", share])
        held = list(r["memory"]["after_percent_mb"].values())
        workers = ", ".join(f"{of['median']:.2f} with {n}" for n, of in r["workers"].items())
        parts.append(
            table(["codec", "", "videos/s", "frames/s", "make_shards in % of it"], rows)
            + f"\n\nOne core of {r['machine']['cpu']}, {of_what(r)}; median of {r['rounds']} rounds. make_shards in worker "
            f"processes, videos/s with their start: {workers}. Its parent process holds {held[0]:.0f} MB after a tenth of "
            f"{r['memory']['videos']:,} small videos and {held[-1]:.0f} MB after the last."
        )
    return "\n\n".join(parts)


def predicting_table() -> str:
    parts = []
    for r in results("predicting*.json"):
        rows = [
            [name, f"{rate['median']:.2f} ({rate['min']:.2f} to {rate['max']:.2f})", f"{r['times'][name]:.2f}"]
            for name, rate in r["videos_per_s"].items()
        ]
        note = f" {r['note']}" if r["note"] else ""
        parts.append(
            table(["i2v.predict", "videos/s", "times one at a time"], rows)
            + f"\n\n{where(r)}, {of_what(r)}, a model of size {r['backbone']}; median of {r['rounds']} rounds.{note}"
        )
    return "\n\n".join(parts)


def index_table() -> str:
    parts = []
    for r in results("index*.json"):
        s, b, border = r["shard_set"], r["loader"], r["epoch_border_seconds"]
        rows = [
            ["the index opened", f"{s['seconds']:.2f} s, {s['after_mb'] - s['before_mb']:.0f} MB"],
            ["the loader built", f"{b['seconds']:.2f} s, {b['after_mb'] - b['before_mb']:.0f} MB"],
            ["the first plan of an epoch", f"{border['median']:.2f} s"],
        ]
        rows += [[f"plans per second, {name}", f"{rate['median']:,.0f}"] for name, rate in r["plans_per_s"].items()]
        size = f"{r['clips']:,} clips of {r['frames']:,} frames in {r['shards']:,} shards"
        parts.append(table([size, f"one core of {r['machine']['cpu']}"], rows))
    return "\n\n".join(parts)


def recompute_table() -> str:
    parts = []
    for r in results("recompute*.json"):
        rows = []
        for method, of in r["methods"].items():
            steps = of["steps"]
            cells = [f"{each['mb']:,.0f} MB, {each['seconds']:.1f} s" for each in steps.values()]
            saved = f"{100 * (1 - steps['all']['mb'] / steps['none']['mb']):.0f} %"
            rows.append([f"`{method}`", *cells, saved, "the same" if of["same_gradients"] else "DIFFERENT"])
        heads = ["method", *(f"`{which}`" for which in steps), "saved by `all`", "loss and gradients"]
        parts.append(
            table(heads, rows)
            + f"\n\nPeak memory of a step beyond what was held before it, and its time (one run, a machine shared with other "
            f"work): {r['clips']} clips, the first configuration of each method with ViT-B/16, float32, {where(r)}. It is the "
            "process's resident memory, in which a CPU's allocator holds on to a part of what was freed: autograd itself keeps "
            "only what enters the blocks."
        )
    return "\n\n".join(parts)


def kills_table() -> str:
    parts = []
    for r in results("kills*.json"):
        rows = [
            [str(ranks), str(of["runs"]), *(str(of["kills"][kind]) for kind in r["kinds"]), str(of["equal"])]
            for ranks, of in r["ranks"].items()
        ]
        parts.append(
            table(["processes", "runs", *r["kinds"], "runs equal to the uninterrupted one"], rows) + f"\n\n{r['what']}"
        )
    return "\n\n".join(parts)


def anatomy_table() -> str:
    """What a step does, as it was at first and as it is."""
    if len(before_and_now := results("anatomy_before.json") + results("anatomy.json")) < 2:
        return ""
    before, now = before_and_now
    rows = []
    for config in now["configs"]:
        was, of = before["configs"][config], now["configs"][config]
        pairs = [(was[key], of[key]) for key in ("forward_gmacs", "step_gmacs")]
        for way in ("eager", "compiled"):
            pairs += [(was[way][key], of[way][key]) for key in ("kept_mb", "kernels")]
        rows.append([f"`{config}`", *(f"{a:,.0f} -> {b:,.0f}" for a, b in pairs)])
    heads = ["forward GMACs", "step GMACs", "kept MB, eager", "kernels, eager", "kept MB, compiled", "kernels, compiled"]
    return table(["config", *heads], rows) + f"\n\nGMACs and MB per clip, kernels of a step of {now['clips']} clips."


def roofline_table() -> str:
    """Milliseconds of each kind of kernel of a compiled step on a GPU that is not there: at first, now, and at best."""
    if len(before_and_now := results("anatomy_before.json") + results("anatomy.json")) < 2:
        return ""
    rows, older = [], results("anatomy_torch_*.json")
    for config in before_and_now[1]["configs"]:
        before, now = (result["configs"][config] for result in before_and_now)
        found = {"before": before["compiled"], "now": now["compiled"], "autotuned": now["autotuned"]}
        found |= {f"autotuned, torch {r['torch'].split('+')[0]}": r["configs"][config]["autotuned"] for r in older}
        for name, compiled in found.items():
            parts = compiled["roofline_ms"].values()
            kinds = ("products", "convolutions", "attention", "element-wise")
            sums = [f"{sum(part[kind] for part in parts):.1f}" for kind in kinds]
            rows.append([f"`{config}`", name, *sums, f"{compiled['kernels']:,}", f"{compiled['clips_per_s']:.0f}"])
    r = before_and_now[1]
    rates = f"{r['rates']['products'] / 1e12:.0f} TFLOP/s and {r['rates']['memory'] / 1e12:.2f} TB/s"
    heads = ["config", "", "products ms", "convolutions", "attention", "element-wise", "kernels", "clips/s"]
    where = f"{r['clips']} clips on a paper {r['on_paper']}: {rates}; without the optimizer"
    return table(heads, rows) + f"\n\n{where}; torch {r['torch'].split('+')[0]} where no other is named."


def step_table() -> str:
    parts = []
    for r in results("step*.json"):
        rows = [
            [f"`{method}`", f"{of['float32']['times']:.2f}", f"{of['bf16']['times']:.2f}", f"{of['difference']:.0e}"]
            for method, of in r["methods"].items()
        ]
        kind = "compiled" if r["compile"] else "eager"
        parts.append(
            table(["method", "float32, times as fast", "bf16", "largest difference"], rows)
            + f"\n\n{r['layers']} layers of width {r['width']}, {r['clips']} clips of {r['size']} pixels, {kind}, "
            f"on {where(r)}; median of {r['rounds']} pairs."
        )
    return "\n\n".join(parts)


def curves_table() -> str:
    heads = ["method", "first loss", "float32, last quarter", "moved by rounding once", "moved by bf16"]
    parts = []
    for r in results("curves.json"):
        rows = []
        for method, of in r["methods"].items():
            moved = [mean_of(of["moved"][name], "{:+.3f}") for name in ("rounded", "bf16")]
            rows.append([f"`{method}`", f"{of['first']:.3f}", mean_of(of["last"]), *moved])
        what = f"Mean loss over the last quarter of {r['steps']} steps; means of {r['seeds']} seeds, lowest and highest."
        parts.append(f"{table(heads, rows)}\n\n{what}")
    return "\n\n".join(parts)


def trunks_table() -> str:
    rows, found_all = [], results("trunks.json")
    for family, methods in (found_all[0]["families"] if found_all else {}).items():
        for method, found in methods.items():
            fresh = "" if found["fresh"] is None else f"{found['fresh']:.0e}"
            merged = f"{found['merged']:.0e}" if "merged" in found else ""
            loss = f"{found['first_loss']:.2f} -> {found['last_loss']:.2f}"
            rows.append([family, method, fresh, loss, merged, f"{found['exported']:.0e}", f"{found['gmacs']:.1f}"])
    heads = ["family", "method", "fresh = image model", "loss, five steps", "merged", "exported", "GMACs, 8 frames"]
    return table(heads, rows)


def pairs_table() -> str:
    found = results("trunks.json")
    if not found:
        return ""
    built, refused = found[0]["pairs"]["built"], found[0]["pairs"]["refused"]
    total = sum(built.values()) + sum(one["tags"] for one in refused.values())
    rows = [[name, str(one["tags"]), one["reason"]] for name, one in refused.items()]
    said = f"{sum(built.values())} of {total} pairs of name and tag: {', '.join(built)}.\n\nThe others, and why not:\n\n"
    return said + table(["name", "tags", "why not"], rows)


def convolutions_table() -> str:
    parts = []
    for r in results("convolutions*.json"):
        cells = {
            method: [f"{of[part]['times']:.2f}" for part in ("forward", "backward")] for method, of in r["methods"].items()
        }
        rows = [[f"`{method}`", *times, f"{r['methods'][method]['difference']:.0e}"] for method, times in cells.items()]
        parts.append(
            table(["method", "forward, times as fast", "backward", "largest difference in float64"], rows)
            + f"\n\nBeside one kernel per frame: {r['clips']} clips of {r['size']} pixels, float32, on {where(r)}, "
            f"{r['threads']} threads; least of {r['rounds']} rounds."
        )
    return "\n\n".join(parts)


TABLES = {
    "anatomy": (anatomy_table, "python benchmarks/anatomy.py --json benchmarks/results/anatomy.json"),
    "roofline": (roofline_table, "python benchmarks/anatomy.py --json benchmarks/results/anatomy.json"),
    "step": (step_table, "python benchmarks/step.py --json benchmarks/results/step_cpu.json"),
    "convolutions": (convolutions_table, "python benchmarks/convolutions.py --json benchmarks/results/convolutions.json"),
    "curves": (curves_table, "python benchmarks/curves.py --json benchmarks/results/curves.json"),
    "demo": (demo_table, "python benchmarks/demo.py --out runs/demo --json benchmarks/results/demo_st_adapter.json"),
    "factors": (
        factors_table,
        "python benchmarks/demo.py --out runs/demo --factors --json benchmarks/results/factors_st_adapter.json",
    ),
    "mosi": (mosi_table, "python benchmarks/mosi.py --out runs/demo --json benchmarks/results/mosi.json"),
    "throughput": (
        throughput_table,
        "python benchmarks/throughput.py --preset tiny --json benchmarks/results/throughput_tiny_cpu.json",
    ),
    "loader": (loader_table, "python benchmarks/loader.py --json benchmarks/results/loader_speed.json"),
    "overhead": (overhead_table, "python benchmarks/overhead.py --json benchmarks/results/overhead.json"),
    "memory": (memory_table, "python benchmarks/loader.py --memory --json benchmarks/results/loader_memory.json"),
    "sharding": (sharding_table, "python benchmarks/sharding.py --json benchmarks/results/sharding.json"),
    "predicting": (predicting_table, "python benchmarks/predicting.py --json benchmarks/results/predicting.json"),
    "index": (index_table, "python benchmarks/index.py --json benchmarks/results/index.json"),
    "recompute": (recompute_table, "python benchmarks/recompute.py --json benchmarks/results/recompute.json"),
    "trunks": (trunks_table, "python benchmarks/trunks.py --json benchmarks/results/trunks.json"),
    "pairs": (pairs_table, "python benchmarks/trunks.py --json benchmarks/results/trunks.json"),
    "kills": (kills_table, "python benchmarks/kills.py --json benchmarks/results/kills.json"),
}


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Markdown; nothing if there are no rows."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) if rows else ""


def where(result: dict) -> str:
    machine = result["machine"]
    return machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"


def of_what(result: dict) -> str:
    v = result["videos"]
    return f"{v['videos']} videos of {v['seconds']} s ({v['size']}, {v['fps']} frames per second), made from {v['made_from']}"


def fill(text: str) -> str:
    """A document with the tables between its markers."""
    for name, (make, command) in TABLES.items():
        if f"<!-- {name} -->" in text:
            shown = make() or f"Not measured yet: `{command}`."
            block = f"<!-- {name} -->\n{shown}\n<!-- /{name} -->"
            text, found = re.subn(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _: block, text, flags=re.S)
            if not found:
                raise ValueError(f"<!-- {name} --> has no <!-- /{name} --> after it: add the line.")
    return text


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else documents():
        path.write_text(fill(path.read_text()))
