"""Sweeps: every combination once, in a folder of its own, and none that fails stops another."""

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml

from i2v import sweep
from i2v.checkpoint import load_checkpoint
from i2v.config import load_config
from i2v.distributed import World
from i2v.train import run
from tests import processes
from tests.experiments import ST_ADAPTER, write_experiment
from tests.processes import ENVIRONMENT, LIMIT, ROOT, wait_for

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def config(shapes, tmp_path_factory):
    """A YAML file of a small run: 24 videos, batches of 8, 6 steps."""
    return write_experiment(tmp_path_factory.mktemp("sweep"), shapes, ST_ADAPTER, {"epochs": 2, "lr": 1e-3})


@pytest.fixture
def call(config, monkeypatch):
    """Sweep in this process: call(arguments) -> the names of the runs that were trained. `call.broken` fail."""

    def train(each, path, launcher, passing):
        started.append(each.name)
        if each.name in called.broken:
            return "exit code 1: there is no such file."
        run(load_config(path, each.overrides), CPU)
        return ""

    def called(*arguments):
        started.clear()
        processes.call(monkeypatch, sweep, "--config", config, *arguments)
        return list(started)

    started = called.started = []
    called.broken = ()
    monkeypatch.setattr(sweep, "train", train)
    return called


def rows(out):
    with open(out / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "text, parts",
    [
        ("1e-4,3e-4", ["1e-4", "3e-4"]),
        ("[0.9,0.95],[0.9, 0.999]", ["[0.9,0.95]", "[0.9, 0.999]"]),
        ("{type: linear, dropout: 0},{type: [a,{b: 1}]}", ["{type: linear, dropout: 0}", "{type: [a,{b: 1}]}"]),
        ("'a,b',\"c,'d\"", ["'a,b'", '"c,\'d"']),
        ("['[',1],2", ["['[',1]", "2"]),
        ("/bob's/a,/bob's/b", ["/bob's/a", "/bob's/b"]),
        ("one", ["one"]),
        ("1,,2", ["1", "", "2"]),
    ],
)
def test_lists_are_split_at_their_own_commas(text, parts):
    assert sweep.split_values(text) == parts


def test_every_combination_once_in_a_readable_folder(config, tmp_path):
    found = sweep.members(
        str(config),
        ["train.lr=1e-4,3e-4", "model.options.kernel_size=[3,1,1],[3,3,3]", "train.seed=7", f"out='{tmp_path}/a: b'"],
    )
    assert [each.name for each in found] == [
        f"lr={lr},kernel_size={size}" for lr in ("1e-4", "3e-4") for size in ("3-1-1", "3-3-3")
    ]
    for each in found:
        assert each.folder == tmp_path / "a: b" / each.name and each.config.train.seed == 7
        assert float(each.values["train.lr"]) == each.config.train.lr
        assert yaml.safe_load(each.values["model.options.kernel_size"]) == each.config.model.options["kernel_size"]
    both = sweep.members(str(config), ["train.seed=0,1", "model.options.adapter_width=8,16", "clips.seed=0,1"])
    assert both[0].name == "train.seed=0,adapter_width=8,clips.seed=0"  # last parts that two keys share tell nothing


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["train.lrr=1,2"], r"unknown key train\.lrr: did you mean lr\?"),
        (["model.options.adapter_with=1,2"], "adapter_with"),
        (["train.lr=1e-4,-1"], "it must be"),
        (["train.lr="], "empty value"),
        (["train.lr=1e-4,"], "empty value"),
        (["train.lr"], "no list of values"),
        (["train.lr=1e-4"], "Nothing varies"),
        (["train.lr=1e-4,2e-4", "train.lr=3e-4"], r"train\.lr is given twice"),
        (["train.lr=1e-4,2e-4", "out=a,b"], "out has several values"),
        (["train.lr=1e-4,1e-4"], "Two runs would have the folder lr=1e-4"),
        (["data.train=a/b,a b"], "Two runs would have the folder train=a-b"),
        (["train.lr=1e-4,0.0001"], r"lr=1e-4 and lr=0\.0001 are the same run"),
        (["train.betas=[0.9,0.95],[0.9"], "not valid YAML"),
        (["train.lr=1e-4,2e-4", "--task", "2"], "the sweep has 2 runs, 0 to 1"),
        (["train.lr=1e-4,2e-4", "--launch", "no-such-program -n 8"], "--launch is"),
        (["train.lr=1e-4,2e-4", "--launch", ""], "--launch is"),
    ],
)
def test_what_is_wrong_is_one_sentence_before_anything_runs(call, overrides, said):
    with pytest.raises(SystemExit, match=said) as ended:
        call(*overrides)
    assert "\n" not in str(ended.value) and not call.started


