"""A study on a terminal while it runs: a table that fills as runs end, and below it what runs now.

It is drawn anew every second, as wide and as high as the terminal is then. What there is no room for is counted.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.text import Text

from vig_ray.progress import duration
from vig_ray.study.graph import Cell, Node
from vig_ray.study.rates import Rates
from vig_ray.study.record import Record
from vig_ray.study.results import Metric, Results, Row
from vig_ray.study.runner import Progress
from vig_ray.study.text import head, mean_text
from vig_ray.study.time_left import time_left
from vig_ray.terminal import printable

_GAP = "  "
_FAILURES = 3  # that stand below the table; each is also printed above it


class Table:
    """The table, and a line above it now and then. `cells`: what is run; `nodes`: their stages, each after what it
    takes; `results`: what is there already; `lanes`: how many run side by side, as far as that is known."""

    def __init__(
        self, cells: Sequence[Cell], nodes: Sequence[Node], progress: Progress, rates: Rates, results: Results
    ) -> None:
        self._cells, self._nodes, self._progress, self._rates = cells, nodes, progress, rates
        self._began, self._results = time.monotonic(), results
        self._console = Console(file=sys.stdout, highlight=False)
        self._live = Live(
            console=self._console, auto_refresh=False, get_renderable=lambda: self,
            redirect_stdout=False, redirect_stderr=sys.stderr.isatty(),
        )  # fmt: skip
        self._handlers: list[logging.StreamHandler[Any]] = []
        self.lanes: int | None = None

    def __enter__(self) -> Table:
        ours = logging.getLogger("vig_ray").handlers
        stderr = sys.stderr
        self._handlers = [each for each in ours if isinstance(each, logging.StreamHandler) and each.stream is stderr]
        self._live.start(refresh=True)
        for handler in self._handlers:  # above the table, too
            handler.setStream(sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.transient = kind is None  # the results take its place; what was interrupted stays
        self._live.stop()
        for handler in self._handlers:
            handler.setStream(sys.stderr)

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(printable(text, self._console.encoding), markup=False, highlight=False)

    def ended(self, record: Record, results: Results | None) -> None:
        """A stage has ended, with the results then where it is an evaluation."""
        self._rates.add(record)
        self._results = results or self._results
        if not record.done:
            self.say(f"{record.name} failed: {record.told.partition(chr(10))[0]}")

    def look(self) -> None:
        """Draw it."""
        self._live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for line, style in self.lines(options.max_width, console.size.height - 1):
            yield Text(printable(line, console.encoding), style=style, no_wrap=True, overflow="crop")

    def lines(self, width: int, height: int) -> Iterator[tuple[str, str]]:
        """The lines and their styles: no more than `height`, none longer than `width`."""
        state, running = [*self._state(), *self._failed()][:height], list(self._running())
        rows, notes = self._rows(width)
        room = height - len(state)  # the state first, then a third of the room for what runs, then rows
        shown = running[: min(room, max(1, room // 3))]
        if shown and len(shown) < len(running):
            shown[-1] = f"{_GAP}{len(running) - len(shown) + 1:,} more run"
        room -= len(shown)
        if len(rows) + len(notes) > room:
            kept = rows[: max(0, room - len(notes) - 1)]
            hidden = len(rows) - max(1, len(kept))
            rows, notes = kept, [f"{hidden:,} more rows in a higher window", *notes]
        notes = notes[: room - len(rows)]
        yield from ((fit(line, width), "bold") for line in rows[:1])
        yield from ((fit(line, width), "") for line in rows[1:])
        yield from ((fit(line, width), "dim") for line in notes)
        yield from ((fit(line, width), "") for line in (*state[:1], *shown, *state[1:]))

    def _rows(self, width: int) -> tuple[list[str], list[str]]:
        """The table, its heads first, with as many numbers as there is room for; and what says how many there isn't."""
        metrics, rows = self._results.metrics, {row.label: row for row in self._results.rows}
        cells_of: dict[str, list[Cell]] = {}
        for cell in self._cells:
            cells_of.setdefault(cell.label, []).append(cell)
        labels = list(dict.fromkeys((*rows, *cells_of)))
        fewer = [(count, True) for count in range(len(metrics), 0, -1)] + [(min(1, len(metrics)), False)]
        for count, intervals in fewer:
            table = self._table(labels, rows, cells_of, metrics[:count], intervals=intervals)
            if cell_len(table[0]) <= width:
                break
        names = ", ".join(metric.name for metric in metrics[count:])
        return table, [f"in a wider window: {names}"] if names else []

    def _table(
        self, labels: Sequence[str], rows: Mapping[str, Row], cells_of: Mapping[str, Sequence[Cell]],
        metrics: Sequence[Metric], *, intervals: bool,
    ) -> list[str]:  # fmt: skip
        lines = [["", "seeds", *(head(metric) for metric in metrics)]]
        for label in labels:
            cells, row = cells_of.get(label, ()), rows.get(label)
            done = sum(self._progress.done(cell.last) for cell in cells)
            have = max((len(values) for values in row.values.values()), default=0) if row is not None else 0
            numbers = ("" if row is None else _number(row, metric, intervals=intervals) for metric in metrics)
            lines.append([label, f"{max(done, have)}/{max(len(cells), have)}", *numbers])
        widths = [max(cell_len(line[place]) for line in lines) for place in range(len(lines[0]))]
        return [_GAP.join(set_cell_size(cell, size) for cell, size in zip(line, widths, strict=True)) for line in lines]

    def _state(self) -> Iterator[str]:
        """How far it is, and how long it takes."""
        progress, names = self._progress, [node.name for node in self._nodes]
        done = sum(progress.done(name) for name in names)
        there = sum(name in progress.taken for name in names)
        failed = sum(name in progress.records for name in names) - done
        parts = [f"{done:,} of {len(names):,} stages"]
        parts += [f"{there:,} of them were there"] if there else []
        parts += [f"{failed:,} failed"] if failed else []
        parts += [f"{len(progress.without):,} can't run without those"] if progress.without else []
        yield ", ".join(parts)
        so_far = f"{duration(time.monotonic() - self._began)} so far"
        if progress.over:
            yield f"{so_far}; nothing more is begun: {progress.over}"
        else:
            left = time_left(self._nodes, progress, self._rates, self.lanes)
            yield f"{so_far}, {left.text()}" if done + failed < len(names) else so_far

    def _failed(self) -> Iterator[str]:
        failed = [
            self._progress.records[node.name]
            for node in self._nodes
            if node.name in self._progress.records and not self._progress.done(node.name)
        ]
        for record in failed[-_FAILURES:]:
            yield f"failed: {record.name}: {record.told.partition(chr(10))[0]}"

    def _running(self) -> Iterator[str]:
        """What runs now, for whom, and for how long; what Ray has no place for yet is counted."""
        now, waits = time.monotonic(), 0
        for node in self._nodes:
            if node.name in self._progress.running:
                yield (
                    f"{_GAP}{node.name}{_GAP}{duration(now - self._progress.running[node.name])}{_GAP}"
                    f"{self._whose(node.name)}"
                )
            elif node.name in self._progress.handed:
                waits += 1
        if waits:
            yield f"{_GAP}{waits:,} begin, or wait for a place"

    def _whose(self, name: str) -> str:
        """The cells that need a node, in few words."""
        cells = [cell for cell in self._cells if name in cell.nodes]
        labels = dict.fromkeys(cell.label for cell in cells)
        if len(labels) != 1:
            return f"for {len(labels):,} rows"
        seeds = ", ".join(str(cell.seed) for cell in cells)
        return f"{cells[0].label}, seed{'s' if len(cells) > 1 else ''} {seeds}"


def _number(row: Row, metric: Metric, *, intervals: bool) -> str:
    mean = row.mean(metric.name)
    return mean_text(mean, metric) if intervals else metric.text(mean.value)


def fit(line: str, width: int) -> str:
    """A line that is no longer than this; what is cut ends in dots."""
    line = line.rstrip()
    if cell_len(line) <= width:
        return line
    return set_cell_size(line, width - 3) + "..." if width > 3 else set_cell_size(line, width)
