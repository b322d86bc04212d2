"""What all models answered, compared and written: OUT/evaluation/summary.json, and attention.parquet of curves."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.evaluation.lmms.table import InTable
from vig_ray.evaluation.outcomes import compared, read_marked
from vig_ray.evaluation.plan import Plan
from vig_ray.evaluation.questions import STAGE
from vig_ray.evaluation.summary import EvalSummary
from vig_ray.stage import claim
from vig_ray.storage import filesystem, join, write_bytes

SUMMARY = "summary.json"
"""The table as JSON, in OUT/evaluation."""
ATTENTION = "attention.parquet"
"""Curves over layers, beside it."""


def summarised(plan: Plan, lmms: InTable) -> EvalSummary:
    """Compute the numbers, and write them to summary.json."""
    config, names = plan.config, [model.name for model in plan.named]
    tasks, curves, told = [], [], list[str]()
    for asked in plan.tasks:
        marked, task = {name: read_marked(join(plan.directory, name), asked.name) for name in names}, asked.begun()
        tasks.append(compared(task, marked, plan.baseline, draws=config.draws, seed=config.seed))
        if hasattr(task, "told"):
            told += task.told(marked, plan.baseline)
        if hasattr(task, "curves"):
            curves.append(task.curves(marked, plan.baseline, draws=config.draws, seed=config.seed))
    summary = EvalSummary(
        plan.directory,
        {model.name: model.checkpoint for model in plan.named},
        plan.baseline,
        (*tasks, *lmms.tasks),
        config.draws,
        config.seed,
        (*told, *lmms.told),
        lmms.failed,
    )
    output = claim(
        join(plan.directory, "summary"),
        STAGE,
        {},
        overwrite=True,
        folders=(),
        files=[SUMMARY, ATTENTION],
        resumes=False,
        again=True,
    )
    output.begin(config)
    text = json.dumps(summary.json(), indent=1, ensure_ascii=False)
    write_bytes(join(plan.directory, SUMMARY), f"{text}\n".encode())
    if curves:
        fs, path = filesystem(join(plan.directory, ATTENTION))
        pq.write_table(pa.concat_tables(curves), path, filesystem=fs)
    output.commit(config)
    return summary
