"""Whoever makes the shards, wherever they go and whatever breaks on the way: the same bytes."""

import functools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from i2v.pipelines import store
from i2v.pipelines.shards import ShardSet
from i2v.pipelines.store import Retry
from i2v.shard_tools import pool
from i2v.shard_tools.dataset import encode_shards, make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.make_shards import main
from i2v.shard_tools.output import MAKING, Output, OutputError
from i2v.shard_tools.sources import load_sources
from i2v.shard_tools.writer import part_name
from tests.making import Stop, contents, stop_after
from tests.processes import LIMIT
from tests.videos import noise, write_video

REPOSITORY = Path(__file__).resolve().parents[1]
OPTIONS = ["--short-side", "48", "--shard-clips", "3", "--workers", "1"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Ten good videos and two bad ones, in two classes."""
    root = tmp_path_factory.mktemp("source")
    for index in range(10):
        write_video(root / ["climb", "run"][index % 2] / f"{index}.mp4", noise(4 + index, seed=index))
    (root / "climb" / "empty.mp4").touch()
    (root / "run" / "text.mp4").write_text("no video\n" * 100)
    return root


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Four shards of it, made in one go in this process."""
    return build(source, tmp_path_factory.mktemp("whole") / "out")


def make(source, out, **arguments):
    videos, classes = load_sources(source)
    return make_shards(videos, classes, out, EncodeSettings(short_side=48), **{"shard_clips": 3, **arguments})


def build(source, out, **arguments):
    make(source, out, **arguments)
    return out


# ---- job arrays


@pytest.mark.parametrize("tasks", [1, 2, 3, 7])
def test_a_job_array_in_any_order_makes_the_same(tasks, source, whole, tmp_path):
    for index in np.random.default_rng(tasks).permutation(tasks)[:-1] if tasks > 1 else []:
        manifest = make(source, tmp_path / "out", task=(int(index), tasks))
        if manifest is not None:  # the tasks left have no shards
            break
    for index in range(tasks):  # the last one, and all of them again
        manifest = make(source, tmp_path / "out", task=(index, tasks))
    assert manifest["clips"] == 10
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("seed", range(6))
def test_tasks_that_crash_and_are_submitted_again_in_other_numbers(seed, source, whole, tmp_path):
    rng = np.random.default_rng(seed)
    for _ in range(6):
        tasks = int(rng.integers(1, 5))
        try:
            on_progress = stop_after(int(rng.integers(1, 9)))
            make(source, tmp_path / "out", task=(int(rng.integers(tasks)), tasks), on_progress=on_progress)
        except Stop:
            pass
    assert make(source, tmp_path / "out")["clips"] == 10
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.process
def test_tasks_that_run_at_the_same_time(source, whole, tmp_path):
    def submit(index):
        line = [sys.executable, "shard_tools/make_shards.py", source, "--out", tmp_path / "out", *OPTIONS]
        line += ["--task-index", index, "--num-tasks", 3]
        return subprocess.Popen(list(map(str, line)), cwd=REPOSITORY, stdout=-1, stderr=-1, text=True)

    tasks = [submit(index) for index in range(3)]
    said = [task.communicate() for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0, 0], said
    assert any("10 clips of 12 videos" in text for text, _ in said)
    assert all("10 clips" in text or "the task that ends last joins" in text for text, _ in said)
    assert contents(tmp_path / "out") == contents(whole)


def test_a_task_that_missed_what_others_did_leaves_it_alone(source, whole, tmp_path):
    """Between its look at the output and its first shard, others made that shard, or finished everything."""
    out = tmp_path / "out"
    with pytest.raises(Stop):
        make(source, out, on_progress=stop_after(7))
    videos, _ = load_sources(source)
    counts = []
    job = {"of": "another"}, functools.partial(pool.encode_videos, settings=EncodeSettings(short_side=48))
    before = contents(out)
    encode_shards(Output(out), [(0, videos[:3]), (1, videos[3:6])], *job, lambda *counted: counts.append(counted))
    assert counts == [(3, 0), (3, 0)] and contents(out) == before
    make(source, out)
    encode_shards(Output(out), [(0, videos[:3])], *job, lambda *counted: None)
    assert contents(out) == contents(whole)


def test_a_damaged_part_says_what_to_do(source, whole, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Stop):
        make(source, out, on_progress=stop_after(7))
    part = out / part_name(1)
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(OutputError, match="shard-000001.part is damaged: delete it"):
        make(source, out)
    part.unlink()
    assert contents(build(source, out)) == contents(whole)


def test_a_part_of_other_settings_is_not_joined(source, whole, tmp_path):
    """Its folder was given another making.json, as two commands that begin at once may leave it."""
    out, other = tmp_path / "out", tmp_path / "other"
    for folder, seed in ((out, 0), (other, 1)):
        with pytest.raises(Stop):
            make(source, folder, seed=seed, on_progress=stop_after(7))
    for name in ("shard-000001.tar", "shard-000001.part"):
        shutil.copy(other / name, out / name)
    with pytest.raises(OutputError, match="shard-000001.part is of a shard made with other options or videos: delete it"):
        make(source, out)
    (out / part_name(1)).unlink()
    assert contents(build(source, out)) == contents(whole)


def test_another_command_that_begins_at_the_same_time(source, tmp_path, monkeypatch):
    """It saw no making.json either, and wrote its own after ours."""
    publish = Output.publish

    def both(self, path, name=None, keep=False):
        publish(self, path, name, keep)
        if name == MAKING:
            theirs = json.loads((self.folder / name).read_text()) | {"seed": 7}
            (self.folder / name).write_text(json.dumps(theirs))

    monkeypatch.setattr(Output, "publish", both)
    with pytest.raises(OutputError, match="another command makes something in .* with seed 7, this command says 0"):
        make(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MAKING]


def test_a_folder_that_another_command_took_is_not_finished_by_this_one(source, tmp_path):
    out = tmp_path / "out"

    def take(done, total, rejected):
        if done == 12:
            (out / MAKING).write_text("{}")

    with pytest.raises(OutputError, match="another command took .* while this one was making shards there"):
        make(source, out, on_progress=take)
    assert not (out / "manifest.json").exists() and (out / MAKING).read_text() == "{}"


def stop_itself(connection, settings, tells):
    """A worker that a signal ends at its first video."""
    connection.send(None)
    connection.recv()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(settings, signal.SIG_DFL)
    os.kill(os.getpid(), settings)
    time.sleep(60)


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_worker_that_is_asked_to_stop_says_nothing_about_its_video(number, monkeypatch):
    monkeypatch.setattr(pool, "_work", stop_itself)
    with pytest.raises(RuntimeError, match=rf"a worker process was stopped \(signal {int(number)}\)"):
        list(pool.encode_videos(["a.mp4"], number, workers=1))


@pytest.mark.process
def test_a_signal_to_all_processes_does_not_reach_the_workers(source):
    paths = sorted(map(str, source.glob("*/?.mp4")))
    outcomes, before = pool.encode_videos(paths, EncodeSettings(short_side=48), workers=1), multiprocessing.active_children()
    clips = [next(outcomes)]
    (child,) = set(multiprocessing.active_children()) - set(before)
    for number in pool.STOPS:
        os.kill(child.pid, number)
    clips += outcomes
    assert len(clips) == 10 and all(clip.frames for clip in clips)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--task-index", "1"], "both or neither"),
        (["--task-index", "3", "--num-tasks", "3"], "--task-index must be from 0 to --num-tasks - 1, not 3 of 3"),
        (["--task-index", "0", "--num-tasks", "2", "--append", "--retry"], "does not go with --retry"),
        (["--shard-clips", "0"], "--shard-clips must be at least 1"),
        (["--out", "nowhere://bucket"], "nowhere://bucket cannot be opened: Protocol not known"),
    ],
)
def test_mistakes(arguments, sentence, source, tmp_path, capsys):
    try:
        code = main([str(source), "--out", str(tmp_path / "out"), *arguments])
    except SystemExit as exit:
        code = exit.code
    assert code == 2 and sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- output that is not a folder


