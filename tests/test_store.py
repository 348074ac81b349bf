"""A store answers, however often it has to be asked; or it is given up, in time, with a sentence that says so."""

import errno
import io
import os
import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from i2v.pipelines import store
from i2v.pipelines.store import Entry, Retry, ShardError, StoreError, UnknownStore, open_part
from i2v.shard_tools import paths
from tests.processes import LIMIT

DATA = bytes(range(256)) * 4


class Troubled(LocalFileSystem):
    """Whatever it is asked for, trouble(method) comes first. `changes` is put over what it tells about a file."""

    protocol = "troubled"
    cachable = False
    trouble = staticmethod(lambda method: None)
    changes: dict = {}  # noqa: RUF012
    calls: list[str] = []  # noqa: RUF012

    def info(self, path, **options):
        return super().info(path, **options) | Troubled.changes


def troubled(method):
    def call(self, *arguments, **options):
        if not getattr(self, "inside", False):  # not what it asks of itself
            Troubled.calls.append(method)
            Troubled.trouble(method)
        self.inside = True
        try:
            return known(self, *arguments, **options)
        finally:
            self.inside = False

    known = getattr(Troubled, method)
    return call


for name in ("ls", "info", "isdir", "find", "cat_file", "put_file", "rm_file", "makedirs", "mv"):
    setattr(Troubled, name, troubled(name))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    fsspec.register_implementation("troubled", Troubled, clobber=True)
    monkeypatch.setattr(store, "RETRY", Retry(tries=3, wait=0.0, timeout=LIMIT))
    for attribute, value in (("trouble", staticmethod(lambda method: None)), ("changes", {}), ("calls", [])):
        monkeypatch.setattr(Troubled, attribute, value)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "a").write_bytes(DATA)
    (tmp_path / "data" / "deep" / "b").write_bytes(b"b")
    return store.Store(f"troubled://{tmp_path}/data")


def raising(error):
    """Trouble whatever is asked."""

    def trouble(method):
        raise error

    return staticmethod(trouble)


def put(place):
    place.put(Path(place.url.removeprefix("troubled://"), "a"), "c")
    return store.Store(place.url).read("c")


ACTIONS = {  # -> what it answers, the verb of its error
    "read": (lambda place: place.read("a"), DATA, "read"),
    "chunks": (lambda place: b"".join(place.chunks("a")), DATA, "read"),
    "open": (lambda place: place.open("a").read(), DATA, "read"),
    "size": (lambda place: place.size("a"), len(DATA), "read"),
    "exists": (lambda place: place.exists("a"), True, "read"),
    "is_folder": (lambda place: place.is_folder("deep"), True, "read"),
    "entries": (lambda place: sorted(place.entries())[0], Entry("a", len(DATA), False), "listed"),
    "below": (lambda place: sorted(place.below()), ["a", "deep/b"], "listed"),
    "put": (put, DATA, "written"),
    "remove": (lambda place: (place.remove("a"), place.exists("a"))[1], False, "removed"),
    "create": (lambda place: store.Store(f"{place.url}/new").create(), None, "created"),
}


@pytest.mark.parametrize("error", [OSError("reset"), ValueError("503 slow down"), TimeoutError()])
@pytest.mark.parametrize("action", ACTIONS)
def test_what_fails_is_asked_again(place, action, error):
    left = [2]

    def trouble(method):
        left[0] -= 1
        if left[0] >= 0:
            raise error

    Troubled.trouble = staticmethod(trouble)
    assert ACTIONS[action][0](place) == ACTIONS[action][1]


@pytest.mark.parametrize("action", ACTIONS)
def test_what_keeps_failing_is_an_error_that_says_what_was_tried(place, action):
    Troubled.trouble = raising(RuntimeError("no\nconnection"))
    sentence = rf"^{place.url}(/\w+)? cannot be {ACTIONS[action][2]}, tried 3 times \(RuntimeError: no connection\)\.$"
    with pytest.raises(StoreError, match=sentence):
        ACTIONS[action][0](place)
    assert len(Troubled.calls) == 3


