"""The table of a running study in real pseudo-terminals: wide, narrow, without colours, in Windows-1252, killed."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from tests.end_to_end.conftest import ROOT
from tests.study import made
from tests.study.terminal import INTERRUPT, forked, started
from tests.study.test_file import right, written
from vig_ray.study import file as files
from vig_ray.study.graph import MODEL_NAME, Graph, spell_out
from vig_ray.study.live import Table
from vig_ray.study.rates import Rates
from vig_ray.study.record import Record
from vig_ray.study.results import Results, gather
from vig_ray.study.runner import Progress
from vig_ray.terminal import can_redraw, printable

NAMES = ("exact.exact", "choices.accuracy", "held-out.gain", "held-out.loss")
HIDDEN, SHOWN = b"\x1b[?25l", b"\x1b[?25h"


class Study:
    """Two arms with what is varied and three seeds, of which stages end one after the other, in a second each."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.path = written(folder, right(folder) | changes)
        self.file = files.read(self.path)
        self.out = str(folder / "out")
        self.graph: Graph = spell_out(self.file, self.path, self.out)
        self.nodes = list(self.graph.nodes.values())
        self.progress = Progress()

    def table(self) -> Table:
        return Table(self.graph.cells, self.nodes, self.progress, Rates(self.graph.nodes, []), self.results())

    def end(self, name: str, table: Table, *, failed: bool = False) -> None:
        node, place = self.graph.nodes[name], len(self.progress.records)
        numbers = {metric: {"value": 0.5 + 0.01 * place} for metric in ("exact", "accuracy", "gain", "loss")}
        tasks = []
        for task, metrics in itertools.groupby(NAMES, lambda each: each.partition(".")[0]):
            named = [metric.partition(".")[2] for metric in metrics]
            known = {"numbers": {each: numbers[each] for each in named}}
            about = [
                {"name": each, "percent": each in ("exact", "accuracy"), "higher_is_better": each != "loss"}
                for each in named
            ]
            tasks.append({"name": task, "main": named[0], "models": {MODEL_NAME: known}, "metrics": about})
        state = "failed" if failed else "done"
        found = Record(name, node.stage, node.verb, "", state, "the loss is NaN\nmore", 1.0, table={"tasks": tasks})  # type: ignore[arg-type]
        self.progress.records[name] = found
        self.progress.running.pop(name, None)
        self.progress.handed.pop(name, None)
        table.ended(found, self.results() if node.stage == "eval" else None)

    def begin(self, name: str, *, handed: bool = False) -> None:
        self.progress.handed[name] = "a"
        if not handed:
            self.progress.running[name] = time.monotonic() - 65

    def results(self) -> Results:
        study = self.file.model_copy(update={"measured": NAMES})
        return gather(study, self.graph, self.graph.cells, self.progress.records, self.out, {}, {}, None)


@contextlib.contextmanager
def quiet() -> Any:
    """Standard error as a command line has it."""
    logger, handler = logging.getLogger("vig_ray"), logging.StreamHandler()
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def test_lines_at_every_size(tmp_path: Path) -> None:
    study = Study(tmp_path, vary={"select.p": [30, 70]})
    table = study.table()

    def seen(width: int, height: int) -> list[str]:
        found = [line for line, _ in table.lines(width, height)]
        assert len(found) <= height
        assert all(cell_len(line) <= width for line in found)
        return found

    for width, height in itertools.product((1, 10, 30, 80, 200), (1, 2, 5, 10, 50)):
        seen(width, height)
    first = seen(100, 50)
    assert [line.split() for line in first[1:5]] == [
        [arm, f"p={p}", "0/3", *"––––"] for arm in ("random", "vig") for p in (30, 70)
    ]
    assert "0 of 37 stages" in first
    assert any("how long score, select, train, eval take isn't known before one has run" in line for line in first)

    cells = study.graph.cells
    for cell in (cells[0], cells[4]):
        for name in cell.nodes:
            if name not in study.progress.records:
                study.end(name, table)
    failing = cells[1].nodes[1]
    study.end(failing, table, failed=True)
    study.begin(cells[2].nodes[1])
    study.begin(cells[3].nodes[1], handed=True)
    wide = seen(200, 50)
    head, random, *_ = wide
    assert head.split() == ["seeds", "exact.exact", "%", "choices.accuracy", "%", "held-out.gain", "held-out.loss", "↓"]
    # 0.53 and 0.56: 0.545 +- 12.706 * 0.0212 / sqrt(2)
    assert random.split()[:6] == ["random", "p=30", "2/3", "54.5", "[35.4,", "73.6]"]
    assert "7 of 37 stages, 1 failed" in wide
    assert f"  {cells[2].nodes[1]}  1:05  vig p=30, seed 0" in wide
    assert "  1 begin, or wait for a place" in wide
    assert f"failed: {failing}: the loss is NaN" in wide
    assert any(line.endswith(", about 28 s left") for line in wide)  # a second each, one at a time
    narrow = seen(50, 50)
    assert "in a wider window: choices.accuracy, held-out.gain, held-out.loss"[:47] + "..." in narrow
    assert "2 more rows in a higher window" in seen(200, 9)
    for width, height in itertools.product((1, 10, 30, 80, 200), (1, 2, 5, 10, 50)):
        seen(width, height)