class Elsewhere(LocalFileSystem):
    """A store that is no object store: what is being uploaded can be seen, and it may fail."""

    protocol = "elsewhere"
    cachable = False
    failures = losses = 0

    def put_file(self, path, to, **options):
        if Elsewhere.losses > 0:
            Elsewhere.losses -= 1
            Path(to).write_bytes(Path(path).read_bytes()[:100])
            return
        if Elsewhere.failures > 0:
            Elsewhere.failures -= 1
            Path(to).write_bytes(Path(path).read_bytes()[:100])
            raise ConnectionError("the line is cut")
        assert to.endswith(".upload")
        super().put_file(path, to, **options)


@pytest.fixture(autouse=True)
def stores(monkeypatch):
    fsspec.register_implementation("elsewhere", Elsewhere, clobber=True)
    monkeypatch.setattr(store, "RETRY", Retry(tries=3, wait=0.0, timeout=LIMIT))
    monkeypatch.setattr(Elsewhere, "failures", 0)
    monkeypatch.setattr(Elsewhere, "losses", 0)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def fetch(url: str, folder: Path) -> Path:
    fs, path = fsspec.core.url_to_fs(url)
    folder.mkdir()
    for entry in fs.ls(path, detail=True):
        (folder / entry["name"].rsplit("/", 1)[-1]).write_bytes(fs.cat_file(entry["name"]))
    return folder


