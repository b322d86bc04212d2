"""Programs that run beside this one: as long as it does, with their output in a file.

Run by its path, it becomes the program that is named, and ends when the one that started it does, however that ended:

    python -P child.py PROGRAM [ARGUMENT ...]
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl(2), which lasts over exec
_PATIENCE = 20.0  # seconds to end by itself when it is asked to


@contextmanager
def running(
    command: Sequence[str], log: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is started, and stopped with all that it started at the end of the block.

    `log`: file to which it writes what it says. `environment`: variables beside this process's own.
    """
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
    _signal(process, signal.SIGKILL)  # what it has left behind, too
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody left; macOS says the second of those that have ended
        os.killpg(process.pid, number)


def last_words(log: str, most: int = 300) -> str:
    """The last line of a log that isn't empty, without colours."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.path.getsize(log) - (1 << 16)))
            lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    except OSError:
        return "it says nothing"
    lines = [line.strip() for line in lines if line.strip()]
    return lines[-1][-most:] if lines else "it says nothing"


def _become(program: Sequence[str]) -> None:
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
        time.sleep(0)
        if os.getppid() != parent:
            sys.exit(1)  # it has ended in between
    os.execvp(program[0], list(program))


if __name__ == "__main__":
    _become(sys.argv[1:])
