"""The steps of a scoring run: what its actors are, and what they are told."""

from __future__ import annotations

import math
from typing import Any

from vig_ray.model.load import prompts_of
from vig_ray.pipeline import Step
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.passes import Passes
from vig_ray.scoring.placement import Placement
from vig_ray.scoring.prepare import Preparer
from vig_ray.scoring.references.of_data import OfData
from vig_ray.scoring.score import Scorer
from vig_ray.scoring.text_prepare import TextPreparer
from vig_ray.tables.passes import TEXT

_ROWS_PREPARED_AT_ONCE = 64


def steps_of(config: ScoreConfig, passes: Passes, of_data: OfData, placement: Placement, counter: Any) -> list[Step]:
    """Prepare prompts on CPUs, then score them on engines: of the model's own passes, or of the text pass alone.

    `of_data`: what the dataset decides of the references. `counter`: a `RowCounter`, or None.
    """
    prompts, pools = prompts_of(config)._asdict(), placement.pools
    prepare = {
        **prompts,
        "held": passes.held,
        "earlier": passes.earlier,
        "too_long": config.too_long,
    }
    text_only = passes.to_run == (TEXT,)
    if text_only:
        prepare |= {
            "text_model": config.reference_model,
            "context": config.reference_context,
            "align": config.align,
        }
        prompts |= {"model": config.reference_model, "max_length": None, "text_only": config.reference_context}
    else:
        prepare |= {
            "passes": passes.slots,
            "blur": config.blur,
            "average": of_data.average,
            "drawn": of_data.drawn,
            "max_image_pixels": config.max_image_pixels,
        }
    load = {
        "name": placement.engine,
        **prompts,
        "dtype": placement.dtype,
        "device": placement.device,
        "batch_tokens": config.batch_tokens,
        "threads": pools.threads,
        "vllm": config.vllm,
    }
    preparer = TextPreparer if text_only else Preparer
    # Rows are prepared in groups that stay together, so that many groups of one size are a window.
    window = min(config.window, config.rows_per_file)
    groups = math.ceil(window / _ROWS_PREPARED_AT_ONCE)
    return [
        Step(preparer, prepare, batch_rows=math.ceil(window / groups), actors=pools.preparers),
        Step(
            Scorer,
            {
                "engine": load,
                "passes": passes.slots,
                "references": passes.references,
                "progress": counter,
            },
            batch_rows=groups,
            actors=pools.engines,
            cpus=0.5 if pools.gpus_each else 1,
            gpus=pools.gpus_each,
            calls_ahead=4,
        ),
    ]
