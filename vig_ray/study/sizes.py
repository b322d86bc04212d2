"""How many samples a stage goes over, each epoch counted, and how many it leaves for others: of one that is done by
what it wrote, of one that isn't by its options and by what it takes. Times are scaled by it (rates.py)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vig_ray.dataset.options import Share
from vig_ray.errors import StageError
from vig_ray.selection.strategies import strategies
from vig_ray.storage import join, read_bytes
from vig_ray.study import record as records
from vig_ray.study.curves import TRAININGS
from vig_ray.study.given import strings_in
from vig_ray.study.graph import Node
from vig_ray.study.record import Record, Size, folder_of
from vig_ray.study.stages import KINDS, loaded
from vig_ray.tables.directories import dataset, scores_directory

_AMOUNTS = {"seed", "sample", "samples", "max_steps", "epochs"}
"""Options that only say how much, or which: not part of what a stage is like. --samples may also be a path."""
_FOLDER = re.compile(r"\S*/runs/([a-z][a-z0-9_-]*)-[0-9a-f]{10}(?=/|$)")


def like(node: Node) -> str:
    """What tells the kind of a stage: the same for those that differ in their seed, in how much they are given, and in
    which run of a stage they take it from."""
    options = {
        name: value
        for name, value in node.options.items()
        if name not in _AMOUNTS or (name == "samples" and not isinstance(value, int))
    }
    canonical = json.dumps([node.verb, _without_runs(options)], sort_keys=True, default=str)
    return hashlib.blake2b(canonical.encode(), digest_size=5).hexdigest()


def _without_runs(value: Any) -> Any:
    if isinstance(value, str):
        return _FOLDER.sub(r"$\1", value)
    if isinstance(value, dict):
        return {name: _without_runs(each) for name, each in value.items()}
    return [_without_runs(each) for each in value] if isinstance(value, list | tuple) else value


def measured(node: Node, out: str) -> Size:
    """Of a stage that is done, by what it wrote; None for what can't be counted."""
    folder = folder_of(out, node.name)
    took = worked = left = None
    with contextlib.suppress(OSError, StageError, ValueError, KeyError):
        source = _source(node)
        found = records.read(out, source) if source else None
        took = found.size.left if found is not None else None
        if node.verb in ("import", "score"):
            worked = left = _rows(join(folder, "samples" if node.verb == "import" else "scores"))
        elif node.verb == "demo":
            worked = left = _made(node)
        elif node.verb == "measure":
            worked = _rows(join(folder, "measures"))
        elif node.verb == "select":
            left = _rows(join(folder, "selection"))
            worked = _rows(scores_directory(str(node.options["scores"])))
        elif node.verb in TRAININGS:
            lines = read_bytes(join(folder, "training", "log.jsonl")).decode().splitlines()
            worked = sum(int(json.loads(line)["samples"]) for line in lines)
    return Size(took, worked, left, _share(node))


def _rows(directory: str) -> int:
    rows: int = dataset(directory).count_rows()
    return rows


def _made(node: Node) -> int:
    return int(node.options.get("samples", loaded("demo")[0].model_fields["samples"].default))


def _share(node: Node) -> float:
    given = TypeAdapter(Share).validate_python(node.options.get("sample"))
    return 1.0 if given is None else float(given)


_TAKES = {
    "import": ("data",), "score": ("samples", "data"), "measure": ("scores",), "select": ("scores",),
    "train": ("selection", "samples"), "train-text": ("samples",),
}  # fmt: skip


def _source(node: Node) -> str | None:
    """The stage whose samples a stage goes over; None where they come from elsewhere."""
    for option in _TAKES.get(node.verb, ()):
        for text in strings_in(node.options.get(option)):
            for name in node.inputs:
                if f"/runs/{name}" in text:
                    return name
    return None


@dataclass(frozen=True)
class Planned:
    """Samples that a stage will go over, and leave; None where there is no telling yet."""

    worked: float | None
    left: float | None


class Sizes:
    """Sizes of a study's stages, those that haven't run among them. `known`: records of stages that are done, of this
    study or of others."""

    def __init__(self, nodes: Mapping[str, Node], known: Sequence[Record]) -> None:
        self._nodes = nodes
        self._done = {each.name: each for each in known}
        self._alike: dict[str, list[Record]] = {}
        for each in known:
            self._alike.setdefault(each.like, []).append(each)
        self._found: dict[str, Planned] = {}

    def of(self, name: str) -> Planned:
        """Of a node."""
        if name not in self._found:
            self._found[name] = self._of(self._nodes[name])
        return self._found[name]

    def _of(self, node: Node) -> Planned:
        done = self._done.get(node.name)
        if done is not None and (done.size.worked is not None or done.size.left is not None):
            return Planned(done.size.worked, done.size.left)
        if node.verb == "demo":
            return Planned(_made(node), _made(node))
        if node.verb in TRAININGS:
            return Planned(self._trained(node), None)
        source, alike = _source(node), self._alike.get(like(node), [])
        if source is None:  # data from elsewhere: as much as others of this kind found there
            alls = [each.size.left / each.size.share for each in alike if each.size.left is not None]
            taken = _share(node) * statistics.mean(alls) if alls else None
            return Planned(taken, taken if node.verb in ("import", "score") else None)
        into = self.of(source).left
        if into is None:
            return Planned(None, None)
        kept = [each.size.left / each.size.took for each in alike if each.size.left is not None and each.size.took]
        if kept:
            left: float | None = into * statistics.mean(kept) * _share(node) / alike[0].size.share
        else:
            left = into * _share(node) if node.verb in ("import", "score") else self._selected(node, into)
        return Planned(left if node.verb in ("import", "score") else into, left)

    def _selected(self, node: Node, into: float) -> float | None:
        """What a selection keeps of so many, by its strategy's percentage: about as many as that."""
        if node.verb != "select":
            return None
        try:
            config: Any = loaded("select")[0].model_validate({**node.options, "out": "-"})
        except ValidationError:
            return None
        share = strategies()[config.strategy].share
        return into if share is None else into * float(config.r if share == "r" else config.p[0]) / 100

    def _trained(self, node: Node) -> float | None:
        """Samples times epochs, or what so many steps take."""
        try:
            config: Any = loaded(node.verb)[0].model_validate({**node.options, "out": "-"})
        except ValidationError:
            return None
        if config.max_steps is not None:
            return float(config.max_steps * config.global_batch)
        source = _source(node)
        into = self.of(source).left if source is not None else None
        return None if into is None else into * int(config.epochs)


def sized(verb: str) -> bool:
    """Whether the time of a stage goes by its samples; an evaluation's by questions, which a pilot leaves as they
    are."""
    return verb in KINDS and verb not in ("eval", "assemble")
