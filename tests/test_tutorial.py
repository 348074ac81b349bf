"""docs/tutorial.md from its first command to its last, with few videos and few steps; and the first screen of docs/data.md."""

import importlib
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
DATA = (ROOT / "docs" / "data.md").read_text().partition("\n## ")[0]
SMALLER = {  # what makes a command short, behind the page's own arguments
    "i2v doctor": ["--seconds", "0"],
    "python -m benchmarks.moving_shapes": ["--train", "2", "--val", "2", "--frames", "16"],
    "python -m benchmarks.pretrain_stills": ["--steps", "1", "--stills", "64", "--threads", "1"],
    "i2v train --config demo/tadaconvnext": [  # on the page's own videos: the reader's are not here
        *("train.max_steps=2", "train.batch_size=4", "data.threads=1", "data.device=cpu"),
        *("data.train=runs/hour/train", "data.val=runs/hour/val", "out=runs/hour/scratch"),
    ],
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
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for program in programs:
        exec(compile(program, "docs/tutorial.md", "exec"), {})
    answers = re.findall(r"^([\d.]+) %  (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(programs) == 2 and len(answers) == 6 and "i2v" not in re.findall(r"import (\w+)", programs[1])
    with_i2v, without = ({name: float(percent) for percent, name in part} for part in (answers[:3], answers[3:]))
    assert all(abs(with_i2v[name] - without[name]) < 1 for name in with_i2v.keys() & without) and with_i2v.keys() & without


@pytest.mark.process
def test_the_first_screen_of_the_data_page(tmp_path, monkeypatch, capsys):
    """From videos to batches, as it is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run("python -m benchmarks.moving_shapes videos --train 1 --val 1 --frames 8")
    lines = re.findall(r"^    python (\w+)/(\w+)\.py ([^#\n]*)", DATA, re.MULTILINE)
    assert [name for _, name, _ in lines] == ["make_shards", "make_shards", "describe", "preview", "verify"]
    for folder, name, arguments in lines:
        assert importlib.import_module(f"i2v.{folder}.{name}").main(shlex.split(arguments)) == 0, name
    said = capsys.readouterr().out
    assert "data.train=shards/train data.val=shards/val" in said  # what is next after the second split
    assert "all is well" in said and (tmp_path / "clips.png").exists()
    exec(compile(re.search(r"```python\n(.*?)```", DATA, re.DOTALL)[1], "docs/data.md", "exec"), {})
    assert "torch.Size([2, 3, 8, 224, 224]) tensor([" in capsys.readouterr().out


def test_the_tutorial_shows_the_whole_way():
    shown = {line.split()[1] for line in LINES if line.startswith("i2v")}
    assert {"doctor", "shards", "train", "evaluate", "report", "predict", "export", "push"} == shown
    assert all(name in COMMANDS for name in shown) and len(LINES) >= 12
    for link in re.findall(r"\]\(([\w.]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
