"""What benchmarks share: one core, repeated rounds, several runs, resident memory."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def use_one_core() -> None:
    """Keep this process, its threads and its children on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def spread(values: list[float]) -> dict[str, float]:
    """Of the same thing, measured in several rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def median_ratio(values: list[float], others: list[float]) -> float:
    """How many times `others`: the median over rounds, so that what disturbs a whole round cancels."""
    return statistics.median(value / other for value, other in zip(values, others))


def strongest_others(result: dict, sampling: str) -> list[str]:
    """What people do today, and the fastest on the original files and on files made from them."""
    rates = result["clips_per_s"][sampling]
    groups = ([name for name, files in result["others"].items() if files == kind] for kind in ("originals", "made"))
    return list(dict.fromkeys(["pyav", *(max(group, key=lambda name: rates[name]["median"]) for group in groups)]))


def resident_mb() -> float:
    """Memory of this process now, in MB (1e6 bytes)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_resident_mb() -> float:
    """The most memory that this process has had, in MB (1e6 bytes)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e6


def in_fresh_process(function, *arguments):
    """What the function returns, called in a process that has done nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def shown_command(script: str) -> str:
    """The command of this process for a result, without the folder of --videos: it says nothing to anyone else."""
    words = sys.argv[1:]
    hidden = ["FOLDER" if before == "--videos" else word for before, word in zip(["", *words], words)]
    hidden = ["--videos=FOLDER" if word.startswith("--videos=") else word for word in hidden]
    return " ".join(["python", f"benchmarks/{script}", *hidden])


def percent(shares: list[float]) -> str:
    """Of one run, or the mean of several with the lowest and the highest."""
    return mean_of([100 * share for share in shares], "{:.1f}", " %")


def mean_of(values: list[float], form: str = "{:.3f}", unit: str = "") -> str:
    """The same of any values; form: how one of them is written."""
    mean = form.format(sum(values) / len(values)) + unit
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"