@pytest.mark.process
@pytest.mark.parametrize("action", ACTIONS)
def test_what_stalls_is_given_up_and_may_be_asked_again_later(place, action, monkeypatch):
    answered = threading.Event()
    Troubled.trouble = staticmethod(lambda method: answered.wait(LIMIT))
    with monkeypatch.context() as impatient:
        impatient.setattr(store, "RETRY", Retry(tries=2, wait=0.0, timeout=0.01))
        with pytest.raises(StoreError, match=r"tried 2 times \(TimeoutError: no answer in 0.0?1 s\)"):
            ACTIONS[action][0](place)
    answered.set()
    place = store.Store(place.url)
    assert action == "remove" or ACTIONS[action][0](place) == ACTIONS[action][1]  # it may have been removed late


def test_waits_grow_and_have_jitter(place, monkeypatch):
    waits = []
    monkeypatch.setattr(store, "RETRY", Retry(tries=5, wait=1.0))
    monkeypatch.setattr(store.time, "sleep", waits.append)
    Troubled.trouble = raising(OSError("reset"))
    with pytest.raises(StoreError, match="tried 5 times"):
        place.read("a")
    assert len(waits) == 4 and all(0.5 * 2**i <= wait <= 1.5 * 2**i for i, wait in enumerate(waits))
    assert len(set(waits)) == 4 and sum(waits) + 5 * 60 <= Retry().patience < 10 * 60


def test_what_is_large_or_many_may_take_longer(place, monkeypatch):
    limits, within = [], store._within
    monkeypatch.setattr(store, "_within", lambda seconds, call: limits.append(seconds / LIMIT) or within(seconds, call))
    monkeypatch.setattr(store, "CHUNK", 300)
    put(place)
    place.entries(), place.below(), place.size("a"), list(place.chunks("a", len(DATA)))
    paths.entries(place.url)  # of videos: there may be very many in one folder
    assert limits == [1 + len(DATA) // 300, 1, 1, 10, 1, 1, 1, 1, 1, 10]


@pytest.mark.parametrize("error", [FileNotFoundError("x"), IsADirectoryError("x"), NotADirectoryError("x")])
@pytest.mark.parametrize("action", ["read", "chunks", "open", "size", "entries", "below", "remove"])
def test_that_there_is_nothing_is_an_answer(place, action, error):
    Troubled.trouble = raising(error)
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{place.url}"):
        ACTIONS[action][0](place)
    assert len(Troubled.calls) == 1 and not place.exists("a")


@pytest.mark.parametrize(
    "error, sentence", [(PermissionError("no key"), "PermissionError: no key"), (NotImplementedError(), "")]
)
def test_what_cannot_get_better_is_tried_once(place, error, sentence):
    Troubled.trouble = raising(error)
    with pytest.raises(StoreError, match=rf"^{place.url}/a cannot be read \({sentence or 'NotImplementedError'}\)\.$"):
        place.read("a")
    assert len(Troubled.calls) == 1


def test_a_full_disk_is_not_the_stores_fault():
    def call():
        calls.append(1)
        raise OSError(code, os.strerror(code))

    for code in (errno.ENOSPC, errno.EDQUOT):
        calls = []
        with pytest.raises(OSError, match=os.strerror(code)) as raised:
            store.patiently("store://a", "read", call)
        assert not isinstance(raised.value, StoreError) and calls == [1]


@pytest.mark.parametrize("action", ["size", "exists", "entries"])
def test_what_others_changed_is_seen_although_file_systems_remember(place, action, monkeypatch):
    """Those of object stores keep listings, and answer from them."""
    kept = {}

    def remembering(method):
        real = getattr(Troubled, method)
        return lambda self, path, **options: kept.setdefault((method, path), real(self, path, **options))

    for method in ("info", "ls"):
        monkeypatch.setattr(Troubled, method, remembering(method))
    monkeypatch.setattr(Troubled, "invalidate_cache", lambda self: kept.clear())
    for length in (len(DATA), 7):
        Path(place.url.removeprefix("troubled://"), "a").write_bytes(DATA[:length])
        answer = {"size": length, "exists": True, "entries": Entry("a", length, False)}[action]
        assert ACTIONS[action][0](place) == answer


def test_a_folder_is_not_in_itself(place, monkeypatch):
    """An object store may have an object that stands for the folder."""
    known = Troubled.ls
    marker = {"name": f"{place.url.removeprefix('troubled:/')}/", "size": 0, "type": "file"}
    monkeypatch.setattr(Troubled, "ls", lambda *_, **options: [marker, *known(*_, **options)])
    assert {entry.name for entry in place.entries()} == {"a", "deep"}


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"x"])
@pytest.mark.parametrize("action", ["chunks", "open"])
def test_truncated_answers_are_not_taken(place, action, change, monkeypatch):
    known = Troubled.cat_file
    monkeypatch.setattr(Troubled, "cat_file", lambda *_, **options: change(known(*_, **options)))
    with pytest.raises(StoreError, match=f"a cannot be read, tried 3 times .* bytes came where {len(DATA)} were asked for"):
        ACTIONS[action][0](place)


