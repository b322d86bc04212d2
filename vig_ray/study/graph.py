"""The grid of a study spelled out: every stage of every cell, each once, named after all that decides its output.

A cell is an arm, with one value of each of `vary`, and a seed; it ends in a stage `eval`. What it takes is found from
there backwards, so that a stage that nothing asks for isn't run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from vig_ray.arguments import explained
from vig_ray.dataset.options import Share
from vig_ray.demo import CHECKPOINT, HARD_CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import is_local
from vig_ray.storage import join, scheme_of
from vig_ray.study.curves import SHORT_TUNING, not_written
from vig_ray.study.file import Options, StudyFile, folder_of
from vig_ray.study.given import WEIGHT, paths_from, state, strings_in
from vig_ray.study.stages import KINDS, loaded
from vig_ray.submission import MODELS, PATHS, option_in_full
from vig_ray.training.shares import AT

LAST = "eval"
MODEL_NAME = "model"
"""The name of the one model that each evaluation of a study asks, in its table."""

REFERENCE = re.compile(r"\$([a-z][a-z0-9_-]*)")
_BUILT_IN = {"demo-model": CHECKPOINT, "hard-model": HARD_CHECKPOINT}
_DIGITS = 10
# What doesn't decide an output: a stage that differs in nothing else is the same one. A device does, where it decides
# the precision.
_HOW = {"workers", "prepare_workers", "batch_tokens", "micro_batch", "loaders", "rows_per_file", "window"}
_AWAY = " on {}, where the study runs; name a folder that all machines see, or a store such as s3://"
_OURS = ("out", "address", "overwrite", "dry_run")
"""Options that a study sets itself."""
_NAMED_MODEL = re.compile(r"[\w.:-]+=")


@dataclass(frozen=True)
class Node:
    """One stage with all its options, and where they lead. `options`: without --out; `inputs`: names of other nodes."""

    name: str
    stage: str
    verb: str
    options: Mapping[str, Any] = field(hash=False)
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of the grid. `label`: the arm with what of it is varied; `nodes`: all it takes, each after its inputs;
    the last is its evaluation."""

    arm: str
    axes: Mapping[str, Any] = field(hash=False)
    seed: int
    nodes: tuple[str, ...]

    @property
    def label(self) -> str:
        """Without the seed."""
        return label_of(self.arm, self.axes)

    @property
    def last(self) -> str:
        """The evaluation."""
        return self.nodes[-1]


@dataclass(frozen=True)
class Graph:
    """All nodes by name, each after its inputs, and the cells that take them, the first seed of all arms first."""

    nodes: Mapping[str, Node] = field(hash=False)
    cells: tuple[Cell, ...] = ()

    def of_seeds(self, seeds: tuple[int, ...]) -> tuple[Cell, ...]:
        """The cells of these seeds."""
        return tuple(cell for cell in self.cells if cell.seed in seeds)


def label_of(arm: str, axes: Mapping[str, Any]) -> str:
    """'vig p=30 samples=2000': an arm with what is varied of it, options without their stages."""
    return " ".join((arm, *(f"{name.rpartition('.')[2]}={value}" for name, value in axes.items())))


def spell_out(
    study: StudyFile, path: str, out: str, *, pilot: float | None = None, whole: str | None = None,
    folder: str | None = None, check: bool = True,
) -> Graph:  # fmt: skip
    """The graph of a study's file at `path`, whose outputs go to OUT/runs.

    `folder`: where relative paths start from, by default the file's own; `check`: whether paths must be there. `pilot`:
    share of the data, and of the steps where they are counted, that is taken; not of the steps of the stage `whole`.
    Raises StageError, which names the place in the file, where an option is wrong or a path isn't there.
    """
    place = _Place(path, folder or folder_of(path), check)
    nodes: dict[str, Node] = {}
    states: dict[str, str] = {}
    cells = []
    for seed in study.all_seeds:
        for arm, changes in study.arms.items():
            for axes in _axes(study, changes):
                one = _Cell(study, place, out, arm, axes, seed, nodes, pilot, whole, states)
                last = one.node(LAST, ())
                if not one.takes_checkpoint and AT in axes and study.checkpoints is not None:
                    if axes[AT] != study.checkpoints.at[0]:
                        continue
                    axes = {name: value for name, value in axes.items() if name != AT}
                cells.append(Cell(arm, axes, seed, (*one.taken, last.name)))
    return Graph(nodes, tuple(cells))