@pytest.mark.parametrize("protocol", ["memory", "elsewhere", "file"])
def test_a_url_gets_the_same_as_a_folder(protocol, source, whole, tmp_path):
    url, staging = f"{protocol}://{tmp_path}/store/a b", tmp_path / "staging"
    for index in (1, 0):
        manifest = make(source, url, staging=staging, task=(index, 2))
    assert manifest["clips"] == 10
    assert contents(fetch(url, tmp_path / "fetched")) == contents(whole)
    assert [path for path in staging.rglob("*") if path.is_file()] == []
    assert make(source, url, staging=staging) == manifest


@pytest.mark.process
def test_the_command_with_a_url(source, whole, tmp_path, capsys):
    arguments = [str(source), "--out", "memory://bucket/x", "--staging", str(tmp_path / "staging"), *OPTIONS]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "10 clips of 12 videos" in text and "memory://bucket/x/rejected.csv" in text and "the file is empty" in text
    assert main(arguments) == 0
    assert "memory://bucket/x is complete already" in capsys.readouterr().out
    assert contents(fetch("memory://bucket/x", tmp_path / "fetched")) == contents(whole)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_url_after_interruptions(elsewhere, seed, source, whole, tmp_path):
    """elsewhere: it goes on on another machine, which has nothing but the store."""
    rng, url = np.random.default_rng(seed), f"elsewhere://{tmp_path}/store"
    for attempt in range(4):
        staging = tmp_path / f"staging{attempt * elsewhere}"
        try:
            make(source, url, staging=staging, on_progress=stop_after(int(rng.integers(1, 13))))
        except Stop:
            pass
    make(source, url, staging=tmp_path / "staging0")
    assert contents(fetch(url, tmp_path / "fetched")) == contents(whole)


@pytest.mark.parametrize("fault", ["failures", "losses"])  # with an error, and without one
def test_a_store_that_fails_now_and_then_is_asked_again(fault, source, whole, tmp_path):
    setattr(Elsewhere, fault, 2)
    make(source, f"elsewhere://{tmp_path}/store", staging=tmp_path / "staging")
    assert contents(fetch(f"elsewhere://{tmp_path}/store", tmp_path / "fetched")) == contents(whole)


@pytest.mark.process
def test_a_store_that_stays_away_is_one_sentence_and_the_state_is_kept(source, whole, tmp_path, capsys):
    url = f"elsewhere://{tmp_path}/store"
    arguments = [str(source), "--out", url, "--staging", str(tmp_path / "staging"), *OPTIONS]
    with pytest.raises(Stop):
        make(source, url, staging=tmp_path / "staging", on_progress=stop_after(4))
    Elsewhere.failures = 3
    assert main(arguments) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"make_shards: {url}/shard-000001.tar cannot be written, tried 3 times (ConnectionError: the line is cut); "
        "what is done is kept, the same command continues."
    )
    assert "shard-000001.tar" not in Output(url).sizes()
    (staged,) = (tmp_path / "staging").iterdir()
    assert len((staged / "shard-000001.journal.jsonl").read_bytes().splitlines()) == 4  # nothing has to be encoded again
    assert main(arguments) == 0
    assert "continuing after 6 of 12 videos" in capsys.readouterr().err
    assert contents(fetch(url, tmp_path / "fetched")) == contents(whole)


def test_what_another_command_left_in_staging_is_not_taken(source, whole, tmp_path):
    url, staging = f"elsewhere://{tmp_path}/store", tmp_path / "staging"
    with pytest.raises(Stop):
        make(source, url, staging=staging, seed=1, on_progress=stop_after(2))
    with pytest.raises(OutputError, match="was made with seed 1, this command says 0: choose a new folder"):
        make(source, url, staging=staging)
    shutil.rmtree(tmp_path / "store")
    make(source, url, staging=staging)
    assert contents(fetch(url, tmp_path / "fetched")) == contents(whole)


def test_readers_of_a_store_see_what_readers_of_a_folder_see(source, whole, tmp_path):
    url = f"file://{tmp_path}/store"
    make(source, url, staging=tmp_path / "staging")
    shards, same = ShardSet(tmp_path / "store"), ShardSet(whole)
    assert [shards.metadata(i) for i in range(10)] == [same.metadata(i) for i in range(10)]
    assert not Output(url).has(MAKING)
