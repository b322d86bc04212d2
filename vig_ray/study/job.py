"""`vig study`: read the file, spell out its graph, run what isn't there, and say what came out.

OUT/runs/STAGE-1f2e3d4c5b/           a stage's own output, study.json (how it ended, its command) and log.txt
OUT/study.json                       the results so far, as `vig report --study` takes them
OUT/pilot-2-percent/study.json       those of a pilot
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from vig_ray.errors import StageError
from vig_ray.storage import absolute, check_writable, scheme_of
from vig_ray.study import again
from vig_ray.study import file as files
from vig_ray.study.at_work import AtWork
from vig_ray.study.chosen import check_names, chosen
from vig_ray.study.config import StudyConfig
from vig_ray.study.file import StudyFile
from vig_ray.study.graph import Cell, Graph, spell_out
from vig_ray.study.plan import plan_text
from vig_ray.study.rates import Rates
from vig_ray.study.results import Results
from vig_ray.study.results_json import as_json
from vig_ray.study.runner import Progress, take_what_is_there
from vig_ray.study.search import parse
from vig_ray.study.text import results_text

log = logging.getLogger(__name__)

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
    check_out(config.out)
    folder = absolute(config.paths_from) if config.paths_from is not None else files.folder_of(config.study)
    config = config.model_copy(update={"paths_from": folder})
    whole = files.read(config.study)
    study = chosen(whole, config)
    out = absolute(config.out)
    check_writable(out)
    searched = None if config.search is None else parse(config.search, study)
    if searched is not None:
        study, whole = (
            each.model_copy(update={"vary": {**each.vary, searched.name: searched.values}}) for each in (study, whole)
        )
    graph = spell_out(study, config.study, out, pilot=config.pilot, folder=folder)
    if (
        config.pilot is not None
        and graph.nodes.keys() == spell_out(study, config.study, out, folder=folder).nodes.keys()
    ):
        raise StageError(
            f"--pilot {100 * config.pilot:g}%: nothing in {config.study} is made less by it; it takes a share of "
            "imported data, of a demo's samples, and of max_steps"
        )
    check_names(study, config.study, graph)
    whole, whole_graph = _whole(whole, study, config, graph, out)
    rates = Rates.found(whole_graph.nodes, out, config.rates)
    at_work = AtWork(study, config, graph, out, whole, whole_graph, rates)
    take_what_is_there(at_work.progress, list(whole_graph.nodes.values()), out)
    anew = _again(config.again, at_work.progress, graph, out)
    cells = graph.of_seeds(study.seeds)
    if config.dry_run:
        return Planned(plan_text(graph, cells, at_work.progress.records, at_work.rates))
    with _lock(out):
        again.move_aside(anew, out)
        _tell_the_same(cells)
        others = len(at_work.with_those_there(cells)) - len(cells)
        if others:
            log.info("with the results of %d cells of other arms or seeds that are there", others)
        if searched is not None:
            cells = at_work.search(searched, cells)
        while True:
            at_work.run(cells)
            # Of these alone: further seeds that are there by half would be one more look at what is open.
            further = _further(graph, cells, at_work.gathered(cells))
            if not further or at_work.progress.over:
                return Studied(at_work.results(cells))
            log.info("orders are open: %d more cells", len(further) - len(cells))
            cells = further


def check_out(out: str) -> None:
    """Raise StageError for an --out that isn't a folder."""
    if scheme_of(out) not in ("", "file"):
        raise StageError(f"--out {out}: a study's stages share a folder; name one that all machines see")


def _whole(whole: StudyFile, study: StudyFile, config: StudyConfig, graph: Graph, out: str) -> tuple[StudyFile, Graph]:
    """The whole study and its graph, or, where what --arms leaves out can't be spelled out, what is run of it."""
    if whole.arms.keys() == study.arms.keys() and whole.all_seeds == study.all_seeds:
        return whole, graph
    try:
        return whole, spell_out(whole, config.study, out, pilot=config.pilot, folder=config.paths_from)
    except StageError as error:
        log.warning("results of other arms that are there are left out of study.json: %s", error)
        return study, graph


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
