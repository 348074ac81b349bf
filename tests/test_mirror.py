"""A run's copy in a store: continued from it equals uninterrupted, and no failure of the store reaches the run."""

import shutil
import threading

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

import i2v.train as program
from i2v import sweep
from i2v.checkpoint import load_checkpoint
from i2v.mirror import WRITER, Mirror
from i2v.pipelines import ShardError, store
from i2v.pipelines.store import Retry
from i2v.runlog import RunLog
from tests.experiments import ST_ADAPTER, write_experiment
from tests.processes import LIMIT, wait_for
from tests.test_train import train


class Away(LocalFileSystem):
    """A store on this disk of which so many uploads, or all requests, fail."""

    protocol = "away"
    cachable = False
    failures, gone = 0, False

    def put_file(self, path, to, **options):
        if Away.failures > 0 or Away.gone:
            Away.failures -= 1
            raise ConnectionError("the store does not answer")
        super().put_file(path, to, **options)

    def ls(self, *arguments, **options):
        if Away.gone:
            raise ConnectionError("the store does not answer")
        return super().ls(*arguments, **options)


@pytest.fixture(autouse=True)
def stores(monkeypatch):
    fsspec.register_implementation("away", Away, clobber=True)
    monkeypatch.setattr(store, "RETRY", Retry(2, 0.01, LIMIT))
    Away.failures, Away.gone = 0, False
    MemoryFileSystem.store.clear()
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture(scope="module")
def config(shapes, tmp_path_factory):
    """A YAML file of a small run with everything that has a state: 24 videos, batches of 8, 9 steps."""
    train = {"epochs": 3, "lr": 1e-2, "save_every": 2, "ema": 0.9}
    return write_experiment(tmp_path_factory.mktemp("mirror"), shapes, ST_ADAPTER, train)


class Killed(Exception):
    pass


