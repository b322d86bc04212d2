"""Log lines: as text for a person, or as JSON, an object a line, for what collects them.

Whatever a client sent is escaped, so that no request can make a line of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import select
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from serve_app.request import current_request

LogFormat = Literal["text", "json"]

ACCESS = logging.getLogger("vig_ray.serve.access")
_RELAY = "VIG_RAY_LOG_RELAY"
"""The variable that tells the processes of a server on one machine where its relay is."""
_MOST_BYTES = min(4096, getattr(select, "PIPE_BUF", 512))  # of a line: so many are written to a pipe in one piece
_PIPE_BYTES = 1 << 20  # some thousands of lines, while the terminal or what collects them is slow
_CUTS = (2000, 300, 40)  # characters of a value: the first with which a line is short enough
_END = b"\0"  # no line holds it, since it would be escaped


class JsonLines(logging.Formatter):
    """A record as one JSON object in ASCII. `fields` of a record, a dict, stand in the place of its message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
        }
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        line |= {"logger": record.name, "message": record.getMessage()} if fields is None else fields
        if "request_id" not in line and "request_ids" not in line and (request := current_request().id):
            line["request_id"] = request
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__  # its text may hold parts of a request
        for most in _CUTS:
            text = json.dumps({name: _cut(value, most) for name, value in line.items()})
            if len(text) < _MOST_BYTES:
                return text
        return json.dumps({name: line[name] for name in ("time", "level", "event")} | {"cut": True})


def _cut(value: Any, most: int) -> Any:
    if isinstance(value, str):
        return value[:most]
    if isinstance(value, list):
        return [_cut(each, most) for each in value[: most // 40]]
    return value


class TextLines(logging.Formatter):
    """A record's message as one line, and the request that it belongs to."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        message = one_line(record.getMessage()[:1000])
        requests = getattr(record, "fields", {}).get("request_ids", [])[:10] or [current_request().id]
        return f"{message} (request {', '.join(requests)})" if any(requests) else message


def one_line(text: str) -> str:
    """The text with every character that isn't printable as its escape, as \\n for the end of a line."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def log_here(log_format: LogFormat) -> None:
    """Send what this process has to say to the server's standard error, or to this process's where none is told.

    Text has warnings and errors, JSON also a line a request.
    """
    relay = os.environ.get(_RELAY)
    handler = RelayHandler(relay) if relay else logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    logger = logging.getLogger("vig_ray")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if log_format == "json" else logging.WARNING)
    logger.propagate = False
    sending = logging.getLogger("opentelemetry.exporter")  # says that a collector doesn't answer, at every attempt
    sending.handlers[:] = [handler]
    handler.addFilter(_OnceAMinute(sending.name))
    sending.setLevel(logging.WARNING)
    sending.propagate = False


class _OnceAMinute(logging.Filter):
    """Lets one record a minute through of the loggers below this name, and all of others."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._below, self._last = name, -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write it."""
        if not record.name.startswith(self._below):
            return True
        now = time.monotonic()
        if now - self._last < 60:
            return False
        self._last = now
        return True


class RelayHandler(logging.Handler):
    """Writes lines to the relay at `path`. It never waits: a line that doesn't fit in is lost, and lost lines are
    counted in a line of their own as soon as there is room again."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._pipe: int | None = None
        self.lost = 0
        with contextlib.suppress(OSError):  # the server has ended, and this process is about to
            self._pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        if self._pipe is None:
            return
        try:
            self._tell_lost()
            self._write(record)
        except BlockingIOError:
            self.lost += 1
        except OSError:
            self._pipe = None
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Tell of lines that were lost last."""
        with contextlib.suppress(OSError):
            self._tell_lost()
        super().close()

    def _tell_lost(self) -> None:
        if self.lost and self._pipe is not None:
            message = f"{self.lost} log lines were lost"
            told = logging.LogRecord("vig_ray.serve", logging.WARNING, "", 0, message, None, None)
            told.__dict__ |= {"event": "lost_lines", "fields": {"lost_lines": self.lost}}
            self._write(told)
            self.lost = 0

    def _write(self, record: logging.LogRecord) -> None:
        assert self._pipe is not None
        line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        if len(line) > _MOST_BYTES:  # text in another script
            line = line[: _MOST_BYTES - 1].decode("utf-8", "ignore").encode() + b"\n"
        os.write(self._pipe, line)


@contextlib.contextmanager
def relayed(log_format: LogFormat, out: TextIO | None = None) -> Iterator[None]:
    """While a server runs on this machine: what its processes log comes to `out`, by default standard error, in the
    format of this process's own messages.

    They are Ray's workers, whose own output goes to files of Ray's. To be entered before Ray starts: they learn of the
    relay from their environment.
    """
    logger = logging.getLogger("vig_ray")
    formatters = [(handler, handler.formatter) for handler in logger.handlers]
    if log_format == "json":
        for handler in logger.handlers:
            handler.setFormatter(JsonLines())
    with tempfile.TemporaryDirectory(prefix="vig-serve-") as folder:
        path = os.path.join(folder, "log")
        os.mkfifo(path, 0o600)
        pipe = os.open(path, os.O_RDWR)  # for writing too, so that it has no end while nobody else writes
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):  # less room is enough for all but bursts
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        thread = threading.Thread(target=_copy, args=(pipe, out or sys.stderr), name="log relay", daemon=True)
        thread.start()
        os.environ[_RELAY] = path
        try:
            yield
        finally:
            del os.environ[_RELAY]
            os.write(pipe, _END)
            thread.join(5)
            os.close(pipe)
            for handler, formatter in formatters:
                handler.setFormatter(formatter)


def _copy(pipe: int, out: TextIO) -> None:
    rest = b""
    while True:
        lines, newline, rest = (rest + os.read(pipe, 65536)).rpartition(b"\n")
        # Standard error may be closed while the server goes on.
        with contextlib.suppress(OSError, ValueError):
            out.write((lines + newline).decode("utf-8", "replace"))
            out.flush()
        if rest.endswith(_END):
            return
