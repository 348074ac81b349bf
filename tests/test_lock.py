"""A folder has one writer: the lock names its holder and dies with it, on file systems with locks and without."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from i2v import lock
from i2v.lock import only_writer
from tests.processes import ENVIRONMENT, gone, on_ranks, wait_for

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent
HOLD = """
import sys, time
from pathlib import Path
from i2v.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_held_folder_is_refused_with_its_holder(tmp_path, holder):
    with pytest.raises(ValueError, match=rf"is in use by another run \(process {holder.pid} on .*, since 20.*\): wait until"):
        with only_writer(tmp_path):
            pass
    assert holder.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_lock_goes_with_its_holder(tmp_path, holder, number):
    holder.send_signal(number)
    holder.wait()
    with only_writer(tmp_path):
        assert f'"pid": {os.getpid()},' in (tmp_path / lock.LOCK).read_text()
    assert (tmp_path / lock.LOCK).read_text() == ""  # left in order
    with only_writer(tmp_path):
        pass


@pytest.fixture
def no_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)


@pytest.fixture
def elsewhere(monkeypatch):
    """What was left in the folder is from another machine, and its lock is not seen here."""
    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(lock, "_machine", lambda: "this machine")


def left_behind(folder):
    """A record of a holder that was killed."""
    record = '{"host": "node7", "pid": 12, "since": "2026-01-01 00:00:00", "machine": "node7", "token": "a"}'
    (folder / lock.LOCK).write_text(record)


@pytest.mark.parametrize("kind", ["no_locks", "elsewhere"])
def test_without_locks_a_holder_that_beats_is_respected(tmp_path, monkeypatch, request, kind):
    request.getfixturevalue(kind)
    left_behind(tmp_path)
    beats = iter(range(1, 100))
    monkeypatch.setattr(lock.time, "sleep", lambda _: os.utime(tmp_path / lock.LOCK, ns=(0, next(beats))))
    with pytest.raises(ValueError, match="process 12 on node7, since 2026-01-01"), only_writer(tmp_path):
        pass
    assert "node7" in (tmp_path / lock.LOCK).read_text()


@pytest.mark.parametrize("kind", ["no_locks", "elsewhere"])
def test_without_locks_a_holder_that_does_not_beat_is_gone(tmp_path, monkeypatch, request, kind):
    request.getfixturevalue(kind)
    left_behind(tmp_path)
    monkeypatch.setattr(lock.time, "sleep", lambda _: None)
    with only_writer(tmp_path):
        assert f'"pid": {os.getpid()},' in (tmp_path / lock.LOCK).read_text()


def test_without_locks_the_later_of_two_newcomers_stays(tmp_path, monkeypatch, no_locks):
    monkeypatch.setattr(lock.time, "sleep", lambda _: left_behind(tmp_path))  # the other one comes while we wait
    with pytest.raises(ValueError, match="process 12 on node7"), only_writer(tmp_path):
        pass


def test_the_holder_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with only_writer(tmp_path):
        os.utime(tmp_path / lock.LOCK, ns=(0, 0))
        wait_for(lambda: (tmp_path / lock.LOCK).stat().st_mtime_ns > 0)


FORK = """
import os, sys, time
if "TORCHELASTIC_RUN_ID" not in os.environ:
    raise SystemExit("start me with torchrun")
from i2v.distributed import init_world
init_world("cpu")
open(sys.argv[1] + os.environ["RANK"], "w").write(str(os.getpid()))
time.sleep(600)
"""


def test_workers_end_when_their_launcher_is_killed(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(FORK)
    launcher = subprocess.Popen(on_ranks(2, script, f"{tmp_path}/"), cwd=ROOT, env=ENVIRONMENT)
    try:
        files = [tmp_path / "0", tmp_path / "1"]
        wait_for(lambda: all(file.exists() and file.read_text() for file in files))
        workers = [int(file.read_text()) for file in files]
        assert not any(map(gone, workers))
    finally:
        launcher.kill()
        launcher.wait()
    wait_for(lambda: all(map(gone, workers)))
