"""What fails around a run: a process, a machine, a rank that hangs, a validation, and the cluster that wants it to end.

Starting processes is what takes time here, so each run shows as much as it can.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest

from i2v.checkpoint import load_checkpoint
from tests.processes import ENVIRONMENT, LIMIT, forked, wait_for
from tests.test_recipes import EVERYTHING
from tests.test_train import ROOT, assert_continues, assert_same, config, result, saved_step, spawn  # noqa: F401  config is a fixture

RECIPE = [*EVERYTHING, "train.save_every=2"]
OURS = str(ROOT / "i2v")  # is in every traceback but the launcher's own
SCRIPT = str(ROOT / "tests" / "failing_train.py")


def torchrun(*options, program, arguments):
    return [sys.executable, "-m", "torch.distributed.run", *map(str, options), program, *map(str, arguments)]


def start(command, **environment):
    """A process, and the lines of its stderr as they come."""
    process = subprocess.Popen(command, env=ENVIRONMENT | environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True)
    reader.start()
    return process, lines, reader


def ended(process, reader):
    code = process.wait(LIMIT)
    reader.join(LIMIT)
    return code


@pytest.fixture
def port():
    """Of this machine, at which nobody listens; those who are told its number may, and nobody else is given it meanwhile."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("localhost", 0))
        yield held.getsockname()[1]


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):  # noqa: F811
    """Two ranks, uninterrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert spawn(config, out, *RECIPE, ranks=2) == 0
    return result(out)


STAND_INS = {  # for the commands of a cluster
    "srun": """for node in 0 1; do "$@" & nodes+=($!); done
               for node in "${nodes[@]}"; do wait "$node" || code=$?; done
               exit "${code:-0}" """,
    "scontrol": "echo localhost",
    "torchrun": """while [ "$1" != -m ]; do options+=("$1"); shift; done
                   exec {python} -m torch.distributed.run "${{options[@]}}" {script} die 1 7 {died} "${{@:3}}" """,
}


@pytest.mark.process
def test_two_nodes_of_which_one_loses_its_process_go_on_by_themselves(config, whole, port, tmp_path):  # noqa: F811
    """The file for Slurm, its two nodes on this machine: a launcher each (torchrun, c10d), restarts allowed. One process is
    killed in the middle of a step; the run ends with the uninterrupted run's bits, and nobody has typed anything."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in STAND_INS.items():
        if name == "torchrun":
            script = script.format(python=sys.executable, script=SCRIPT, died=tmp_path / "died")
        (commands / name).write_text(f"#!/bin/bash\n{script}\n")
        (commands / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "n[0-1]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "1"}
    command = ["bash", str(ROOT / "docs" / "slurm" / "nodes.sbatch"), str(config), f"out={tmp_path / 'run'}", *RECIPE]
    process, lines, reader = start(command, PATH=f"{commands}:{os.environ['PATH']}", PORT=str(port), **slurm)
    code, said = ended(process, reader), "".join(lines)
    assert code == 0, said
    assert (tmp_path / "died").exists() and "continuing after step 6" in said, said
    assert_same(result(tmp_path / "run"), whole)


@pytest.mark.process
def test_a_rank_that_keeps_the_others_waiting_is_named_and_a_signal_saves(config, whole, tmp_path):  # noqa: F811
    """One of two hangs while it reads. The other says so, and who it is; nothing is ended. SIGUSR1 (of Slurm, to the launcher),
    with which it goes on, saves and ends both with 0; and a signal during the start and during an evaluation does as well.
    Continued each time, it is the uninterrupted run."""
    out, hangs = tmp_path / "run", tmp_path / "hangs"
    options = ["--standalone", "--nproc-per-node=2", "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"]
    arguments = ["hang", 1, 3, hangs, "--config", config, f"out={out}", *RECIPE]
    process, lines, reader = start(
        torchrun(*options, program=SCRIPT, arguments=[*arguments, "train.stall_after=1", "train.save_every=100"])
    )
    named = re.compile(r"waited 1 s or longer for process 1 \(pid \d+ on .*\), which reads its next clips")
    wait_for(lambda: hangs.exists() and named.search("".join(lines)) or process.poll() is not None)
    assert process.poll() is None, "".join(lines)
    process.send_signal(signal.SIGUSR1)
    ended(process, reader)
    said = "".join(lines)
    assert "stopped after step 3" in said and OURS not in said, said
    assert saved_step(out) == 3

    for moment, saved in (("start", 3), ("evaluate", 6)):
        done = forked(2, SCRIPT, "signal", moment, "--config", config, f"out={out}", *RECIPE)
        assert done.returncode == 0 and OURS not in done.stderr, done.stderr
        assert saved_step(out) == saved
    assert_continues(config, out, whole, *RECIPE, saved=6, ranks=2)


@pytest.mark.process
def test_a_validation_that_fails_on_one_of_two_ranks_ends_both_with_the_state_saved(config, whole, tmp_path):  # noqa: F811
    """Cleanly: one sentence, no process that waits in vain or is killed. It is made up for, from the copy alone."""
    out, recipe = tmp_path / "run", [*RECIPE, f"train.mirror=file://{tmp_path}/copy"]
    arguments = ["fail", 1, "--config", config, f"out={out}", *recipe]
    process, lines, reader = start(torchrun("--standalone", "--nproc-per-node=2", program=SCRIPT, arguments=arguments))
    code, said = ended(process, reader), "".join(lines)
    assert code != 0 and OURS not in said, said
    assert "i2v.train: the store does not answer." in said, said
    assert "i2v.train: Another process could not read its data. The state of the run is saved" in said, said
    assert saved_step(out) == 6 and load_checkpoint(out / "last.safetensors")[1].progress["validation_due"]
    shutil.rmtree(out)
    assert spawn(config, out, *recipe, ranks=2) == 0
    assert_same(result(out), whole)


ORPHAN = """
import datetime, sys
import i2v.distributed as distributed
import i2v.train as program

distributed.CONNECTING = datetime.timedelta(seconds=1)
program.main()
"""


@pytest.mark.process
def test_a_process_whose_launcher_was_killed_at_the_start_ends_and_touches_nothing(config, port, tmp_path):  # noqa: F811
    gone = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    gone |= {"TORCHELASTIC_RUN_ID": "run", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    command = [sys.executable, "-c", ORPHAN, "--config", str(config), f"out={tmp_path / 'run'}"]
    process, lines, reader = start(command, **gone)
    assert ended(process, reader) == 1 and "another process of this run has ended" in "".join(lines)
    assert not (tmp_path / "run").exists()
