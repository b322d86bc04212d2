"""`vig study`: read the file, spell out its graph, run what isn't there, and say what came out.

OUT/runs/STAGE-1f2e3d4c5b/   a stage's own output, study.json (how it ended, its command) and log.txt
OUT/study.json               the results, as `vig report --study` takes them
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from vig_ray.cluster import machines
from vig_ray.errors import StageError
from vig_ray.evaluation.tasks import task
from vig_ray.progress import RowProgress
from vig_ray.storage import absolute, check_writable, join, scheme_of, write_bytes
from vig_ray.study import file as files
from vig_ray.study.config import StudyConfig
from vig_ray.study.file import StudyFile
from vig_ray.study.graph import Cell, Graph, spell_out
from vig_ray.study.record import Record
from vig_ray.study.results import Results, asked_for, gather
from vig_ray.study.results_json import as_json
from vig_ray.study.runner import Progress, in_order, take_what_is_there
from vig_ray.study.runner import run as run_nodes
from vig_ray.study.text import plan_text, results_text

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
    study = _chosen(files.read(config.study), config)
    out = absolute(config.out)
    check_writable(out)
    graph = spell_out(study, config.study, out)
    _check_numbers(study, config.study, graph)
    cells = graph.of_seeds(study.seeds)
    progress = Progress()
    take_what_is_there(progress, list(graph.nodes.values()), out)
    if config.dry_run:
        return Planned(plan_text(graph, cells, progress.records))
    with _lock(out):
        _tell_the_same(cells)
        results = _carried_out(study, config, graph, cells, progress, out)
        write_bytes(join(out, RESULTS), (json.dumps(as_json(results), indent=2, ensure_ascii=False) + "\n").encode())
    return Studied(results)


def _check_numbers(study: StudyFile, path: str, graph: Graph) -> None:
    """Raise StageError for a number that no task has. Parts of a task, and those of lmms-eval, are known afterwards."""
    names = dict.fromkeys(
        name for node in graph.nodes.values() if node.verb == "eval" for name in _tasks(node.options["tasks"])
    )
    known = {name: [metric.name for metric in task(name).metrics_of] for name in names if not name.startswith("lmms:")}
    for asked in asked_for(study):
        name, dot, metric = asked.rpartition(".")
        if not dot or (name in known and metric not in known[name]):
            there = known.get(name) or [f"{each}.{one}" for each, metrics in known.items() for one in metrics]
            raise StageError(f"{path}: {asked}: no such number; there are {', '.join(there)}")
        if not any(name == each or name.startswith(each.partition(":")[0]) for each in names):
            raise StageError(f"{path}: {asked}: stages.eval.tasks has no {name}; there are {', '.join(names)}")


def _tasks(given: Any) -> list[str]:
    return [each.strip() for each in given.split(",")] if isinstance(given, str) else list(given)


def _chosen(study: StudyFile, config: StudyConfig) -> StudyFile:
    """The study with what the command line leaves of it. Raises StageError."""
    changed: dict[str, Any] = {}
    if config.seeds is not None:
        if config.seeds > len(study.all_seeds):
            raise StageError(f"--seeds {config.seeds}: {config.study} has {len(study.all_seeds)}")
        changed |= {"seeds": study.all_seeds[: config.seeds], "more_seeds": None}
    if config.arms is not None:
        names = [name.strip() for name in config.arms.split(",")]
        for name in names:
            if name not in study.arms:
                raise StageError(f"--arms {name}: no such arm; {config.study} has {', '.join(study.arms)}")
        kept = {name: changes for name, changes in study.arms.items() if name in names}
        orders = [text for text in study.orders
                  if all(arm.partition(" ")[0] in kept for arm in files.Order.parse(text).arms)]  # fmt: skip
        changed |= {"arms": kept, "orders": tuple(orders)}
        if study.baseline not in kept:
            changed["baseline"] = None
    return study.model_copy(update=changed)


@contextmanager
def _lock(out: str) -> Iterator[None]:
    """Keep a second `vig study` from the same folder of this machine. Raises StageError where one is at work."""
    if scheme_of(out) not in ("", "file"):
        yield
        return
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


def _carried_out(
    study: StudyFile, config: StudyConfig, graph: Graph, cells: Sequence[Cell], progress: Progress, out: str
) -> Results:
    """Run the cells, and further seeds of what isn't settled by them."""
    cores = os.cpu_count() or 1
    with machines(config.address, actors=config.workers or cores) as ray_has:
        at_once = config.workers or ray_has.cores
        while True:
            nodes = in_order(cells, graph.nodes)
            with RowProgress("study", len(nodes), units="stages", done=0) as bar:
                _announce(bar, nodes, progress)

                def told(record: Record, bar: RowProgress = bar) -> None:
                    bar.say(_line(record))

                def look(bar: RowProgress = bar, nodes: Sequence[Any] = nodes) -> None:
                    done = sum(node.name in progress.records for node in nodes)
                    bar.update(done, f"{len(progress.running)} running")

                run_nodes(progress, nodes, out, ray_has, at_once=at_once, budget=study.budget, told=told, look=look)
            results = _results(study, graph, cells, progress, out)
            further = _further(graph, cells, results)
            if not further or progress.over:
                return results
            log.info("orders are open: %d more cells", len(further) - len(cells))
            cells = further


def _announce(bar: RowProgress, nodes: Sequence[Any], progress: Progress) -> None:
    there = sum(progress.done(node.name) for node in nodes)
    bar.say(f"{len(nodes):,} stages" + (f", {there:,} of them are there" if there else ""))


def _line(record: Record) -> str:
    first = record.told.splitlines()[0] if record.told else ""
    if not record.done:
        return f"{record.name} failed: {first}"
    return f"{record.name}: {record.seconds:.0f} s"


def _results(study: StudyFile, graph: Graph, cells: Sequence[Cell], progress: Progress, out: str) -> Results:
    missing = {}
    for cell in cells:
        if not progress.done(cell.last):
            failed = next((name for name in cell.nodes if name in progress.records and not progress.done(name)), None)
            missing[f"{cell.label}, seed {cell.seed}"] = f"{failed} failed" if failed else progress.over or "not run"
    hours, gpu_hours = progress.hours()
    wanted = dict.fromkeys(name for cell in cells for name in cell.nodes)
    ran = [name for name in wanted if name in progress.records and name not in progress.taken]
    cost = {
        "hours": hours, "gpu_hours": gpu_hours, "stages": len(wanted), "ran": len(ran),
        "by_stage": _by_stage(graph, progress, wanted),
    }  # fmt: skip
    chosen = {name: progress.records[name] for name in wanted if name in progress.records}
    return gather(study, graph, cells, chosen, out, missing, cost)


def _by_stage(graph: Graph, progress: Progress, wanted: Any) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in wanted:
        if progress.done(name):
            one = found.setdefault(graph.nodes[name].stage, {"runs": 0, "seconds": 0.0})
            one["runs"] += 1
            one["seconds"] += progress.records[name].seconds
    return found


def _further(graph: Graph, cells: Sequence[Cell], results: Results) -> tuple[Cell, ...]:
    """The cells, and of each arm in an open order those of one more seed; () where nothing is open or no seed left."""
    open_labels = {
        label
        for claim in results.claims
        for step in claim.steps
        if step.said == "open"
        for label in (step.low, step.high)
    }
    have = {(cell.label, cell.seed) for cell in cells}
    more = []
    for label in open_labels:
        left = [cell for cell in graph.cells if cell.label == label and (cell.label, cell.seed) not in have]
        more += [cell for cell in left if cell.seed == min(each.seed for each in left)]
    if not more:
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
