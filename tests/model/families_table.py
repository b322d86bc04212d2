"""`make families`: the table of docs/models.md, measured on the tiny checkpoints of tests/model/families."""

from __future__ import annotations

import logging
import pkgutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import transformers

from tests.model import families
from tests.model.test_families import NO_BLIND, NOT_SCORED, Family, apart
from vig_ray.errors import StageError
from vig_ray.scoring.reference import blind, blur

_HEAD = "| family | prompts | scored | largest difference, nats: clean, blurred | blind | trained |"


def row(name: str, folder: Path) -> str:
    try:
        family = Family(name, folder)
    except StageError as error:
        return f"| {name} | | refused: {error} | | | |"
    parts = family.formatter.by_parts
    batched = ("by parts" if parts else "whole") not in family.engine.plainly
    clean, hidden = [0.0], [0.0]
    for sample, given in family.samples.items():
        prompt = family.prompt(sample, given)
        asked = [prompt, blur(prompt), blind(prompt)] if given.sizes else [prompt]
        scored = family.engine.logprobs(asked)
        clean.append(apart(scored[0], family.logprobs(family.inputs(given), prompt)))
        if given.sizes:
            clean.append(apart(scored[1], family.logprobs(family.inputs(given, blur=True), prompt)))
        if given.sizes and name not in NO_BLIND:
            hidden.append(apart(scored[2], family.logprobs(family.inputs(given), prompt, hidden=True)))
    return (
        f"| {name} | {'by parts' if parts else 'whole'} | {'in batches' if batched else 'one by one'} "
        f"| {np.max(clean):.0e} | {'an error' if name in NO_BLIND else f'{np.max(hidden):.0e}'} "
        f"| {'yes' if parts and hasattr(family.model, 'model') else 'no'} |"
    )


def main() -> None:
    """Print the table, a row a family, as they are done."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    names = [module.name for module in pkgutil.iter_modules(families.__path__) if module.name != "base"]
    print(_HEAD, "|---|---|---|---|---|---|", sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in [*(name for name in names if name not in NOT_SCORED), *NOT_SCORED]:
            print(row(name, Path(folder, name)), flush=True)


if __name__ == "__main__":
    main()
