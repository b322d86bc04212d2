"""Samples that a reference model weighs though it was trained on them: what it knows by heart surprises it no more."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from vig_ray.errors import StageError
from vig_ray.tables.rows import scan
from vig_ray.tables.trained_on import TrainedOn

log = logging.getLogger(__name__)


def reference_model(record: Mapping[str, Any]) -> str | None:
    """The language model whose log-probs are in scores/ with this record; None where none is."""
    model: str | None = record.get("config", {}).get("reference_model")
    return model


def overlap(scores: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """How many samples of scores/ their reference model was trained on, of how many; warns where there are some.

    None where no reference model was used, or nothing beside it says what it was trained on.
    """
    model = reference_model(record)
    if model is None:
        return None
    try:
        trained_on = TrainedOn.of(model)
    except (StageError, OSError) as error:
        log.warning("%s: can't tell which samples it was trained on: %s", model, error)
        return None
    if trained_on is None:
        log.info("%s: nothing beside it says which samples it was trained on; they must not be those it weighs", model)
        return None
    both = rows = 0
    for _, table in scan(scores, ["sample_key"]):
        rows += table.num_rows
        both += int(trained_on(table["sample_key"]).sum())
    if both:
        log.warning(
            "%s was trained on %s of the %s samples that it weighs (%.0f %%), which it finds less surprising than "
            "others; vig train-text --exclude leaves samples out, and docs/training.md says how to draw both apart",
            model, f"{both:,}", f"{rows:,}", 100 * both / rows,
        )  # fmt: skip
    return {"model": model, "samples": rows, "trained_on": both}
