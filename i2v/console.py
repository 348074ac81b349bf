"""What every command owes to people: names that are no text or that a terminal does not know, Ctrl-C, the version."""

from __future__ import annotations

import atexit
import errno
import os
import signal
import stat
import sys

ROOMS = ("shard_tools", "pipelines", "benchmarks")  # of this repository, whose programs may be run as files
INTERRUPTED = 130  # the exit code after Ctrl-C
NO_ROOM, NO_FOLDER = "make room, or choose another place", "there is a file where a folder should be: choose another place"
REMEDIES = {  # of what goes wrong with files
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EISDIR: "it must be a file",
    errno.EEXIST: NO_FOLDER,
    errno.ENOTDIR: NO_FOLDER,
    errno.ENOENT: "check the path",
}


def quiet_start() -> None:
    """Let Ctrl-C be a line from the start of our own programs until `begin_command`: importing torch takes seconds, and where a
    library swallows the exception, the program goes on with half of it. Programs of others that import i2v are left alone."""
    if _is_ours() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def begin_command() -> None:
    """What every command begins with: standard output escapes what it cannot show, as standard error does; Ctrl-C, a full disk
    and a reader of the output that goes away are a line instead of a traceback, or nothing."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.excepthook = _excepthook
    atexit.register(_finish_output)
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted(sentence: str) -> None:
    """End the command after Ctrl-C."""
    print(sentence, file=sys.stderr)
    raise SystemExit(INTERRUPTED)


def as_sentence(error: BaseException) -> str:
    """An error as a sentence; one of the system says which file and what to do."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    if isinstance(error, BrokenPipeError):
        return "standard output was closed before all of it was written"
    what = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "a file or standard output"
    remedy = REMEDIES.get(error.errno)
    return f"{as_text(what)} cannot be read or written ({error.strerror}){f': {remedy}' if remedy else ''}."


def refuse_place(flag: str, path: str | os.PathLike | None) -> None:
    """Raises ValueError for a file to write, as a flag gives it, that cannot be: before the work, not after it."""
    folder = os.path.dirname(path or "") or "."
    if path is not None and not os.path.isdir(folder):
        raise ValueError(f"{folder} does not exist: {flag} needs a folder that does.")
    if path is not None and os.path.isdir(path):
        raise ValueError(f"{flag} is the folder {os.fspath(path)}: give the name of a file.")


def _is_ours() -> bool:
    """Whether what was started is a program of this package: a module, the installed command, or a file of the repository."""
    words = getattr(sys, "orig_argv", [])
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1].split(".")[0] == "i2v"
    program, root = (
        os.path.realpath(sys.argv[0] if sys.argv else ""),
        os.path.dirname(os.path.dirname(os.path.realpath(__file__))),
    )
    folder = os.path.dirname(program)
    return os.path.basename(program) == "i2v" or any(folder == os.path.join(root, room) for room in ROOMS)


def _end_at_once(*_) -> None:
    os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".replace("-m: ", "i2v: ").encode("utf-8", "surrogateescape"))
    os._exit(INTERRUPTED)


def _excepthook(kind, error, traceback) -> None:
    program = os.path.basename(sys.argv[0])
    if issubclass(kind, KeyboardInterrupt):
        interrupted(f"{program}: interrupted")
    if issubclass(kind, BrokenPipeError):
        return  # who closed standard output wants no more
    if issubclass(kind, OSError) and error.strerror is not None:
        print(f"{program}: {as_sentence(error)}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def _finish_output() -> None:
    """What is left in standard output reaches it, or the exit code says that it did not; who closed it wants no more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (OSError, ValueError) as error:
        print(f"{os.path.basename(sys.argv[0])}: standard output: {as_sentence(error)}", file=sys.stderr, flush=True)
        os._exit(1)


def refuse_pipe(path: str | os.PathLike) -> None:
    """Raises OSError for a pipe that has a name of its own (mkfifo): opening it waits for ever for somebody to write to it.
    What a shell makes of <(command) has its writer, and can be read."""
    if stat.S_ISFIFO(os.stat(path).st_mode) and os.path.exists(os.path.realpath(path)):
        raise OSError(errno.ESPIPE, "it is a pipe, not a file", os.fspath(path))


def as_text(name: str) -> str:
    """The name with what is not text in it escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def version() -> str:
    """Of this program, as it is installed."""
    from importlib import metadata  # with all that it imports, it is half of a command's start

    try:
        return metadata.version("i2v")
    except metadata.PackageNotFoundError:
        return "not installed"


def aligned(lines: list[list[str]]) -> list[str]:
    """A table's lines, its cells set to the right of their columns."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines]
