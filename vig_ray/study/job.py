"""`vig study`: read the file, spell out its graph, run what isn't there, and say what came out.

OUT/runs/STAGE-1f2e3d4c5b/   a stage's own output, study.json (how it ended, its command) and log.txt
OUT/study.json               the results so far, as `vig report --study` takes them
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock

from vig_ray.cluster import machines
from vig_ray.errors import StageError
from vig_ray.progress import RowProgress
from vig_ray.storage import absolute, check_writable, join, scheme_of, write_bytes
from vig_ray.study import again
from vig_ray.study import file as files
from vig_ray.study.chosen import check_names, chosen, headline
from vig_ray.study.config import StudyConfig
from vig_ray.study.file import StudyFile
from vig_ray.study.graph import LAST, Cell, Graph, Node, spell_out
from vig_ray.study.record import Record
from vig_ray.study.results import RUNGS, Results, Tried, gather
from vig_ray.study.results_json import as_json
from vig_ray.study.runner import Progress, in_order, take_what_is_there
from vig_ray.study.runner import run as run_nodes
from vig_ray.study.search import Searched, before_training, parse, search, trial_of
from vig_ray.study.text import cell_text, plan_text, results_text

log = logging.getLogger(__name__)

RESULTS = "study.json"
_LOCK = ".study.lock"


@dataclass(frozen=True)
class Planned:
    """What `--dry-run` says."""

    plan: str
    failed: int = 0

    def text(self) -> str:
        """For a person."""
        return self.plan


@dataclass(frozen=True)
class Studied:
    """What a study came to."""

    results: Results

    @property
    def failed(self) -> int:
        """Stages that failed, and cells without numbers."""
        return len(self.results.failed) + len(self.results.missing)

    def text(self) -> str:
        """For a person."""
        return results_text(self.results)

    def json(self) -> dict[str, Any]:
        """As OUT/study.json has it."""
        return as_json(self.results)


def run(config: StudyConfig) -> Studied | Planned:
    """Run a study; the same command goes on where an earlier one stopped.

    Raises StageError, before anything runs, where the file, an option of a stage or a path in it is wrong.
    """
    if scheme_of(config.out) not in ("", "file"):
        raise StageError(f"--out {config.out}: a study's stages share a folder; name one that all machines see")
    config = config.model_copy(update={"study": os.path.abspath(config.study)})
    study = chosen(files.read(config.study), config)
    out = absolute(config.out)
    check_writable(out)
    searched = None if config.search is None else parse(config.search, study)
    if searched is not None:
        study = study.model_copy(update={"vary": {**study.vary, searched.name: searched.values}})
    graph = spell_out(study, config.study, out, pilot=config.pilot)
    if config.pilot is not None and graph.nodes.keys() == spell_out(study, config.study, out).nodes.keys():
        raise StageError(
            f"--pilot {100 * config.pilot:g}%: nothing in {config.study} is made less by it; it takes a share of "
            "imported data, of a demo's samples, and of max_steps"
        )
    check_names(study, config.study, graph)
    at_work = _AtWork(study, config, graph, out)
    take_what_is_there(at_work.progress, list(graph.nodes.values()), out)
    anew = _again(config.again, at_work.progress, graph, out)
    cells = graph.of_seeds(study.seeds)
    if config.dry_run:
        return Planned(plan_text(graph, cells, at_work.progress.records))
    with _lock(out):
        again.move_aside(anew, out)
        _tell_the_same(cells)
        if searched is not None:
            cells = at_work.search(searched, cells)
        while True:
            at_work.run(cells)
            results = at_work.results(cells)
            further = _further(graph, cells, results)
            if not further or at_work.progress.over:
                return Studied(results)
            log.info("orders are open: %d more cells", len(further) - len(cells))
            cells = further


def _again(which: str | None, progress: Progress, graph: Graph, out: str) -> list[str]:
    """What is run again, which is no longer taken for there; without --again tell of what might be."""
    taken = {name: progress.records[name] for name in progress.taken}
    if which is None:
        line = again.told(taken.values())
        if line is not None:
            log.warning("%s", line)
        return []
    names = again.asked_for(which, taken, graph.nodes, out)
    log.info("%s", again.moved_text(names, graph.nodes))
    for name in names:
        progress.forget(name)
    return names


@contextmanager
def _lock(out: str) -> Iterator[None]:
    """Keep a second `vig study` from the same folder of this machine. Raises StageError where one is at work."""
    folder = Path(out.removeprefix("file://"))
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise StageError(f"{out}: another `vig study` is at work here; let it end, or choose another --out") from error
    try:
        yield
    finally:
        lock.release()


class _AtWork:
    """A study while it runs."""

    def __init__(self, study: StudyFile, config: StudyConfig, graph: Graph, out: str) -> None:
        self._study, self._config, self._graph, self._out = study, config, graph, out
        self._trials: tuple[Tried, ...] = ()
        self.progress = Progress()

    def search(self, searched: Searched, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """Short runs of the first seed's cells with these values, the better half of each arm longer; the cells, of all
        seeds, that are worth whole ones, and those of arms that name the option themselves."""
        first, config, study = cells[0].seed, self._config, self._study
        tried = [cell for cell in cells if cell.seed == first and searched.name in cell.axes]
        if not tried:
            raise StageError(f"--search {searched.name}: every arm has its own; leave it out of one")
        metric, higher_is_better = headline(study, self._graph, config.study)
        needed = before_training(tried, self._graph)
        with machines(config.address, actors=config.workers or os.cpu_count() or 1) as ray_has:
            at_once = config.workers or ray_has.cores
            with RowProgress("search", len(needed), units="stages") as bar:
                run_nodes(
                    self.progress, needed, self._out, ray_has, at_once=at_once, budget=study.budget,
                    told=lambda record: bar.say(_line(record)), look=lambda: None,
                )  # fmt: skip
            missing = [node.name for node in needed if not self.progress.done(node.name)]
            if missing:
                why = self.progress.over or self.progress.records.get(missing[0])
                raise StageError(f"--search: {missing[0]}: {why.told if isinstance(why, Record) else why or 'not run'}")
            for arm in dict.fromkeys(cell.arm for cell in tried):
                log.info("searching %s: %d values of %s", searched.name, len(searched.values), arm)
                trials = [
                    trial_of(cell, study, config.study, self._graph, self._out, config.pilot)
                    for cell in tried
                    if cell.arm == arm
                ]
                self._trials += tuple(
                    search(
                        trials, self._out, metric, higher_is_better=higher_is_better, gpus=bool(ray_has.gpus),
                        at_once=at_once,
                    )
                )  # fmt: skip
        for each in self._trials:
            log.info("%s: %s of %s at %s", each.label, metric, RUNGS[: len(each.rungs)], each.rungs)
        kept = {each.label for each in self._trials if each.survived}
        take_what_is_there(self.progress, list(self._graph.nodes.values()), self._out)
        return tuple(cell for cell in cells if searched.name not in cell.axes or cell.label in kept)

    def run(self, cells: Sequence[Cell]) -> None:
        """Run these cells; the results so far are written whenever an evaluation ends."""
        nodes = in_order(cells, self._graph.nodes)
        with RowProgress("study", len(nodes), units="stages") as bar:
            there = sum(self.progress.done(node.name) for node in nodes)
            bar.say(f"{len(nodes):,} stages" + (f", {there:,} of them are there" if there else ""))
            if there < len(nodes):
                self._run(nodes, cells, bar)
        self.results(cells)

    def _run(self, nodes: Sequence[Node], cells: Sequence[Cell], bar: RowProgress) -> None:
        def told(record: Record) -> None:
            bar.say(_line(record))
            if record.stage == LAST:
                results = self.results(cells)
                for cell in cells if record.done else ():
                    if cell.last == record.name:
                        bar.say(cell_text(results, cell))

        def look() -> None:
            done = sum(node.name in self.progress.records for node in nodes)
            bar.update(done, f"{len(self.progress.running)} running")

        config = self._config
        with machines(config.address, actors=config.workers or os.cpu_count() or 1) as ray_has:
            run_nodes(
                self.progress,
                nodes,
                self._out,
                ray_has,
                at_once=config.workers or ray_has.cores,
                budget=self._study.budget,
                told=told,
                look=look,
            )

    def results(self, cells: Sequence[Cell]) -> Results:
        """The results of these cells so far, which OUT/study.json has then."""
        progress = self.progress
        missing = {}
        for cell in cells:
            if not progress.done(cell.last):
                ended = [name for name in cell.nodes if name in progress.records and not progress.done(name)]
                why = f"{ended[0]} failed" if ended else progress.over or "not run yet"
                missing[f"{cell.label}, seed {cell.seed}"] = why
        wanted = list(dict.fromkeys(name for cell in cells for name in cell.nodes))
        records = {name: progress.records[name] for name in wanted if name in progress.records}
        pilot = None if self._config.pilot is None else 100 * self._config.pilot
        results = gather(self._study, self._graph, cells, records, self._out, missing, self._cost(wanted), pilot)
        results = replace(results, trials=self._trials)
        text = json.dumps(as_json(results), indent=2, ensure_ascii=False)
        write_bytes(join(self._out, RESULTS), f"{text}\n".encode())
        return results

    def _cost(self, wanted: Sequence[str]) -> dict[str, Any]:
        """What these stages took, and how many ran now."""
        progress = self.progress
        hours, gpu_hours = progress.hours()
        by_stage: dict[str, dict[str, float]] = {}
        for name in wanted:
            if progress.done(name):
                one = by_stage.setdefault(self._graph.nodes[name].stage, {"runs": 0, "seconds": 0.0})
                one["runs"] += 1
                one["seconds"] += progress.records[name].seconds
        ran = [name for name in wanted if name in progress.records and name not in progress.taken]
        return {"hours": hours, "gpu_hours": gpu_hours, "stages": len(wanted), "ran": len(ran), "by_stage": by_stage}


def _line(record: Record) -> str:
    first = record.told.splitlines()[0] if record.told else ""
    if not record.done:
        return f"{record.name} failed: {first}"
    return f"{record.name}: {record.seconds:.0f} s"


def _further(graph: Graph, cells: Sequence[Cell], results: Results) -> tuple[Cell, ...]:
    """The cells, and of each arm in an open order those of all further seeds; () where nothing is open, or where
    another seed is the same run."""
    open_labels = {
        label
        for claim in results.claims
        for step in claim.steps
        if step.said == "open"
        for label in (step.low, step.high)
    }
    have = {(cell.label, cell.seed) for cell in cells}
    runs = {cell.last for cell in cells}
    more = [cell for cell in graph.cells if cell.label in open_labels and (cell.label, cell.seed) not in have]
    if not any(cell.last not in runs for cell in more):
        return ()
    wanted = have | {(cell.label, cell.seed) for cell in more}
    return tuple(cell for cell in graph.cells if (cell.label, cell.seed) in wanted)


def _tell_the_same(cells: Sequence[Cell]) -> None:
    """Warn of cells of one seed that are the same run."""
    seen: dict[tuple[int, str], str] = {}
    for cell in cells:
        other = seen.setdefault((cell.seed, cell.last), cell.label)
        if other != cell.label:
            log.warning(
                "%s and %s are the same run: nothing that differs between them has an effect", other, cell.label
            )