@pytest.mark.parametrize(
    ("environment", "columns", "lines"),
    [({}, 120, 40), ({}, 30, 8), ({"NO_COLOR": "1"}, 80, 24), ({"PYTHONIOENCODING": "cp1252"}, 120, 40),
     ({"PYTHONIOENCODING": "ascii"}, 120, 40)],
)  # fmt: skip
def test_a_terminal(tmp_path: Path, environment: dict[str, str], columns: int, lines: int) -> None:
    study = Study(tmp_path)

    def fill() -> None:
        assert can_redraw(sys.stdout)
        with quiet() as logger, study.table() as table:
            for cell in study.graph.cells:
                for name in cell.nodes:
                    if name not in study.progress.records:
                        study.begin(name)
                        table.look()
                        study.end(name, table, failed=cell is study.graph.cells[-1])
                        table.look()
            logger.warning("a warning")
        print("the end")

    seen = forked(fill, {"TERM": "xterm-256color", **environment}, columns=columns, lines=lines)
    seen.press(b"\n")
    assert seen.status() == 0, seen.text
    assert all(cell_len(line) <= columns for line in seen.text.splitlines())
    assert "a warning" in seen.text
    assert seen.text.rstrip().endswith("the end")
    assert seen.written.count(HIDDEN) == seen.written.count(SHOWN) > 0  # the cursor
    if columns > 30:
        assert "3/3" in seen.text
        assert "failed: train-" in seen.text
        arrow = "(less is better)" if "PYTHONIOENCODING" in environment else "↓"
        assert f"held-out.loss {arrow}" in seen.text or columns < 100
    if "NO_COLOR" in environment:
        assert b"\x1b[3" not in seen.written
        assert b";3" not in seen.written


def test_a_terminal_that_is_interrupted_keeps_what_was_there(tmp_path: Path) -> None:
    study = Study(tmp_path)

    def wait() -> None:
        with study.table() as table:
            for name in study.graph.cells[0].nodes:
                study.end(name, table)
            study.begin(study.graph.cells[1].nodes[1])
            table.look()
            time.sleep(100)

    seen = forked(wait, {"TERM": "xterm"}, columns=100, lines=30)
    seen.press(b"\n")
    seen.wait_for("vig, seed 0")
    seen.press(INTERRUPT)
    assert seen.status() == 130, seen.text
    assert seen.written.rstrip().endswith(SHOWN) or seen.written.rindex(SHOWN) > seen.written.rindex(HIDDEN)
    assert "1/3" in seen.text[seen.text.rindex("seeds") :]


def test_what_is_no_terminal_to_draw_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert can_redraw(Stream())  # type: ignore[arg-type]
    monkeypatch.setenv("TERM", "dumb")
    assert not can_redraw(Stream())  # type: ignore[arg-type]
    assert printable("a ↓ – ü 中", "cp1252") == "a (less is better) – ü ?"
    assert printable("a ↓ – ü", "ascii") == "a (less is better) - ?"


@pytest.mark.long
def test_a_study_on_a_terminal(tmp_path: Path, local_ray: None) -> None:
    import ray

    stages = {"eval": {"model": "$model"}, "train": {"model": "$model", "max_steps": 3000, "save_every": 1000}}
    arms: dict[str, Any] = {"short": {"eval": {"max_new_tokens": 4}}, "long": {}}
    path = made.write(tmp_path, stages=stages, arms=arms, baseline="short", orders=[], seeds=1)
    address = ray.get_runtime_context().gcs_address
    words = [sys.executable, "-m", "vig_ray.cli", "study", str(path), "--out", "out", "--address", address]
    environment = {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    seen = started(words, tmp_path, columns=90, lines=30, **environment)
    assert seen.status() == 0, seen.text
    assert "no GPU on this cluster now: stages run on CPUs (device: cuda in the file waits for GPUs)" in "".join(
        seen.text.splitlines()
    )
    filled = [line.split()[1] for line in seen.text.splitlines() if line.startswith("short ")]
    assert filled[0] == "0/1"
    assert "1/1" in filled
    assert "short, seed 0" in seen.text
    assert seen.text.rstrip().splitlines()[-1].startswith("study: ")  # the results, in the table's place
    numbers = made.numbers(tmp_path / "out")
    assert f"{100 * numbers['short', 'exact.exact', '0']:.1f}" in seen.text

    path.write_text(path.read_text().replace("  long: {}\n", "  long: {eval: {model: $train}}\n"))
    seen = started(words, tmp_path, columns=90, lines=30, **environment)
    seen.wait_for("long, seed 0")
    seen.press(INTERRUPT)
    assert seen.status() == 130, seen.text
    assert "the same command goes on from here" in seen.text
    assert "Traceback" not in seen.text
    assert seen.written.rindex(SHOWN) > seen.written.rindex(HIDDEN)
