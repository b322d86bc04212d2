"""What a command asks: its tasks with what it says of each, and its models with their names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vig_ray.errors import StageError
from vig_ray.evaluation.task import Given, Task
from vig_ray.evaluation.tasks import task
from vig_ray.model.checkpoint import is_local
from vig_ray.storage import absolute, exists, join, read_bytes

LMMS = "lmms:"
"""What the names of lmms-eval's tasks begin with."""
QUESTIONS = "questions"
"""The folder beside the models' that holds what they are asked."""
_RESERVED = (QUESTIONS, "summary", "lmms", "attention")  # what else lies beside the models' folders
_MODEL = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)", re.DOTALL)
_GENERIC = re.compile(r"(?i)models?|checkpoints?|checkpoint-\d+|final|latest|last|best|hf|exported?|weights|snapshots")
_JUDGE_CACHE = "judge_cache"  # where replies are kept decides nothing
_OF_COMMAND = {"synonyms": "synonyms", "judge": "judge", "judge_model": "judge_model"}  # a task's option: the command's


@dataclass(frozen=True)
class Asked:
    """A task that is asked for, with what the command says of it."""

    name: str
    given: Given

    def begun(self) -> Task:
        """The task, ready to read and to mark in this process. Raises StageError."""
        made = task(self.name)
        getattr(made, "begin", lambda _: None)(self.given)
        return made

    def check(self) -> None:
        """Ask what marks the answers, a judge say, whether it is there. Raises StageError."""
        getattr(self.begun(), "check", lambda _: None)(self.given)

    def identity(self) -> dict[str, Any]:
        """What of the command decides the questions and marks: options, and the content of files that they name."""
        files = {name: _digest(value) for name, value in self.given.options.items() if _is_file(value)}
        more: dict[str, str] = getattr(task(self.name), "files", lambda _: {})(self.given)
        options = {name: value for name, value in self.given.options.items() if name not in {*files, _JUDGE_CACHE}}
        files |= {name: _digest(path) for name, path in more.items()}
        return {
            "name": self.name,
            **({"options": options} if options else {}),
            **({"files": files} if files else {}),
            **({"limit": self.given.limit} if self.given.limit is not None else {}),
        }


def _is_file(value: str) -> bool:
    return not value.startswith(("http://", "https://")) and exists(value).name == "File"


def _digest(path: str) -> str:
    return hashlib.blake2b(read_bytes(path), digest_size=8).hexdigest()


def asked_for(config: Any) -> list[Asked]:
    """The tasks of an EvalConfig but for lmms-eval's, in its order.

    Raises StageError for one that isn't there, one without data, and an option that it doesn't have.
    """
    return [_asked(config, name) for name in config.tasks if not name.startswith(LMMS)]


def _asked(config: Any, name: str) -> Asked:
    made = task(name)
    data, images = config.of_task("data", name), config.of_task("images", name)
    if data is None:
        raise StageError(f"--tasks {name}: --data {name}=PATH says where its files are")
    options: dict[str, str] = {}
    for option, of_command in _OF_COMMAND.items():
        value = getattr(config, of_command)
        if value is not None and option in made.options:
            options[option] = value
    for full, value in config.task_options.items():
        whose, _, option = full.partition(".")
        if whose == name:
            options[option] = value
    if _JUDGE_CACHE in made.options:  # in OUT, which all machines reach
        options[_JUDGE_CACHE] = absolute(options.get(_JUDGE_CACHE) or join(config.out, "evaluation", ".judge"))
    return Asked(name, made_given(made, data, images, options, "--task-options", config.limit))


def made_given(
    made: Task, data: str, images: str | None, options: Mapping[str, str], flag: str, limit: int | None = None
) -> Given:
    """What is said of a task, local paths in full. `flag`: that of the options. Raises StageError for an option that it
    doesn't have."""
    for option in options:
        if option not in made.options:
            there = ", ".join(f"{made.name}.{each} ({words})" for each, words in made.options.items()) or "none"
            raise StageError(f"{flag} {made.name}.{option}: the task has no such option; it has {there}")
    return Given(
        absolute(data),
        images and absolute(images),
        {name: _in_full(value) for name, value in options.items()},
        limit,
    )


def _in_full(value: str) -> str:
    """The value of an option, for workers in another folder, where it is a path."""
    kind = exists(value).name if "://" not in value else "NotFound"
    return absolute(value) if kind == "File" or (kind == "Directory" and "/" in value) else value


@dataclass(frozen=True)
class Model:
    """A model that is asked. `name`: of its row and its folder; `checkpoint`: a folder in full, or a hub id."""

    name: str
    checkpoint: str


def models_of(config: Any) -> list[Model]:
    """The models of an EvalConfig, in its order, each by another name. Raises StageError."""
    models: dict[str, Model] = {}
    for text in config.model:
        model = model_of(text)
        if model.name in models:
            raise StageError(
                f"--model {text}: {models[model.name].checkpoint} is called {model.name}, too; name it, as in "
                f"--model mine={text.partition('=')[2] or text}"
            )
        if model.name in _RESERVED:
            checkpoint = text.partition("=")[2] or text
            raise StageError(
                f"--model {text}: no model can be called {model.name}; name it, as in --model mine={checkpoint}"
            )
        models[model.name] = model
    if config.baseline is not None and config.baseline not in models:
        raise StageError(f"--baseline {config.baseline}: takes one of the models' names, {', '.join(models)}")
    return list(models.values())


def model_of(text: str) -> Model:
    """A value of --model: MODEL, or NAME=MODEL.

    Without a name a model has that of its folder; where many have that (model, checkpoint-500), of the folder it lies
    in as well. So the name doesn't depend on the other models of a command.
    """
    named = None if is_local(text) else _MODEL.fullmatch(text)
    checkpoint = named[2] if named else text
    if is_local(checkpoint):
        checkpoint = absolute(checkpoint)
    if named:
        return Model(named[1], checkpoint)
    parts = [part for part in checkpoint.split("/") if part]
    taken = parts[-1:]
    while len(taken) < len(parts) and _GENERIC.fullmatch(taken[0]):
        taken = parts[-len(taken) - 1 :]
    name = re.sub(r"[^\w.-]+", "-", "-".join(taken)).strip("-.") or "model"
    return Model(name, checkpoint)
