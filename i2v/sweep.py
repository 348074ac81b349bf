"""Trainings over lists of values, each in a folder of its own: one table of what they came to, one sheet of their curves.

    python -m i2v.sweep --config base.yaml train.lr=1e-4,3e-4 model.options.adapter_width=192,384 out=runs/widths
    python -m i2v.sweep --config base.yaml train.lr=1e-4,3e-4 --launch "torchrun --nproc-per-node 8"
    sbatch --array 0-1 --wrap 'python -m i2v.sweep --config base.yaml train.lr=1e-4,3e-4 --task $SLURM_ARRAY_TASK_ID'

Every value of a list is combined with every value of the others; commas in brackets or quotes are part of a value. The runs
come one after another, as processes of i2v.train, in out/lr=1e-4,adapter_width=192 and so on. The same command goes on: what
is finished is not run again, what was stopped continues. A run that fails stops no other; it is named at the end, with exit
code 1. SIGTERM, SIGUSR1 and Ctrl-C end the run in progress and then the sweep, with i2v.train's codes: 0, Ctrl-C 130.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from i2v.atomic import replacing
from i2v.checkpoint import load_checkpoint
from i2v.config import Config, ConfigError, load_config, to_dict
from i2v.console import aligned, as_sentence
from i2v.curves import draw_sheet, read_log, validated
from i2v.model import complete_config
from i2v.runs import Run
from i2v.session import command, parse
from i2v.stop import SIGNALS

SHOWN = {"top1": "top-1", "map": "mAP"}  # figures of a log: what the table calls them
AGAIN = "the same command goes on"


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str  # of its folder
    values: dict[str, str]  # what varies, as it was written
    overrides: list[str]  # for i2v.train
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.out)

    def settings(self) -> dict:
        return comparable(to_dict(self.config))

    def is_finished(self) -> bool:
        """Whether nothing is left to do of this very run. A checkpoint that cannot be read is the run's own to report."""
        try:
            meta = load_checkpoint(self.folder / "last.safetensors")[1]
        except ValueError:
            return False
        over = meta.progress.get("finished") and not meta.progress["validation_due"]
        wanted, there = self.settings(), comparable(meta.config)
        wanted["train"]["best"] = wanted["train"]["best"] or there["train"]["best"]  # what a run takes from its data
        wanted["model"]["head"] = {"factors": there["model"]["head"].get("factors")} | wanted["model"]["head"]
        there["model"]["head"] = {"factors": None} | there["model"]["head"]
        return bool(over) and there == wanted


def comparable(config: dict) -> dict:
    """A configuration as a file holds it, without where its run is kept; epochs that follow from train.steps are none of its
    own."""
    config = json.loads(json.dumps(config | {"out": None}))  # tuples are lists in a file
    config["train"]["mirror"] = None
    if config["train"]["steps"]:
        config["train"]["epochs"] = None
    return config


# ---- which runs ----------------------------------------------------------------------------------------------------------


def members(config: str, overrides: list[str]) -> list[Member]:
    """All runs, checked. Raises ConfigError, or what is wrong with a model's options: ValueError, TypeError."""
    lists = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r} is no list of values: write section.key=value,value, as in train.lr=1e-4,3e-4.")
        if key in lists:
            raise ConfigError(f"{key} is given twice: write all its values in one list, {key}=value,value.")
        lists[key] = split_values(text)
        if "" in lists[key]:
            raise ConfigError(f"{override!r} has an empty value: write one before and after every comma, null for none.")
    if len(lists.get("out", [])) > 1:
        raise ConfigError("out has several values: give the one folder in which each run gets its own.")
    varied = [key for key, values in lists.items() if len(values) > 1]
    if not varied:
        raise ConfigError("Nothing varies: give several values to a key, such as train.lr=1e-4,3e-4.")
    out = load_config(config, [f"{key}={values[0]}" for key, values in lists.items()]).out
    found = [member(config, dict(zip(lists, chosen)), varied, Path(out)) for chosen in itertools.product(*lists.values())]
    return all_different(found)


def member(config: str, values: dict[str, str], varied: list[str], out: Path) -> Member:
    short = short_names(varied)
    name = ",".join(f"{short[key]}={readable(values[key])}" for key in varied)
    folder = json.dumps(str(out / name), ensure_ascii=False)  # quoted: the value of an override is YAML
    overrides = [f"{key}={value}" for key, value in values.items() if key != "out"] + [f"out={folder}"]
    checked = load_config(config, overrides)
    if checked.train.mirror:  # each its own there, too
        overrides.append(f"train.mirror={json.dumps(f'{checked.train.mirror}/{name}', ensure_ascii=False)}")
        checked = load_config(config, overrides)
    model = checked.model
    complete_config(model.method, model.backbone, model.num_frames, 1, model.head, **model.options)
    return Member(name, {key: values[key] for key in varied}, overrides, checked)


def all_different(found: list[Member]) -> list[Member]:
    """The same runs. Raises ConfigError if two have one folder or are one training."""
    names, settings = {}, {}
    for each in found:
        same = json.dumps(each.settings(), sort_keys=True)
        if each.name in names:
            raise ConfigError(f"Two runs would have the folder {each.name}: give values that differ in letters or digits.")
        if same in settings:
            raise ConfigError(f"{settings[same]} and {each.name} are the same run: remove one of the values.")
        names[each.name], settings[same] = each, each.name
    return found


