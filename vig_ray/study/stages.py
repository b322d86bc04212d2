"""The stages that a study is made of: verbs of the command line, what each leaves for others, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vig_ray.cli import VERBS
from vig_ray.stage import StageConfig

_MODEL = dict.fromkeys(("model", "reference_model", "language_model"), "model")


@dataclass(frozen=True)
class Kind:
    """A verb as a stage of a study.

    `gives`: of the options that another stage may fill with this one's output, the folder of it in this one's --out.
    `wired`: what options of a stage that is named after its verb refer to by default, as far as that is there.
    `here`: whether it may run in the process that calls it, by `in_process`. `alone`: whether it needs no Ray, whatever
    calls it. `computes`: whether it takes a GPU where there is one.
    `seeded`: whether it takes the cell's seed by itself. `within`: what its --out is in the folder of the stage, where
    it suffers nothing beside it.
    """

    gives: Mapping[str, str]
    wired: Mapping[str, str] = field(default_factory=dict)
    here: bool = False
    alone: bool = False
    computes: bool = True
    seeded: bool = False
    within: str = ""


KINDS = {
    "import": Kind({"data": "samples", "samples": "samples"}, {"data": "$data"}, alone=True, computes=False),
    "demo": Kind({}, alone=True, computes=False),
    "assemble": Kind(_MODEL, within="model", alone=True, computes=False),
    "score": Kind(
        {"data": "samples", "samples": "samples", "scores": ""}, {"data": "$data", "model": "$model"}, here=True
    ),
    "measure": Kind({"measures": "measures"}, {"scores": "$score"}),
    "select": Kind({"selection": "selection"}, {"scores": "$score"}, alone=True, computes=False, seeded=True),
    "train": Kind(
        _MODEL, {"model": "$model", "samples": "$score", "selection": "$select"}, here=True, seeded=True
    ),
    "train-text": Kind(_MODEL, {"samples": "$score"}, here=True, seeded=True),
    "eval": Kind({}, {"model": "$train"}, here=True),
}  # fmt: skip


def loaded(verb: str) -> tuple[type[StageConfig], Callable[..., Any]]:
    """The config class of a verb, and its function."""
    return VERBS[verb].load()