def _axes(study: StudyFile, changes: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What is varied of an arm: all but what it says itself."""
    names = [name for name in study.vary if not _says(changes, name)]
    for values in itertools.product(*(study.vary[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def _says(changes: Mapping[str, Any], name: str) -> bool:
    stage, _, option = name.partition(".")
    return stage in changes and (not option or option in changes[stage])


class _Place(NamedTuple):
    """Where a study's file is, where relative paths in it start from, and whether paths must be there."""

    path: str
    folder: str
    check: bool


class _Cell:
    """One cell while it is spelled out. `taken`: its nodes so far, in order; `takes_checkpoint`: whether one of them
    takes the training of which `checkpoints` are."""

    def __init__(
        self,
        study: StudyFile,
        place: _Place,
        out: str,
        arm: str,
        axes: Mapping[str, Any],
        seed: int,
        nodes: dict[str, Node],
        pilot: float | None,
        whole: str | None,
        states: dict[str, str],
    ) -> None:
        self._study, self._out, self._arm, self._axes = study, out, arm, axes
        self._path, self._folder, self._check = place
        self._seed, self._nodes, self._pilot, self._whole = seed, nodes, pilot, whole
        self._runs, self._states = join(out, "runs") + "/", states
        self._of_stage: dict[str, Node] = {}
        self.taken: list[str] = []
        self.takes_checkpoint = False

    def node(self, stage: str, asked_by: tuple[str, ...]) -> Node:
        """The node of a stage, with all that it takes. `asked_by`: the stages that led here."""
        if stage in asked_by:
            raise StageError(f"{self._path}: stages: {' -> '.join((*asked_by, stage))}: a circle of references")
        if stage not in self._of_stage:
            made = self._made(stage, asked_by)
            self._of_stage[stage] = made
            if stage != LAST or asked_by:
                self.taken.append(made.name)
        return self._of_stage[stage]

    def _made(self, stage: str, asked_by: tuple[str, ...]) -> Node:
        if stage not in self._study.stages and stage not in self._arm_changes:
            raise StageError(f"{self._path}: stages: there is no {stage}, in which every cell ends")
        options = self._given(stage)
        verb = str(options.pop("run", stage))
        if verb not in KINDS:
            raise StageError(f"{self._path}: stages.{stage}: {verb}: no such stage; there are {', '.join(KINDS)}")
        for option in _OURS:
            if option in options:
                raise StageError(f"{self._path}: stages.{stage}.{option}: a study sets it itself; leave it out")
        config_class, _ = loaded(verb)
        for option, reference in KINDS[verb].wired.items():
            if stage == verb and option not in options and self._knows(reference[1:]):
                options[option] = reference
        if KINDS[verb].seeded:
            options.setdefault("seed", "$seed")
        if verb == "eval":
            options.setdefault("draws", 0)  # intervals are over seeds
        inputs: list[str] = []
        resolved = {
            option: self._resolved(value, stage, option, (*asked_by, stage), inputs)
            for option, value in options.items()
            if value is not None
        }
        if verb == "eval":
            resolved = self._of_one_model(resolved)
        if verb == "measure" and isinstance(resolved.get("measures"), str):  # as a list it is no folder's name
            resolved["measures"] = resolved["measures"].split(",")
        where = f"{self._path}: stages.{stage}.{{}}".format
        try:
            config_class.model_validate({**resolved, "out": "-"})
            if self._pilot is not None:
                imports = not any(self._runs in text for text in strings_in(resolved.get("data")))
                steps = stage not in (self._whole, SHORT_TUNING)
                resolved = as_pilot(resolved, verb, self._pilot, imports=imports, steps=steps)
                config_class.model_validate({**resolved, "out": "-"})
        except ValidationError as error:
            raise StageError(f"{'; '.join(explained(error, where))} (arm {self._arm})") from error
        with paths_from(self._folder) as nowhere:
            resolved = {option: option_in_full(option, _as_text(value)) for option, value in resolved.items()}
        if self._check:
            self._check_paths(stage, resolved, nowhere)
        how = _HOW | ({"device"} if "dtype" in resolved else set())
        states = {
            option: state(value, self._runs, self._states, f"{MODEL_NAME}=")
            for option, value in sorted(resolved.items())
        }
        identity = {
            "verb": verb,
            "options": {name: value for name, value in resolved.items() if name not in how},
            "files": {option: state for option, state in states.items() if state},
        }
        canonical = json.dumps(identity, sort_keys=True, default=str).replace(self._runs, "$OUT/")
        name = f"{stage}-{hashlib.blake2b(canonical.encode(), digest_size=20).hexdigest()[:_DIGITS]}"
        node = Node(name, stage, verb, resolved, tuple(dict.fromkeys(inputs)))
        self._nodes.setdefault(name, node)
        return node

    @property
    def _arm_changes(self) -> Mapping[str, Any]:
        return self._study.arms[self._arm]

    def _given(self, stage: str) -> Options:
        """A stage's options: the study's, then the arm's, then what is varied; with a short tuning, that is asked, and
        tunes what would be asked without it."""
        options = self._said_of(stage)
        if self._study.short_tuning is not None and stage == LAST:
            options["model"] = f"${SHORT_TUNING}"
        elif self._study.short_tuning is not None and stage == SHORT_TUNING:
            options["model"] = self._said_of(LAST).get("model", KINDS["eval"].wired["model"])
        return options

    def _said_of(self, stage: str) -> Options:
        options = {**self._study.stages.get(stage, {}), **self._arm_changes.get(stage, {})}
        for name, value in self._axes.items():
            of, _, option = name.partition(".")
            if of == stage:
                options[option] = value
        return {str(name).replace("-", "_"): value for name, value in options.items()}

    def _knows(self, name: str) -> bool:
        return name in self._study.stages or name in self._values

    @property
    def _values(self) -> dict[str, Any]:
        changed = {name: value for name, value in self._arm_changes.items() if name in self._study.values}
        varied = {name: value for name, value in self._axes.items() if name in self._study.values}
        return {**_BUILT_IN, **self._study.values, **changed, **varied, "seed": self._seed}

    def _resolved(self, value: Any, stage: str, option: str, asked_by: tuple[str, ...], inputs: list[str]) -> Any:
        """A value with what its $NAMEs stand for."""
        if isinstance(value, dict):
            return {key: self._resolved(each, stage, option, asked_by, inputs) for key, each in value.items()}
        if isinstance(value, list):
            return [self._resolved(each, stage, option, asked_by, inputs) for each in value]
        if not isinstance(value, str):
            return value
        whole = REFERENCE.fullmatch(value)
        if whole and whole[1] in self._values:
            return self._value(whole[1], stage, option, asked_by, inputs)

        def stands_for(found: re.Match[str]) -> str:
            name = found[1]
            if name in self._values:
                return str(self._value(name, stage, option, asked_by, inputs))
            if name not in self._study.stages and name not in self._arm_changes:
                known = ", ".join((*self._study.stages, *self._values))
                raise StageError(f"{self._path}: stages.{stage}.{option}: ${name}: no such name; there are {known}")
            node = self.node(name, tuple(each for each in asked_by if not each.startswith("$")))
            inputs.append(node.name)
            folder = join(self._out, "runs", node.name)
            if value[found.end() : found.end() + 1] == "/":
                return folder
            part = KINDS[node.verb].gives.get(option)
            if part is None:
                raise StageError(
                    f"{self._path}: stages.{stage}.{option}: ${name} is a stage that leaves no {option}; name a file "
                    f"or folder of its output, as ${name}/..."
                )
            checkpoints = self._study.checkpoints
            if part == "model" and checkpoints is not None and name == checkpoints.of:
                self.takes_checkpoint = True
                part = checkpoints.part(self._values[AT])
            return join(folder, part) if part else folder

        return REFERENCE.sub(stands_for, value)

    def _value(self, name: str, stage: str, option: str, asked_by: tuple[str, ...], inputs: list[str]) -> Any:
        """What a value stands for. Raises StageError where it stands for itself."""
        if f"${name}" in asked_by:
            raise StageError(f"{self._path}: values.{name}: stands for itself, by way of others or not")
        return self._resolved(self._values[name], stage, option, (*asked_by, f"${name}"), inputs)

    def _of_one_model(self, options: Options) -> Options:
        """The options of an evaluation, whose one model has the same name in every table."""
        model = options.get("model")
        if isinstance(model, list) and len(model) == 1:
            model = model[0]
        if not isinstance(model, str):
            raise StageError(f"{self._path}: stages.{LAST}.model: takes one model; arms are what compares models")
        if _NAMED_MODEL.match(model):
            raise StageError(f"{self._path}: stages.{LAST}.model: {model}: arms have names, models none; leave it out")
        return {**options, "model": [f"{MODEL_NAME}={model}"]}

    def _check_paths(self, stage: str, options: Mapping[str, Any], nowhere: str | None) -> None:
        """Raise StageError for a path of this machine that isn't there, and for a checkpoint that won't be. `nowhere`:
        where relative ones lead, if the folder that they start from isn't there."""
        away = self._folder != folder_of(self._path)  # the file comes from another machine
        for option, value in options.items():
            if option not in (*PATHS, *MODELS, "data"):
                continue
            for each in strings_in(value):
                path = each.removeprefix(f"{MODEL_NAME}=") if option == "model" else WEIGHT.sub("", each)
                if path.startswith(self._runs) and (why := not_written(path.removeprefix(self._runs), self._nodes)):
                    raise StageError(f"{self._path}: stages.{stage}.{option}: {why}")
                relative = nowhere is not None and path.startswith(nowhere)
                elsewhere = path.startswith(self._runs) or scheme_of(path) or any(sign in path for sign in "*?[{")
                if elsewhere and not relative:
                    continue
                if option in MODELS and not (is_local(path) or path.startswith((".", "/", "~"))):
                    continue  # an id on the hub
                if option not in MODELS and not path.startswith("/"):
                    continue
                if relative:
                    path = join(self._folder, path.removeprefix(str(nowhere)).lstrip("/"))
                if not os.path.exists(os.path.expanduser(path)):
                    why = f"not there{_AWAY.format(socket.gethostname()) if away else ''}"
                    by = f"; first run: {' '.join(self._study.prepare.split())}" if self._study.prepare else ""
                    raise StageError(f"{self._path}: stages.{stage}.{option}: {path}: {why}{by}")


def as_pilot(options: Options, verb: str, share: float, *, imports: bool, steps: bool) -> Options:
    """A stage's options where it takes this share of the data that it imports, of the samples that it makes and, with
    `steps`, of the steps that it is told to make."""
    changed: Options = {}
    if imports and verb in ("import", "score"):
        given = TypeAdapter(Share).validate_python(options.get("sample"))
        changed["sample"] = f"{100 * share * (1.0 if given is None else given):g}%"
    if verb == "demo":
        made = options.get("samples", loaded(verb)[0].model_fields["samples"].default)
        changed["samples"] = max(1, round(int(made) * share))
    if steps and options.get("max_steps"):
        changed["max_steps"] = max(1, round(int(options["max_steps"]) * share))
    return {**options, **changed}


def _as_text(value: Any) -> Any:
    """A dict's values as text, as the command line has them."""
    return {name: str(each) for name, each in value.items()} if isinstance(value, dict) else value