def test_a_sweep_is_its_runs_and_a_table_of_them(call, config, tmp_path, capsys):
    out = tmp_path / "swept"
    arguments = ("train.lr=1e-3,1e-2", "train.epochs=1,2", f"out={out}")
    call.broken = ("lr=1e-3,epochs=2",)
    with pytest.raises(SystemExit, match="1 of 4 runs failed"):
        call(*arguments)
    assert len(call.started) == 4 and "lr=1e-3,epochs=2 failed (exit code 1: there is no such file.)" in capsys.readouterr().err

    call.broken = ()
    assert call(*arguments) == ["lr=1e-3,epochs=2"]  # what is finished is not run again
    assert call(*arguments) == []
    found = rows(out)
    assert [row["folder"] for row in found] == [f"lr={lr},epochs={epochs}" for lr in ("1e-3", "1e-2") for epochs in (1, 2)]
    for row in found:
        log = [json.loads(line) for line in (out / row["folder"] / "log.jsonl").read_text().splitlines()]
        scores = [record["top1"] for record in log if "top1" in record]
        assert len(scores) == int(row["train.epochs"]) and row["finished"] == "yes"
        assert (float(row["best top-1"]), float(row["last top-1"])) == (max(scores), scores[-1])
        assert int(row["steps"]) == 3 * int(row["train.epochs"]) and float(row["hours"]) > 0
        alone = tmp_path / "alone" / row["folder"]
        run(load_config(config, [f"train.lr={row['train.lr']}", f"train.epochs={row['train.epochs']}", f"out={alone}"]), CPU)
        here, there = (load_checkpoint(each / "last.safetensors")[0] for each in (out / row["folder"], alone))
        assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()[-6:]]
    assert [line[:2] for line in shown if line and line[0] in ("1e-3", "1e-2")] == [
        [r["train.lr"], r["train.epochs"]] for r in found
    ]
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG") and not list(out.glob(".*"))


def test_a_job_array_runs_each_once(call, tmp_path):
    arguments = ("train.lr=1e-3,1e-2", "train.max_steps=2", f"out={tmp_path}")
    assert call(*arguments, "--task", 1) == ["lr=1e-2"]
    assert [(row["finished"], row["steps"]) for row in rows(tmp_path)] == [("no", ""), ("yes", "2")]
    assert call(*arguments, "--task", 0) == ["lr=1e-3"] and call(*arguments, "--task", 0) == []
    assert [row["finished"] for row in rows(tmp_path)] == ["yes", "yes"]


def test_a_run_is_finished_when_its_last_validation_is_and_for_its_own_settings_only(config, call, tmp_path, monkeypatch):
    arguments = [f"out={tmp_path}", "train.lr=1e-3,1e-2"]
    call(*arguments)
    first = sweep.members(str(config), arguments)[0]
    assert first.is_finished()
    assert not sweep.members(str(config), [*arguments, "train.max_steps=4"])[0].is_finished()
    run(load_config(config, [*first.overrides, "train.epochs=2", "train.max_steps=6"]), CPU)  # no step is left: as it was
    assert first.is_finished()

    class Killed(Exception):
        pass

    def killed(*_):
        raise Killed

    second = sweep.members(str(config), [f"out={tmp_path}/b", "train.eval_every=100", *arguments[1:]])[0]
    monkeypatch.setattr("i2v.train.evaluate", killed)
    with pytest.raises(Killed):
        run(load_config(config, second.overrides), CPU)
    assert load_checkpoint(second.folder / "last.safetensors")[1].progress["step"] == 6 and not second.is_finished()
    monkeypatch.undo()
    run(load_config(config, second.overrides), CPU)
    assert second.is_finished()


@pytest.mark.process
def test_processes_that_fail_are_named_and_the_others_run(config, tmp_path):
    weights = yaml.safe_load(config.read_text())["model"]["weights"]
    arguments = [f"model.weights={tmp_path}/none.safetensors,{weights}", "train.max_steps=2", f"out={tmp_path}/out"]
    program = [sys.executable, "-m", "i2v.sweep", "--config", config, *arguments]
    done = subprocess.run(program, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    named, last = done.stderr.splitlines()[-2:]
    assert "none.safetensors failed (exit code 1: " in named and "none.safetensors" in named.partition(": ")[2]
    assert last.startswith("i2v.sweep: 1 of 2 runs failed")
    assert [row["finished"] for row in rows(tmp_path / "out")] == ["no", "yes"]


@pytest.mark.process
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_the_run_in_progress_and_no_other_begins(config, tmp_path, number, code):
    """Ctrl-C comes to all processes of the terminal at once."""
    arguments = ["train.lr=1e-3,1e-2", "train.epochs=100000", "train.eval_every=100000", f"out={tmp_path}"]
    program = [sys.executable, "-m", "i2v.sweep", "--config", config, *arguments]
    log = tmp_path / "lr=1e-3" / "log.jsonl"
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "start_new_session": True}
    with subprocess.Popen(program, env=ENVIRONMENT, cwd=ROOT, **quiet) as sweeping:
        try:
            wait_for(lambda: log.exists() and "loss" in log.read_text() or sweeping.poll() is not None)
            os.killpg(sweeping.pid, number) if number == signal.SIGINT else sweeping.send_signal(number)
            shown = sweeping.communicate(timeout=LIMIT)[0]
        finally:
            sweeping.kill()
    assert sweeping.returncode == code and shown.splitlines()[-1] == "stopped: the same command goes on"
    assert load_checkpoint(log.parent / "last.safetensors")[1].progress["step"] >= 2
    assert not (tmp_path / "lr=1e-2").exists() and [row["finished"] for row in rows(tmp_path)] == ["no", "no"]
