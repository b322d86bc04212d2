"""Progress that a person can read: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vig_ray.terminal import can_redraw


def duration(seconds: float) -> str:
    """Seconds as "1:05:09", "5:09" or "9 s"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


class RowProgress:
    """Shows on standard error how many rows, or other `units`, of `total` are done, the rate and the time left.

    `total` None: not known. `brief`: outside a terminal, say nothing of what is done before the first line is due, for
    notebooks, where lines stay. The rate counts from the first update with new rows, so that it leaves out the time in
    which a model is loaded.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        *,
        done: int = 0,
        every: float = 10.0,
        units: str = "rows",
        brief: bool = False,
    ) -> None:
        self._what, self._total, self._start = what, total, done
        self._done = done
        self._first: tuple[float, int] | None = None
        self._last_line = time.monotonic()
        self._every = every
        self._units, self._note = units, ""
        self._brief = brief
        self._bar: Progress | None = None
        if can_redraw(sys.stderr):
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(what, total=total, completed=done, pace="starting")

    def __enter__(self) -> RowProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self._done > self._start and not self._brief:
            self._line()

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    @property
    def pace(self) -> str:
        """The rate and the time left, in words."""
        now = time.monotonic()
        if self._first is None or self._done == self._first[1] or now <= self._first[0]:
            return "starting" if self._first is None else ""
        rate = (self._done - self._first[1]) / (now - self._first[0])
        left = (
            f", {duration((self._total - self._done) / rate)} left" if self._total and self._total > self._done else ""
        )
        return f"{rate:,.1f} {self._units}/s{left}"

    def restart(self, done: int) -> None:
        """Go on from `done` rows, which may be fewer than before where some are done again."""
        self._done = self._start = done
        self._first = None

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` rows are done in all, and a `note` beside it."""
        self._note = note
        done = max(done, self._done) if self._total is None else min(max(done, self._done), self._total)
        self._done = done
        if self._first is None and done > self._start:
            self._first = (time.monotonic(), done)
        if self._bar:
            self._bar.update(self._task, completed=done, pace=f"{self.pace}  {self._note}")
        elif time.monotonic() - self._last_line >= self._every:
            self._line()

    def _line(self) -> None:
        self._last_line = time.monotonic()
        of = f" of {self._total:,}" if self._total is not None else ""
        pace = f", {self.pace}" if self.pace else ""
        note = f", {self._note}" if self._note else ""
        print(f"{self._what}: {self._done:,}{of} {self._units}{pace}{note}", file=sys.stderr, flush=True)
