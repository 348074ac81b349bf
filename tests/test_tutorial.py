"""docs/tutorial.md from its first command to its last, with few videos and few steps."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from i2v.__main__ import COMMANDS, main

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
LINES = re.findall(r"^    ((?:i2v|python) .*)$", PAGE, re.MULTILINE)
SMALLER = {  # what makes a command short, behind the page's own arguments
    "i2v doctor": ["--seconds", "0"],
    "python -m benchmarks.moving_shapes": ["--train", "2", "--val", "2", "--frames", "16"],
    "python -m benchmarks.pretrain_stills": ["--steps", "1", "--stills", "64", "--threads", "1"],
    "i2v train": ["train.max_steps=2", "train.batch_size=4", "data.threads=1", "data.device=cpu"],
}


def run(line):
    """Run a line of the page in this process. Fails where a shell would say that it failed."""
    words = shlex.split(line)
    words += next((more for start, more in SMALLER.items() if line.startswith(start)), [])
    argv, sys.argv = sys.argv, words
    try:
        if words[0] == "i2v":
            main()
        else:
            sys.argv = words[2:]
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, f"{line}: {end.code}"
    finally:
        sys.argv = argv


@pytest.mark.process
def test_every_command_of_the_tutorial(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    said = {}
    for line in LINES:
        run(line)
        said[line] = capsys.readouterr().out
    made = {str(path.relative_to(tmp_path / "runs" / "hour")) for path in (tmp_path / "runs" / "hour").rglob("*")}
    named = set(re.findall(r"runs/hour/([\w./]+\w)", PAGE))
    assert named <= made, "the page names files that are not there"
    assert "counted 16 of 16" in "".join(said.values()) and "nothing was sent" in "".join(said.values())
    program = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    exec(compile(program, "docs/tutorial.md", "exec"), {})
    assert capsys.readouterr().out.count(" %  ") == 3


def test_the_tutorial_shows_the_whole_way():
    shown = {line.split()[1] for line in LINES if line.startswith("i2v")}
    assert {"doctor", "shards", "train", "evaluate", "report", "predict", "export", "push"} == shown
    assert all(name in COMMANDS for name in shown) and len(LINES) >= 12
    for link in re.findall(r"\]\(([\w.]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
