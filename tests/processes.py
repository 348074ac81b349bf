"""Programs: called in this process or started in others, and waited for as long as it takes. A limit is for tests that would
hang, not for slow machines."""

import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 600  # seconds
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def on_ranks(ranks: int, *program) -> list[str]:
    """The command that runs a program, `-m` and a module or a file, with its arguments: by torchrun if ranks > 1."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [sys.executable, *launcher, *map(str, program)]


def forked(ranks: int, *program) -> subprocess.CompletedProcess:
    """What on_ranks' command would do, without a launcher and in a second: the processes are forks of one that has imported
    what takes an interpreter ten. Where how a program is started is not what a test is about. The code is that of the first
    rank that did not end with 0."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.imported"])
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    group |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    words = list(map(str, program))
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        started = []
        for rank in range(ranks):
            environment = group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            started.append(context.Process(target=_be, args=(words, environment, out.name, err.name)))
            started[-1].start()
        for process in started:
            process.join(LIMIT)
            assert process.exitcode is not None, "waited in vain"
        code = next((process.exitcode for process in started if process.exitcode), 0)
        return subprocess.CompletedProcess(words, code, out.read().decode(), err.read().decode())


def _be(words: list[str], environment: dict[str, str], out: str, err: str) -> None:
    """Become a program: `-m` and a module, or a file, with its arguments."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.update(ENVIRONMENT | environment)
    os.chdir(ROOT)
    sys.argv[:] = words[1:] if words[0] == "-m" else words
    if words[0] == "-m":
        importlib.import_module(words[1]).main()
    else:
        runpy.run_path(words[0], run_name="__main__")


def call(monkeypatch, program, *arguments):
    """What a program's main returns, in this process, where these are its arguments. program: the module."""
    monkeypatch.setattr(sys, "argv", [program.__file__, *map(str, arguments)])
    return program.main()


def wait_for(condition) -> None:
    """Until condition() is true. Fails after LIMIT."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended (one that nobody has asked for its exit code yet has, too)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
