"""Programs in a real pseudo-terminal, as a person's are."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

INTERRUPT = b"\x03"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SECONDS = 200
_SIZE = ("COLUMNS", "LINES")  # where somebody has set them, they count for more than the terminal's own size


class Terminal:
    """What a program prints to a pseudo-terminal of this size, as it comes."""

    def __init__(self, child: int, master: int) -> None:
        self._child, self._master = child, master
        self.written = b""

    @property
    def text(self) -> str:
        """Without the escapes that move the cursor and set colours."""
        return _ESCAPES.sub("", self.written.decode(errors="replace")).replace("\r", "\n")

    def wait_for(self, what: str) -> None:
        """Read on until this text is there."""
        self._read(lambda: what in self.text)
        assert what in self.text, self.text

    def press(self, key: bytes) -> None:
        """Type a key."""
        os.write(self._master, key)

    def status(self) -> int:
        """The exit status, once it has ended and all is read."""
        self._read(lambda: False)
        _, status = os.waitpid(self._child, 0)
        os.close(self._master)
        return os.waitstatus_to_exitcode(status)

    def _read(self, enough: Callable[[], bool]) -> None:
        end = time.monotonic() + _SECONDS
        while not enough():
            assert time.monotonic() < end, f"waited in vain\n{self.text}"
            if select.select([self._master], [], [], 1)[0]:
                try:
                    data = os.read(self._master, 65536)
                except OSError:  # what Linux says when the program has ended
                    return
                if not data:
                    return
                self.written += data


def sized(descriptor: int, columns: int, lines: int) -> None:
    """Give a terminal a size."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def forked(work: Callable[[], None], environment: Mapping[str, str], *, columns: int, lines: int) -> Terminal:
    """`work` in a fork of this process, in a terminal; PYTHONIOENCODING counts as at a program's start."""
    child, master = pty.fork()
    if child:
        sized(master, columns, lines)
        return Terminal(child, master)
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(environment)
        for name in _SIZE:
            os.environ.pop(name, None)
        encoding = environment.get("PYTHONIOENCODING", "utf-8")
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding, write_through=True) for number in (1, 2)
        )
        os.read(0, 1)  # until the terminal has its size
        work()
        status = 0
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def started(words: Sequence[str], folder: Path, *, columns: int, lines: int, **environment: str) -> Terminal:
    """A program in a terminal."""
    master, slave = pty.openpty()
    sized(slave, columns, lines)
    process = subprocess.Popen(
        words, cwd=folder, stdin=slave, stdout=slave, stderr=slave, env=_without_size() | environment,
        preexec_fn=_take_terminal, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    process.returncode = 0  # its end is waited for by its number
    return Terminal(process.pid, master)


def _without_size() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _SIZE}


def _take_terminal() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
