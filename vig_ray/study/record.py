"""What a study keeps of each stage: OUT/runs/NAME/study.json beside the stage's own output, with the command that does
the same by hand, and log.txt, what it said.

A stage is done when its study.json says so; it is written last.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic.fields import FieldInfo

from vig_ray.arguments import extra_of, flag_of
from vig_ray.errors import StageError
from vig_ray.storage import absolute, exists, join, one_line, read_bytes, write_bytes
from vig_ray.study.graph import Node
from vig_ray.study.stages import KINDS, loaded

RECORD, LOG, RUNS = "study.json", "log.txt", "runs"
_NAME = re.compile(r"[\w-]+")  # what --again has moved aside has a dot in it


class Size(NamedTuple):
    """How many samples a stage took, from another one, went over, each epoch counted, and left for others; None for
    what isn't known. `share`: the part of its data that it was told to take."""

    took: float | None = None
    worked: float | None = None
    left: float | None = None
    share: float = 1.0


NO_SIZE = Size()


@dataclass(frozen=True)
class Record:
    """How a stage ended. `seconds` it took, over all its tries; `gpus` it held, the last time; `gpu_seconds`: both
    together, None where `gpus` were the same each time; `tokens`: of training, those trained on; `at`: both up to each
    share of its steps that --export-at names; `table`: of an evaluation, its summary; `told`: what the verb printed, or
    the error. `machine`: the host's name and Ray's of its part of the cluster. `version`: of vig-ray; "" of those that
    kept none. `like`, `size`: what tells its kind, and how many samples it was of, by which others' times are
    estimated."""

    name: str
    stage: str
    verb: str
    command: str
    state: Literal["done", "failed"]
    told: str
    seconds: float = 0.0
    gpus: int = 0
    machine: str = ""
    tokens: int | None = None
    at: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    table: Mapping[str, Any] | None = field(default=None, hash=False)
    gpu_seconds: float | None = None
    version: str = ""
    like: str = ""
    size: Size = NO_SIZE

    @property
    def on_gpus(self) -> float:
        """Seconds times the GPUs that were held."""
        return self.seconds * self.gpus if self.gpu_seconds is None else self.gpu_seconds

    @property
    def done(self) -> bool:
        """Whether its output is whole."""
        return self.state == "done"


def folder_of(out: str, name: str) -> str:
    """Where a stage of the study in `out` writes."""
    return join(out, RUNS, name)


def out_of(out: str, node: Node) -> str:
    """A stage's --out."""
    within = KINDS[node.verb].within
    return join(folder_of(out, node.name), within) if within else folder_of(out, node.name)


def read(out: str, name: str) -> Record | None:
    """The record of a stage; None where there is none. Raises StageError for one that can't be read."""
    where = join(folder_of(out, name), RECORD)
    if exists(where).name != "File":
        return None
    try:
        kept = json.loads(read_bytes(where))
        fields = {name: value for name, value in kept.items() if name in Record.__dataclass_fields__}
        return Record(**fields | {"size": Size(*fields.get("size", ()))})
    except (ValueError, TypeError, AttributeError) as error:
        raise StageError(f"{where}: can't be read ({one_line(error)}); delete it, and the stage runs again") from error


def all_of(out: str) -> list[Record]:
    """The records of all stages that have ended in a study's folder, of whatever command. Raises StageError."""
    folder = absolute(join(out, RUNS))
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = [read(out, name) for name in names if _NAME.fullmatch(name)]
    return [each for each in found if each is not None]


def write(out: str, record: Record) -> None:
    """Keep a record."""
    where = join(folder_of(out, record.name), RECORD)
    write_bytes(where, (json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n").encode())


def command_of(node: Node, out: str) -> str:
    """The command line that does what a node does."""
    config_class, _ = loaded(node.verb)
    words = ["vig", node.verb]
    for option, value in node.options.items():
        words += _words(option, value, config_class.model_fields[option])
    return shlex.join([*words, "--out", out_of(out, node)])


def _words(option: str, value: Any, field_: FieldInfo) -> list[str]:
    if isinstance(value, bool):
        return [flag_of(option) if value else flag_of(f"no-{option}")]
    if isinstance(value, Mapping):
        return [flag_of(option), *(f"{name}={each}" if name else str(each) for name, each in value.items())]
    if isinstance(value, list | tuple):
        several = [str(each) for each in value]
        return [flag_of(option), *(several if extra_of(field_).get("repeated") else [",".join(several)])]
    return [flag_of(option), str(value)]