def train_and_kill(config, out, *overrides):
    """Lose the run in its second validation, after step 6 of 9."""
    evaluate, calls = program.evaluate, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:  # each validation is one of the weights and one of their average
            raise Killed
        return evaluate(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(program, "evaluate", killed)
        train(config, out, *overrides)


def same(one, other):
    return one[1] == other[1] and one[0].keys() == other[0].keys() and all(map(torch.equal, one[0].values(), other[0].values()))


def same_files(out, copy):
    names = {path.name for path in out.iterdir() if path.suffix in (".safetensors", ".jsonl", ".yaml", ".csv")}
    assert {"last.safetensors", "best.safetensors", "log.jsonl", "config.yaml"} <= names
    return names | {WRITER} == {path.name for path in copy.iterdir()} and all(
        (out / name).read_bytes() == (copy / name).read_bytes() for name in names
    )


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    return train(config, tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_continued_from_the_mirror_equals_uninterrupted(config, uninterrupted, tmp_path, kind):
    mirror = f"train.mirror={kind}://{tmp_path}/copy/run"
    train_and_kill(config, tmp_path / "first", mirror)
    assert load_checkpoint(tmp_path / "first" / "last.safetensors")[1].progress["step"] == 6
    shutil.rmtree(tmp_path / "first")
    assert same(train(config, tmp_path / "second", mirror), uninterrupted)
    assert kind == "memory" or same_files(tmp_path / "second", tmp_path / "copy" / "run")
    log = (tmp_path / "second" / "log.jsonl").read_text()
    shutil.rmtree(tmp_path / "second")
    train(config, tmp_path / "third", mirror)  # no step is left: its log is the copy's
    assert (tmp_path / "third" / "log.jsonl").read_text() == log
    assert not list((tmp_path / "third").glob("*.tmp"))


def test_a_store_that_fails_costs_a_line_and_what_it_lacks_comes_later(config, uninterrupted, tmp_path, monkeypatch):
    """Of a run that, before its first validation, waits until the first save has failed: others come after that."""
    lines, say, evaluate = [], RunLog.say, program.evaluate

    def said():
        return [line for line in lines if line.startswith("WARNING") and "mirror" in line]

    def later(*arguments):
        wait_for(said)
        return evaluate(*arguments)

    monkeypatch.setattr(RunLog, "say", lambda log, line: (say(log, line), lines.append(line)))
    monkeypatch.setattr(program, "evaluate", later)
    Away.failures = 3  # of two tries each: the first save and a part of the second
    assert same(train(config, tmp_path / "run", f"train.mirror=away://{tmp_path}/copy"), uninterrupted)
    (line,) = said()
    assert "cannot be written, tried 2 times" in line and "the run goes on" in line
    assert same_files(tmp_path / "run", tmp_path / "copy")


def test_a_store_that_stays_away_stops_nothing_but_a_start_that_may_lose_its_state(config, uninterrupted, tmp_path, capfd):
    mirror = f"train.mirror=away://{tmp_path}/copy"
    train_and_kill(config, tmp_path / "run", mirror)
    before = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    Away.gone = True
    assert same(train(config, tmp_path / "run", mirror), uninterrupted)
    assert "train.mirror lacks the newest state" in capfd.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    with pytest.raises(ShardError, match="cannot be listed, tried 2 times .* The run may have a state in train.mirror"):
        train(config, tmp_path / "empty", mirror)
    assert not (tmp_path / "empty" / "log.jsonl").exists()


def test_what_is_sent_is_one_moment_of_the_run(tmp_path, monkeypatch):
    """While a state is on its way the run saves others: the log is never older than the state beside it."""
    out, reached, go_on = tmp_path / "run", threading.Event(), threading.Event()
    out.mkdir()
    put = store.Store.put

    def slow(self, path, name):
        reached.set()
        assert go_on.wait(LIMIT)
        sent.append(name)
        put(self, path, name)

    def write(number):
        with open(out / "log.jsonl", "a") as file:
            file.write(f"{number}\n")
        (out / "new").write_text(str(number))
        (out / "new").replace(out / "last.safetensors")

    monkeypatch.setattr(store.Store, "put", slow)
    copy, said, sent = tmp_path / "copy", [], []
    mirror = Mirror(out, f"file://{copy}", said.append)
    write(1)
    mirror.copy()
    assert reached.wait(LIMIT)
    write(2)
    go_on.set()
    mirror.close()
    assert ((copy / "log.jsonl").read_text(), (copy / "last.safetensors").read_text()) == ("1\n", "1") and not said
    assert {path.name for path in out.iterdir()} == {"log.jsonl", "last.safetensors"}

    reached.clear(), go_on.clear()
    mirror = Mirror(out, f"file://{copy}", said.append)
    mirror.copy()
    assert reached.wait(LIMIT)
    for number in (3, 4):  # of what waits only the newest is sent
        write(number)
        mirror.copy()
    go_on.set()
    mirror.close()
    assert ((copy / "log.jsonl").read_text(), (copy / "last.safetensors").read_text()) == ("1\n2\n3\n4\n", "4")
    assert [name for name in sent if name != WRITER] == 3 * ["log.jsonl", "last.safetensors"]
    assert {path.name for path in out.iterdir()} == {"log.jsonl", "last.safetensors"}


def test_a_run_that_is_told_to_stop_does_not_wait_for_a_store_that_hangs(tmp_path, monkeypatch):
    (tmp_path / "log.jsonl").touch()
    go_on, said = threading.Event(), []
    monkeypatch.setattr(store.Store, "put", lambda *_: go_on.wait(LIMIT))
    mirror = Mirror(tmp_path, "memory://copy", said.append)
    mirror.copy()
    mirror.close(0.01)
    assert len(said) == 1 and "takes too long" in said[0]
    go_on.set()
    mirror.close()


def test_each_run_of_a_sweep_has_its_own(config):
    found = sweep.members(str(config), ["train.lr=1e-3,1e-2", "train.mirror=memory://copy"])
    assert [each.config.train.mirror for each in found] == ["memory://copy/lr=1e-3", "memory://copy/lr=1e-2"]


def test_of_two_runs_with_one_mirror_the_first_ends_to_copy_and_says_so(tmp_path):
    said, (copy, *folders) = [], [tmp_path / name for name in ("copy", "first", "second")]
    first, second = (Mirror(folder, copy.as_uri(), said.append) for folder in folders)
    for folder in folders:
        folder.mkdir()
        (folder / "log.jsonl").write_text(folder.name)
    first.copy()
    wait_for(lambda: (copy / "log.jsonl").exists())
    second.copy()
    second.close()
    (folders[0] / "log.jsonl").write_text("first, later")
    first.copy()
    first.close()
    assert (copy / "log.jsonl").read_text() == "second" and len(said) == 1 and "another run copies to" in said[0]
