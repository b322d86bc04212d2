"""`vig train-text`: a language model trained on answer texts alone, PRIOR's reference model (equation 2 of its paper).

L_text = - sum over the answer tokens of log p_r(t_i | t_<i), with no image, no image token and no mark of one.

A sample is one document (`vig_ray.model.text_only`); documents are packed to --length tokens, each of which sees itself
alone. All else is `vig train`'s: order, elastic workers, checkpoints, what is watched, and what is written.
`run(config)` is what `vig train-text`, `jobs/train_text.py` and Python call.
"""

from __future__ import annotations

import logging
from typing import Any

from vig_ray.dataset.importing import chosen_rows
from vig_ray.model.checkpoint import fingerprint, is_local
from vig_ray.model.load import template_fingerprint
from vig_ray.stage import read_stage
from vig_ray.storage import absolute, check_writable, join
from vig_ray.tables.directories import samples_beside
from vig_ray.training.documents import Documents, formatter_of
from vig_ray.training.drawn import drawn
from vig_ray.training.dry_run import DryRun, described
from vig_ray.training.job import Trained, carry_out
from vig_ray.training.optimizer import check_packages
from vig_ray.training.plan import HOW, Plan
from vig_ray.training.text_config import TrainTextConfig

log = logging.getLogger(__name__)

_DRAWING = {"sample", "exclude", "length"}  # which are in the identity as what they come to


def check(config: TrainTextConfig) -> Plan:
    """Everything that can be wrong with a config and takes only seconds to see; raises StageError."""
    samples = samples_beside(config.samples, config.samples, {})
    assert samples is not None  # one was given
    samples = absolute(samples)  # workers may have another working directory
    model = absolute(config.model) if is_local(config.model) else config.model
    documents = Documents(model, config.context, config.length, config.trust_remote_code)
    check_writable(config.out)
    check_packages(config)
    formatter = formatter_of(documents)
    parts = described(config, model, formatter, text_only=True)
    imported = read_stage(samples) or {}
    taken = drawn(config.sample, config.seed, config.exclude, imported)
    identity: dict[str, Any] = {
        "options": config.model_dump(
            mode="json", exclude=HOW | _DRAWING | (set() if config.export_at else {"export_at"})
        ),
        "model": fingerprint(config.model),
        "template": template_fingerprint(formatter),
        "longest": formatter.max_length,
        "samples": {name: imported.get(name) for name in ("inputs", "name", "counts")} | chosen_rows(imported),
        "drawn": taken.identity(),
    }
    if formatter.max_length < config.length:
        log.info("%s: made for documents of %s tokens; longer ones are left out", config.model, formatter.max_length)
    return Plan(
        config,
        documents,
        samples,
        None,
        {},
        identity,
        join(absolute(config.out), "training"),
        parts,
        batch_tokens=config.length,
        stage="train-text",
        drawn=taken,
    )


def run(config: TrainTextConfig, *, in_process: bool = False) -> Trained | DryRun:
    """Train; returns what came of it, or with `dry_run` what would be trained.

    `in_process`: by one worker in this process, without a Ray. Raises StageError, before any worker starts, where the
    config, the samples, the model or what is in `OUT` is wrong; and where training can't go on, with what to do.
    """
    return carry_out(check(config), in_process=in_process)
