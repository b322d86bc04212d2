"""Curves over the checkpoints of a training, and a short tuning before each evaluation, as PRIOR has them (sections 3.1
and 3.2): two keys of a study's file, spelled out as what any study has.

    checkpoints: {of: align, at: [0.25, 0.5, 1]}     every arm takes the model of `align` after each share of its steps:
                                                     a value `at`, varied, and `export_at` of the stage
    short_tuning: {samples: $instruct}               what `eval` asks is tuned first: a stage of its own, `train`
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vig_ray.training.shares import AT, in_order, name_of

Options = dict[str, Any]

SHORT_TUNING = "short_tuning"
STEPS = 20
"""Of PRIOR's short tuning."""
TRAININGS = ("train", "train-text")


class Checkpoints(BaseModel):
    """Of which training, and after which shares of its steps."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    of: str = Field(description="the stage, a training")
    at: Annotated[tuple[int | float, ...], AfterValidator(in_order)] = Field(min_length=1)

    @property
    def exported(self) -> list[float]:
        """The shares that the training writes beside its model at the end."""
        return [share for share in self.at if share != 1]

    def part(self, share: Any) -> str:
        """The folder of the model after this share, in what the training writes."""
        return "model" if share == 1 else f"{AT}/{name_of(float(share))}"


def wrong(
    checkpoints: Checkpoints | None,
    short_tuning: Options | None,
    stages: Mapping[str, Options],
    arms: Mapping[str, Mapping[str, Any]],
    names: Iterable[str],
) -> Iterator[str]:
    """What is wrong with the two keys in a study with these stages and arms. `names`: those of its values, and of what
    it varies."""
    if checkpoints is not None:
        of = checkpoints.of
        if of not in stages:
            yield f"checkpoints.of: {of}: no such stage; there are {', '.join(stages)}"
        elif stages[of].get("run", of) not in TRAININGS:
            yield f"checkpoints.of: {of}: not a training; name a stage that is {' or '.join(TRAININGS)}"
        elif "export_at" in stages[of] or any("export_at" in (changes.get(of) or ()) for changes in arms.values()):
            yield f"stages.{of}.export_at: checkpoints.at says it; leave it out"
        for arm, changes in arms.items():
            share = changes.get(AT, 1)
            if isinstance(share, bool) or not isinstance(share, int | float):
                yield f"arms.{arm}.{AT}: {share}: takes a share of the steps of {of}"
        if AT in stages or AT in names:
            yield f"checkpoints: {AT} is the share that each row is of; choose another name for what is called so"
    if short_tuning is not None:
        if SHORT_TUNING in stages or SHORT_TUNING in names:
            yield f"{SHORT_TUNING}: also the name of a stage or a value; give that another name"
        for option, why in (("model", "it is the one that eval asks"), ("run", "it is `train`")):
            if option in short_tuning:
                yield f"{SHORT_TUNING}.{option}: {why}; leave it out"


def spelled_out(
    checkpoints: Checkpoints | None,
    short_tuning: Options | None,
    stages: Mapping[str, Options],
    values: Options,
    vary: Mapping[str, tuple[Any, ...]],
) -> dict[str, Any]:
    """`stages`, `values` and `vary` with what the two keys mean."""
    stages, values, vary = dict(stages), dict(values), dict(vary)
    if checkpoints is not None:
        values[AT], vary[AT] = 1, checkpoints.at
        if checkpoints.exported:
            stages[checkpoints.of] = {**stages[checkpoints.of], "export_at": checkpoints.exported}
    if short_tuning is not None:
        stages[SHORT_TUNING] = {"run": "train", "max_steps": STEPS, **short_tuning}
    return {"stages": stages, "values": values, "vary": vary}


def exported_by(options: Mapping[str, Any]) -> list[float]:
    """The shares that a training with these options writes; as text they are as a command has them."""
    given = options.get("export_at") or ()
    return [float(share) for share in (given.split(",") if isinstance(given, str) else given)]


def share_taken(name: str, options: Iterable[str]) -> str | None:
    """The greatest share of a training that other stages take, by all the texts in their options; None where they take
    what it is at its end. `name`: of the training's folder."""
    found = [each[1] for text in options if (each := re.search(rf"/{re.escape(name)}/(?:{AT}/([^/]+)|model)", text))]
    return None if None in found or not found else max(found, key=float)


class _Stage(Protocol):
    """Of a graph's node what is asked of it here."""

    @property
    def stage(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Any]: ...


def not_written(path: str, nodes: Mapping[str, _Stage]) -> str | None:
    """Why a checkpoint of a training that `path` names won't be there; None where it will, and of any other path.
    `path`: NODE/..., in the folder of all runs; `nodes`: by name."""
    name, folder, share = [*path.split("/"), "", ""][:3]
    if folder != AT or name not in nodes:
        return None
    there = [name_of(share) for share in exported_by(nodes[name].options)]
    if share in there:
        return None
    has = f"has {', '.join(there)}" if there else "is empty"
    return f"{AT}/{share}: {nodes[name].stage} writes no such checkpoint: its export_at {has}"
