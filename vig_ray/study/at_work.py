"""A study while it runs: its stages on a Ray, what is told of them meanwhile, and the results so far."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from vig_ray.cluster import Machines, machines
from vig_ray.errors import StageError
from vig_ray.progress import RowProgress
from vig_ray.storage import join, write_bytes
from vig_ray.study.chosen import headline
from vig_ray.study.config import StudyConfig
from vig_ray.study.file import StudyFile
from vig_ray.study.graph import LAST, Cell, Graph, Node
from vig_ray.study.live import Table
from vig_ray.study.rates import Rates
from vig_ray.study.record import Record
from vig_ray.study.results import RUNGS, Results, Tried, gather
from vig_ray.study.results_json import as_json
from vig_ray.study.runner import Progress, in_order, take_what_is_there
from vig_ray.study.runner import run as run_nodes
from vig_ray.study.search import Searched, before_training, search, trial_of
from vig_ray.study.stages import KINDS
from vig_ray.study.text import cell_text
from vig_ray.terminal import can_redraw

log = logging.getLogger(__name__)

RESULTS = "study.json"


def results_folder(out: str, pilot: float | None) -> str:
    """Where study.json lies: in OUT, that of a pilot of so many per cent in a folder of its own there."""
    return out if pilot is None else join(out, f"pilot-{pilot:g}-percent")


class AtWork:
    """A study while it runs. `study`, `graph`: what the command asks for of the file, which is `whole` and
    `whole_graph`."""

    def __init__(
        self,
        study: StudyFile,
        config: StudyConfig,
        graph: Graph,
        out: str,
        whole: StudyFile,
        whole_graph: Graph,
        rates: Rates,
    ) -> None:
        self._study, self._config, self._graph, self._out = study, config, graph, out
        self._whole, self._whole_graph = whole, whole_graph
        self._trials: tuple[Tried, ...] = ()
        self.progress, self.rates = Progress(), rates

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
                    trial_of(cell, study, config.study, self._graph, self._out, config.pilot, config.paths_from)
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
        there = sum(self.progress.done(node.name) for node in nodes)
        told = f"{len(nodes):,} stages" + (f", {there:,} of them are there" if there else "")
        if there == len(nodes):
            print(told, file=sys.stderr, flush=True)
        elif can_redraw(sys.stdout):
            results = self.gathered(self.with_those_there(cells))
            with Table(cells, nodes, self.progress, self.rates, results) as table:
                self._run(nodes, cells, table)
        else:
            with Lines(cells, nodes, self.progress) as lines:
                lines.say(told)
                self._run(nodes, cells, lines)
        self.results(cells)

    def _run(self, nodes: Sequence[Node], cells: Sequence[Cell], shown: Table | Lines) -> None:
        def told(record: Record) -> None:
            shown.ended(record, self.results(cells) if record.stage == LAST else None)

        config = self._config
        with machines(config.address, actors=config.workers or os.cpu_count() or 1) as ray_has:
            shown.lanes = config.workers or ray_has.cores
            if _on_cpus_for_want_of_gpus(nodes, ray_has, self.progress):
                shown.say("no GPU on this cluster now: stages run on CPUs (device: cuda in the file waits for GPUs)")
            run_nodes(
                self.progress,
                nodes,
                self._out,
                ray_has,
                at_once=shown.lanes,
                budget=self._study.budget,
                told=told,
                look=shown.look,
            )

    def with_those_there(self, cells: Sequence[Cell]) -> list[Cell]:
        """These cells, and those of the whole study that earlier commands have brought to their end: what `--arms` and
        `--seeds` leave out isn't run, but its results stay. Another seed of a run that all seeds share isn't one."""
        asked = {(cell.label, cell.seed) for cell in cells}
        theirs = {(cell.label, cell.last) for cell in cells}
        return [
            cell
            for cell in self._whole_graph.cells
            if (cell.label, cell.seed) in asked
            or (self.progress.done(cell.last) and (cell.label, cell.last) not in theirs)
        ]

    def results(self, cells: Sequence[Cell]) -> Results:
        """The results of these cells so far and of those that are there, which study.json has then."""
        results = self.gathered(self.with_those_there(cells))
        text = json.dumps(as_json(results), indent=2, ensure_ascii=False)
        write_bytes(join(results.out, RESULTS), f"{text}\n".encode())
        return results

    def gathered(self, cells: Sequence[Cell]) -> Results:
        """The results of these cells and no others."""
        progress, missing = self.progress, {}
        for cell in cells:
            if not progress.done(cell.last):
                ended = [name for name in cell.nodes if name in progress.records and not progress.done(name)]
                why = f"{ended[0]} failed" if ended else progress.over or "not run yet"
                missing[f"{cell.label}, seed {cell.seed}"] = why
        wanted = list(dict.fromkeys(name for cell in cells for name in cell.nodes))
        records = {name: progress.records[name] for name in wanted if name in progress.records}
        pilot = None if self._config.pilot is None else 100 * self._config.pilot
        folder = results_folder(self._out, pilot)
        results = gather(self._whole, self._whole_graph, cells, records, folder, missing, self._cost(wanted), pilot)
        return replace(results, trials=self._trials)

    def _cost(self, wanted: Sequence[str]) -> dict[str, Any]:
        """What these stages took, and how many ran now."""
        progress = self.progress
        hours, gpu_hours = progress.hours()
        by_stage: dict[str, dict[str, float]] = {}
        for name in wanted:
            if progress.done(name):
                one = by_stage.setdefault(self._whole_graph.nodes[name].stage, {"runs": 0, "seconds": 0.0})
                one["runs"] += 1
                one["seconds"] += progress.records[name].seconds
        ran = [name for name in wanted if name in progress.records and name not in progress.taken]
        return {"hours": hours, "gpu_hours": gpu_hours, "stages": len(wanted), "ran": len(ran), "by_stage": by_stage}


class Lines:
    """What is told of a study where there is no terminal: a line a stage, and one a cell, as they end."""

    def __init__(self, cells: Sequence[Cell], nodes: Sequence[Node], progress: Progress) -> None:
        self._cells, self._nodes, self._progress = cells, nodes, progress
        self._bar = RowProgress("study", len(nodes), units="stages")
        self.lanes: int | None = None

    def __enter__(self) -> Lines:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, traceback)

    def say(self, text: str) -> None:
        """A line of its own."""
        self._bar.say(text)

    def ended(self, record: Record, results: Results | None) -> None:
        """A stage has ended, with the results then where it is an evaluation."""
        self.say(_line(record))
        if results is not None and record.done:
            for cell in self._cells:
                if cell.last == record.name:
                    self.say(cell_text(results, cell))

    def look(self) -> None:
        """Say now and then how far it is."""
        done = sum(node.name in self._progress.records for node in self._nodes)
        self._bar.update(done, f"{len(self._progress.handed)} running")


def _on_cpus_for_want_of_gpus(nodes: Sequence[Node], ray_has: Machines, progress: Progress) -> bool:
    """Whether a stage that is to run would take a GPU, if the cluster had any."""
    return (
        ray_has.cores is None
        and not ray_has.gpus
        and any(
            KINDS[node.verb].computes and node.options.get("device", "auto") == "auto" and not progress.done(node.name)
            for node in nodes
        )
    )


def _line(record: Record) -> str:
    first = record.told.splitlines()[0] if record.told else ""
    if not record.done:
        return f"{record.name} failed: {first}"
    return f"{record.name}: {record.seconds:.0f} s"
