"""The stable interface for notebooks and scripts: score, select, inspect, report, evaluate.

    from vig_ray.api import evaluate, inspect, report, score, select

    scores = score(rows, "llava-hf/llava-1.5-7b-hf", reference="blur,blind")
    chosen = select(scores, p=70)
    inspect(scores, scores.table()["sample_key"][0])
    report(scores, selection=chosen)
    evaluate({"before": "runs/full/model", "after": "runs/vig/model"}, "exact", data="mine.jsonl", out="runs/eval")

Options have the names that the command has: `vig score --too-long truncate` is `score(..., too_long="truncate")`.
Whatever is wrong raises `StageError`, in one line. Importing this imports neither Ray nor torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from vig_ray.arguments import explained
from vig_ray.errors import StageError
from vig_ray.results import Evaluation, Report, Scores, Selection
from vig_ray.stage import StageConfig
from vig_ray.storage import absolute, join, scheme_of

if TYPE_CHECKING:
    from vig_ray.report.inspect import Inspected

__all__ = [
    "Evaluation", "Report", "Scores", "Selection", "StageError", "evaluate", "inspect", "report", "score", "select",
]  # fmt: skip

C = TypeVar("C", bound=StageConfig)

_RUNS = "vig-runs"
# Options that don't decide what a score is: a call with others goes on with the same folder.
_HOW = {
    "data", "out", "device", "workers", "prepare_workers", "batch_tokens", "window", "rows_per_file", "address",
    "overwrite", "strict",
}  # fmt: skip
_HOW_TO_SELECT = {"scores", "out", "samples", "rows_per_file", "address", "overwrite"}


def score(
    data: Any,
    model: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    in_process: bool | None = None,
    **options: Any,
) -> Scores:
    """Score every answer token of a dataset with and without its image, as `vig score` does.

    `data`: a path or URI of any format that docs/data.md lists, a list of dicts, a datasets.Dataset, a pandas or polars
    data frame, a pyarrow table or a Ray dataset, with rows of any of those layouts. Images may be PIL images, bytes, or
    paths, which start from the current directory and may not leave it, or from the folder `images`. Rows that aren't in
    files are written to OUT/data first; the key of each is its number, such as data/0000000012.

    `model`: a checkpoint's folder or a hub id.

    `out`: the folder, or URI, that gets samples/ and scores/. By default a folder in vig-runs/ under the current
    directory, named for the data, the model and the options: the same call finds what it has scored before, another
    makes another folder. Nothing is deleted when Python ends.

    `in_process`: score in this very process, without starting a Ray. By default where there are fewer than 64 samples
    and no Ray is in use.

    `options`: those of `vig score`. Raises StageError.
    """
    from vig_ray.dataset.in_memory import NAME, in_memory, write_rows
    from vig_ray.scoring.config import ScoreConfig

    if not isinstance(model, str | os.PathLike):
        raise StageError(f"model: takes a checkpoint's folder or a hub id, not a {type(model).__name__}")
    given = {"model": os.fspath(model), **options}
    where, rows, digest = _location(data), None, None
    if where is None:
        rows = in_memory(data)
        given = {"name": NAME, "images": os.getcwd(), **given}
    config = _config(ScoreConfig, {**given, "data": where or NAME, "out": os.fspath(out) if out is not None else "."})
    if rows is not None:
        digest = rows.digest()
    if out is None:
        if rows is not None and digest is None:
            raise StageError("out: needed for a Ray dataset, whose rows can't be told from others without reading them")
        told_apart = _digest(digest or _spelled(where), _spelled(config.model), _decides(config))
        out = join(_RUNS, f"{_called(where or config.name)}-{told_apart}")
    out = os.fspath(out)
    if rows is not None:
        where = write_rows(rows, out, digest, overwrite=config.overwrite)
    from vig_ray.scoring import job

    summary = job.run(_config(ScoreConfig, {**given, "data": where, "out": out}), in_process=in_process)
    return Scores(summary.directory, summary)


def select(
    scores: Scores | str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None, **options: Any
) -> Selection:
    """Choose samples and tokens to train on from their scores, as `vig select` does.

    `scores`: what `score` returned, or where `vig score` wrote. `out`: the folder, or URI, that gets selection/; by
    default one in selections/ beside the scores, named for the strategy and the options, so that several selections
    lie side by side and the same call finds its own again. `options`: those of `vig select`: strategy, p, ... Several
    `p` are compared, and nothing is selected. Raises StageError.
    """
    from vig_ray.selection import job
    from vig_ray.selection.config import SelectConfig

    of = _scores(scores)
    config = _config(SelectConfig, {"scores": of.directory, "out": "." if out is None else os.fspath(out), **options})
    if out is None:
        decides = config.model_dump(mode="json", exclude=_HOW_TO_SELECT)
        place = join(_beside(of.directory), "selections", f"{config.strategy}-{_digest(decides)}")
        config = config.model_copy(update={"out": place})
    return Selection(job.run(config))


def inspect(scores: Scores | str | os.PathLike[str], key: Any, **options: Any) -> Inspected:
    """One sample, its answer coloured by token gain: HTML with its images in a notebook, text elsewhere.

    `key`: its `sample_key`, as text or as a pyarrow table holds it. `options`: those of `vig inspect`: reference,
    samples, model. Raises StageError.
    """
    from vig_ray.report import inspect as stage

    return stage.run(_config(stage.InspectConfig, {"key": str(key), "scores": _scores(scores).directory, **options}))


def report(
    scores: Scores | str | os.PathLike[str],
    *,
    selection: Selection | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Report:
    """What the scores, and a selection of them, look like, as `vig report` shows it: one HTML file.

    `selection`: what `select` returned, or where `vig select` wrote; by default the one beside the scores, if there is
    one. `out`: the HTML file; by default report.html beside the scores, which a report that is there gives way to.
    `options`: those of `vig report`. Raises StageError.
    """
    from vig_ray.report import job

    of = _scores(scores)
    if isinstance(selection, Selection):
        selection = selection.directory
    where = join(_beside(of.directory), "report.html") if out is None else os.fspath(out)
    chosen = None if selection is None else os.fspath(selection)
    written = job.run(_config(job.ReportConfig, {"scores": of.directory, "out": where, "selection": chosen, **options}))
    return Report(written.out, written.numbers, written.text())


def evaluate(
    models: Mapping[str, str | os.PathLike[str]] | Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    tasks: str | Sequence[str],
    *,
    data: Mapping[str, str | os.PathLike[str]] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    in_process: bool = False,
    **options: Any,
) -> Evaluation:
    """Ask models the questions of tasks and compare what they answer, as `vig eval` does.

    `models`: checkpoints' folders or hub ids, by the names that they have in the table, or without names. `data`: each
    task's files, by its name; for one task the path alone does. `out`: the folder, or URI, that gets evaluation/; given
    again, what is there isn't asked again. `in_process`: in this very process, without starting a Ray: for a few
    questions. `options`: those of `vig eval`. Raises StageError.
    """
    from vig_ray.evaluation import job
    from vig_ray.evaluation.config import EvalConfig

    if isinstance(models, str | os.PathLike):
        models = [models]
    if isinstance(models, Mapping):
        named = [f"{name}={os.fspath(model)}" for name, model in models.items()]
    else:
        named = [os.fspath(model) for model in models]
    files = {"": data} if isinstance(data, str | os.PathLike) else data
    given = {
        "model": named,
        "tasks": tasks,
        "data": {task: os.fspath(path) for task, path in files.items()},
        "out": os.fspath(out),
    }
    summary = job.run(_config(EvalConfig, given | options), in_process=in_process)
    return Evaluation(summary.directory, summary.json(), summary.text())


def _config(config_class: type[C], options: dict[str, Any]) -> C:
    """A stage's config. Raises StageError, with every wrong option by its name."""
    try:
        return config_class(**options)
    except ValidationError as error:
        raise StageError("; ".join(explained(error, str))) from error


