"""A command that the user interrupts ends in a line, and its exit status says so."""

import signal
import subprocess
import sys

import pytest

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
    assert said == "-c: interrupted\n" and command.returncode == -signal.SIGINT