def split_values(text: str) -> list[str]:
    """At the commas that are in no bracket and no quotes: "[1,2],[3]" -> ["[1,2]", "[3]"]."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        before = parts[-1].rstrip()[-1:]
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and before in ("", *"[{,:"):  # an apostrophe in a word quotes nothing
            quote = letter
        else:
            depth = max(0, depth + (letter in "[{") - (letter in "]}"))
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def short_names(keys: list[str]) -> dict[str, str]:
    """key -> its last part, if no other key has the same."""
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends)}


def readable(value: str) -> str:
    """A value as part of a folder's name: "[3, 1, 1]" -> "3-1-1"."""
    return re.sub(r"[^\w.+-]+", "-", value.strip("[]{}'\" "))


# ---- running them --------------------------------------------------------------------------------------------------------


class Passing:
    """A signal to the sweep is one to the run that it waits for, and no other starts after it."""

    def __init__(self):
        self.wanted, self._child = 0, None  # which signal came
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def to(self, child: subprocess.Popen) -> None:
        self._child = child
        if self.wanted:  # it came while the process was made
            child.terminate()

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _):
        self.wanted = number
        if self._child is not None and number != signal.SIGINT:  # Ctrl-C comes to both from the terminal
            self._child.send_signal(number)


def train(each: Member, config: str, launcher: list[str], passing: Passing) -> str:
    """Run it to its end; in a few words why it failed, "" if it did not."""
    program = [*launcher, "-m", "i2v.train", "--config", config, *each.overrides]
    child = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="backslashreplace")
    passing.to(child)
    last = said = ""
    for line in child.stderr:
        print(line, end="", file=sys.stderr, flush=True)
        last = line.strip() or last
        said = last if last.startswith("i2v.train: ") else said  # what a launcher adds to it is longer and tells less
    code = child.wait()
    how = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
    return f"{how}: {said.removeprefix('i2v.train: ') or last}" if code else ""


def run_all(found: list[Member], task: int | None, config: str, launcher: list[str]) -> tuple[dict[str, str], int]:
    """(name of each run that failed: why, the signal that told the sweep to stop, or 0)"""
    failed, passing = {}, Passing()
    try:
        for number, each in enumerate(found):
            if passing.wanted or task not in (None, number):
                continue
            begin = f"run {number} ({number + 1} of {len(found)}): {each.name}"
            if each.is_finished():
                print(f"{begin}: finished before", file=sys.stderr, flush=True)
                continue
            print(begin, file=sys.stderr, flush=True)
            why = train(each, config, launcher, passing)
            if why and not passing.wanted:
                failed[each.name] = why
            write_results(found)
        return failed, passing.wanted
    finally:
        passing.close()


# ---- what came of them ---------------------------------------------------------------------------------------------------


def result(each: Member, log: list[dict], figure: str) -> dict:
    """A row of the table; accuracies as shares, of the weights' average where that is better. Empty: not known yet."""
    scores = validated(log, figure)
    return {
        **each.values,
        f"best {SHOWN[figure]}": max(scores) if scores else None,
        f"last {SHOWN[figure]}": scores[-1] if scores else None,
        "steps": log[-1]["step"] if log else None,
        "hours": Run(each.name, log=log).hours(),
        "finished": "yes" if each.is_finished() else "no",
        "folder": each.name,
    }


def write_results(found: list[Member]) -> list[dict]:
    """sweep.csv and sweep.png beside the runs' folders, of all that is there; the table's rows."""
    out, logs = found[0].folder.parent, [read_log(each.folder / "log.jsonl") for each in found]
    figure = "map" if any("map" in record for log in logs for record in log) else "top1"
    rows = [result(each, log, figure) for each, log in zip(found, logs)]
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "sweep.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with replacing(out / "sweep.png") as temporary:
        draw_sheet({each.name: log for each, log in zip(found, logs)}, temporary, str(out))
    return rows


def as_lines(rows: list[dict]) -> list[str]:
    """The table for people, with accuracies in percent; the folder's name says no more than the values."""
    heads = [name for name in rows[0] if name != "folder"]
    shares = {f"{which} {name}": lambda x: f"{100 * x:.2f} %" for which in ("best", "last") for name in SHOWN.values()}
    shown = shares | {"hours": "{:.2f}".format}
    cells = [["" if row[name] is None else shown.get(name, str)(row[name]) for name in heads] for row in rows]
    return aligned([heads, *cells])


def main() -> None:
    parser = command("i2v.sweep", __doc__)
    parser.add_argument("--config", required=True, help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="+", metavar="section.key=value,...", help="values to combine, or one for all runs")
    parser.add_argument("--task", type=int, metavar="K", help="of a job array: only run K, counted from 0")
    parser.add_argument(
        "--launch", default=sys.executable, help='what i2v.train is started by, as "torchrun --nproc-per-node 8"'
    )
    args = parse(parser)
    try:
        launcher = shlex.split(args.launch)
        if not launcher or shutil.which(launcher[0]) is None:
            raise ValueError(f"--launch is {args.launch!r}: it must begin with a program that is there, such as torchrun.")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError('torchrun started several sweeps: start one, with --launch "torchrun ..." for its runs.')
        found = members(args.config, args.overrides)
        if args.task is not None and not 0 <= args.task < len(found):
            raise ValueError(f"--task is {args.task}: the sweep has {len(found)} runs, 0 to {len(found) - 1}.")
        failed, stopped = run_all(found, args.task, args.config, launcher)
        rows = write_results(found)
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"i2v.sweep: {as_sentence(error)}")
    print("\n".join(as_lines(rows)))
    print(f"{found[0].folder.parent} has sweep.csv, sweep.png and a folder for each run")
    if stopped:
        print(f"stopped: {AGAIN}")
    for name, why in failed.items():
        print(f"{name} failed ({why})", file=sys.stderr)
    if failed:
        sys.exit(f"i2v.sweep: {len(failed)} of {len(found)} runs failed: mend what they say, and {AGAIN} with them.")
    if stopped == signal.SIGINT:
        sys.exit(130)


if __name__ == "__main__":
    main()
