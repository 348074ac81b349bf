"""A command that the user interrupts ends in a line, and its exit status says so."""

import os
import signal
import subprocess
import sys

import pytest

from i2v.console import as_sentence, refuse_pipe, refuse_place
from tests.processes import ENVIRONMENT, LIMIT, ROOT

WAITS = """
import time
from i2v.console import begin_command
begin_command()
print("begun", flush=True)
time.sleep(600)
"""


@pytest.mark.process
def test_an_interrupt_is_a_line_and_no_traceback():
    command = subprocess.Popen([sys.executable, "-c", WAITS], cwd=ROOT, env=ENVIRONMENT, stdout=-1, stderr=-1, text=True)
    assert command.stdout.readline() == "begun\n"
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=LIMIT)
    assert said == "-c: interrupted\n" and command.returncode == 130


@pytest.mark.process
@pytest.mark.parametrize(
    "program",
    [["-m", "i2v.evaluate"], ["-m", "i2v", "train"], ["shard_tools/make_shards.py"], ["pipelines/preview.py"]],
    ids=" ".join,
)
def test_an_interrupt_while_a_command_starts_is_a_line_too(program, tmp_path):
    """Sent by what it imports first, as it comes in the seconds that torch takes; the library swallows the exception."""
    for name in ("torch", "tqdm", "numpy"):
        (tmp_path / f"{name}.py").write_text(SWALLOWS)
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, *program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 130 and done.stderr.endswith(": interrupted\n") and done.stderr.count("\n") == 1


SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    pass
"""


def test_programs_of_others_keep_their_handler():
    program = "import signal, i2v; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    command = [sys.executable, "-c", start + program]
    assert subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True).stdout == b"True\n"


PRINTS = "from i2v.console import begin_command; begin_command(); print('x' * 100)"


@pytest.mark.process
def test_output_that_cannot_be_written_is_a_line_and_output_that_nobody_wants_is_none():
    command = [sys.executable, "-c", PRINTS]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert not done.stderr


def test_a_pipe_with_a_name_is_refused_and_that_of_a_shell_is_read(tmp_path):
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(OSError, match="it is a pipe, not a file"):
        refuse_pipe(tmp_path / "list.csv")
    reader, writer = os.pipe()
    refuse_pipe(f"/dev/fd/{reader}")
    os.close(reader), os.close(writer)


def test_an_error_of_the_system_says_which_file_and_what_to_do(tmp_path):
    (tmp_path / "a").touch()
    for call in (lambda: (tmp_path / "a" / "b").mkdir(), lambda: tmp_path.open("w"), lambda: (tmp_path / "none").open()):
        with pytest.raises(OSError) as caught:
            call()
        assert str(tmp_path) in as_sentence(caught.value) and ": " in as_sentence(caught.value)
        assert "Errno" not in as_sentence(caught.value)
    assert as_sentence(ValueError("all is said.")) == "all is said."


@pytest.mark.parametrize("place, told", [("none/a.json", "does not exist"), (".", "give the name of a file")])
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(tmp_path, monkeypatch, place, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"--json.*{told}|{told}.*--json"):
        refuse_place("--json", place)
    refuse_place("--json", None), refuse_place("--json", "a.json")