def _location(data: Any) -> str | list[str] | None:
    """The path or URI, or several, that `data` is; None for rows in memory."""
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    if isinstance(data, list) and data and all(isinstance(each, str | os.PathLike) for each in data):
        return [os.fspath(each) for each in data]
    return None


def _called(where: Any) -> str:
    """A name for the folder of what is scored: the last part of its path or URI, of the first of several."""
    last = str(where if isinstance(where, str) else where[0]).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w-]+", "-", last.partition(".")[0]).strip("-") or "data"


def _scores(given: Scores | str | os.PathLike[str]) -> Scores:
    return given if isinstance(given, Scores) else Scores(given)


def _beside(directory: str) -> str:
    """The folder that a stage's output lies in."""
    return directory.rstrip("/").rpartition("/")[0] or (absolute(directory).rpartition("/")[0] or "/")


def _spelled(where: Any) -> Any:
    """A location as it is the same from any folder: local ones in full where they are there, so that hub ids stay."""
    if isinstance(where, str):
        path = os.path.abspath(os.path.expanduser(where))
        return path if not scheme_of(where) and os.path.exists(path) else where
    return where if where is None else [_spelled(each) for each in where]


def _decides(config: StageConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=_HOW | {"model"})


def _digest(*facts: Any) -> str:
    """10 hex digits that tell these JSON values from others."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:10]
