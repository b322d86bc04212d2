"""`vig eval`: what models answer to the questions of tasks, and a table of what that is worth.

    a task's files  ->  questions/TASK  ->  prepare  ->  answer  ->  mark  ->  OUT/evaluation/MODEL
                                            (CPUs)      (engines)   (CPUs)

lmms-eval's tasks (`lmms:...`) come after them, in processes of their own: see `vig_ray.evaluation.lmms`.

One run of Ray Data a model, over the questions of all tasks, one model after the other. A run that was killed goes on
where it was; a model that is finished isn't asked again, and gets the answers of tasks that it lacks.
"""

from __future__ import annotations

import logging

from vig_ray.cluster import warn_of_few_cpus
from vig_ray.errors import StageError
from vig_ray.evaluation.config import EvalConfig
from vig_ray.evaluation.lmms.asked import of_lmms
from vig_ray.evaluation.lmms.run import run_lmms
from vig_ray.evaluation.lmms.table import InTable, in_table
from vig_ray.evaluation.model_run import CPUS_OF_RAY_DATA, answer, claim_answers, machines_for
from vig_ray.evaluation.plan import Plan, check
from vig_ray.evaluation.questions import write
from vig_ray.evaluation.summarising import summarised
from vig_ray.evaluation.summary import EvalSummary
from vig_ray.this_process import this_process

log = logging.getLogger(__name__)


def run(config: EvalConfig, *, in_process: bool = False) -> EvalSummary:
    """Ask, mark and compare; returns the table, which OUT/evaluation/summary.json holds, too.

    `in_process`: without a Ray, by one engine in this process: for a few questions, as a notebook has them.

    Raises StageError, before any model is loaded, where the config, the tasks' data, a model or what is in `OUT` is
    wrong, and where none of a model's questions could be answered.
    """
    plan = check(config)
    if in_process and (config.address or config.engine == "vllm"):
        raise StageError("in_process: neither with --address nor with --engine vllm, which run elsewhere")
    outputs = [claim_answers(plan, model) for model in plan.models]
    waiting = [(model, output) for model, output in zip(plan.models, outputs, strict=True) if not output.complete]
    for model, output in zip(plan.models, outputs, strict=True):
        if output.complete:
            log.info("%s: has answered already, nothing to ask", model.model.name)
    for asked in plan.tasks if waiting else ():
        asked.check()
    for asked, read in zip(plan.tasks, plan.questions, strict=True):
        write(read, asked, config, overwrite=config.overwrite)
    if waiting:
        with this_process() if in_process else machines_for(config) as ray_has:
            if ray_has.cores is None:
                warn_of_few_cpus(3 + CPUS_OF_RAY_DATA)  # an actor of each pool
            for model, output in waiting:
                answer(plan, model, output, ray_has, here=in_process)
    return summarised(plan, _of_lmms(plan))


def _of_lmms(plan: Plan) -> InTable:
    """What lmms-eval finds. Raises StageError where it is all that was asked, and it found nothing."""
    if plan.lmms is None:
        return InTable((), (), 0)
    config, tasks = plan.config, of_lmms(plan.config.tasks)
    found = {
        model.name: run_lmms(
            model.name, model.checkpoint, tasks, plan.directory, plan.lmms, config, overwrite=config.overwrite
        )
        for model in plan.named
    }
    shown = in_table(found, plan.baseline, draws=config.draws, seed=config.seed)
    if not (shown.tasks or plan.tasks):
        raise StageError("; ".join(shown.told))
    return shown