def test_a_url_that_cannot_be_opened_says_why(monkeypatch):
    with pytest.raises(UnknownStore, match=r"^nosuch://data cannot be opened: Protocol not known: nosuch\.$") as raised:
        store.Store("nosuch://data")
    assert isinstance(raised.value, ValueError) and isinstance(raised.value, ShardError)
    monkeypatch.setattr(Troubled, "__init__", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no credentials")))
    with pytest.raises(StoreError, match=r"^troubled://x cannot be opened \(RuntimeError: no credentials\)\.$"):
        store.Store("troubled://x")


# ---- open files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["store", "whole files only", "size not told", "local"])
@settings(max_examples=30)
@given(
    steps=st.lists(st.tuples(st.integers(0, 300), st.sampled_from([-1, 0, 1, 7, 40, 1000])), max_size=8),
    first=st.integers(0, 200),
    size=st.one_of(st.none(), st.integers(0, 200)),
)
def test_a_part_of_a_file_reads_as_its_bytes_do_whatever_fails(tmp_path_factory, kind, steps, first, size):
    folder = tmp_path_factory.mktemp("part")
    (folder / "a").write_bytes(DATA)
    count = [0]

    def trouble(method):
        count[0] += 1
        if count[0] % 3:
            raise OSError("reset")

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("CHUNK", 50), ("BLOCK", 16)):
            patch.setattr(store, name, value)
        patch.setattr(Troubled, "trouble", staticmethod(trouble))
        patch.setattr(
            Troubled, "changes", {"whole files only": {"partial": False}, "size not told": {"size": None}}.get(kind, {})
        )
        if kind == "local":
            part = open_part(str(folder / "a"), first, size)
        else:
            part = store.Store(f"troubled://{folder}").open("a", first, size)
        same = io.BytesIO(DATA[first:] if size is None else DATA[first : first + size])
        assert (part.raw.end, part.raw.size) == (len(DATA), len(same.getvalue()))
        for at, wanted in steps:
            assert part.seek(at) == same.seek(at) and part.read(wanted) == same.read(wanted) and part.tell() == same.tell()
        assert part.seek(-1, os.SEEK_END) == len(same.getvalue()) - 1 if len(same.getvalue()) else part.read() == b""


def test_an_open_file_that_has_failed_fails_at_once(place):
    """Who reads it, as FFmpeg does, may ask again after an error."""
    file = place.open("a")
    Troubled.trouble = raising(OSError("reset"))
    Troubled.calls.clear()
    for _ in range(2):
        with pytest.raises(StoreError, match="tried 3 times"):
            file.read()
    assert len(Troubled.calls) == 3


def test_a_folder_cannot_be_opened(place, tmp_path):
    for opening in (lambda: place.open("deep"), lambda: place.open("none"), lambda: open_part(str(tmp_path), 0, None)):
        with pytest.raises(FileNotFoundError, match="No such file or directory: '(troubled:/)?/"):
            opening()


@pytest.mark.process
def test_a_local_file_that_stalls_is_given_up_too(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.tar")
    monkeypatch.setattr(store, "RETRY", Retry(tries=2, wait=0.0, timeout=0.01))
    with pytest.raises(StoreError, match=r"a.tar cannot be read, tried 2 times \(TimeoutError: no answer in 0.01 s\)\.$"):
        open_part(str(tmp_path / "a.tar"), 0, 10)
    os.close(os.open(tmp_path / "a.tar", os.O_RDWR))  # lets go of the threads
