"""Stages whose outputs another version of vig-ray wrote: told of, and run again where that is asked for.

A version isn't part of a stage's name: a release would run everything again. What `--again` runs again is moved aside,
OUT/runs/NAME.vig-ray-VERSION, with all that was made from it, so that nothing is taken for what it isn't.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import vig_ray
from vig_ray.errors import StageError
from vig_ray.study import record as records
from vig_ray.study.graph import Node
from vig_ray.study.record import RUNS, Record, folder_of

ALL = "all"
_NAMED = re.compile(rf"/{RUNS}/([\w-]+)")
_UNKNOWN = "one that kept none"


def of_other_versions(taken: Iterable[Record]) -> list[Record]:
    """Those of what is there that this version didn't write."""
    return [each for each in taken if each.version != vig_ray.__version__]


def told(taken: Iterable[Record]) -> str | None:
    """One line that says how many stages other versions wrote, and which; None where none did."""
    counts = Counter(each.version or _UNKNOWN for each in of_other_versions(taken))
    if not counts:
        return None
    listed = ", ".join(f"{count:,} by {version}" for version, count in sorted(counts.items()))
    return (
        f"taken as they are: outputs of stages that another version of vig-ray wrote ({listed}; this is "
        f"{vig_ray.__version__}); --again STAGE or --again all runs them again"
    )


def asked_for(which: str, taken: Mapping[str, Record], nodes: Mapping[str, Node], out: str) -> list[str]:
    """The names of what is run again, those that are made from others before these: of the stages `which` (names with
    commas, or "all") what another version wrote, and whatever in OUT was made from it, finished or not. Raises
    StageError."""
    known = dict.fromkeys(node.stage for node in nodes.values())
    wanted = list(known) if which == ALL else [each.strip() for each in which.split(",")]
    for stage in wanted:
        if stage not in known:
            raise StageError(f"--again {stage}: no such stage; there are {', '.join(known)}, or all")
    there = (taken[name] for name, node in nodes.items() if name in taken and node.stage in wanted)
    found = {each.name for each in of_other_versions(there)}
    made_from = {name: {*node.inputs} for name, node in nodes.items() if os.path.isdir(folder_of(out, name))}
    made_from |= {each.name: {*_NAMED.findall(each.command)} - {each.name} for each in records.all_of(out)}
    while more := {name for name, others in made_from.items() if name not in found and others & found}:
        found |= more
    ordered: list[str] = []
    while found:
        last = sorted(name for name in found if not any(name in made_from.get(other, ()) for other in found))
        ordered += last
        found -= {*last}
    return ordered


def move_aside(names: Iterable[str], out: str) -> None:
    """Put these outputs aside, in this order: killed half-way, the same command finds the rest again."""
    for name in names:
        found = records.read(out, name)
        version = found.version if found is not None and found.version else "unknown"
        folder = folder_of(out, name)
        place, number = f"{folder}.vig-ray-{version}", 1
        while os.path.lexists(place):
            number += 1
            place = f"{folder}.vig-ray-{version}-{number}"
        os.rename(folder, place)


def moved_text(names: Iterable[str], nodes: Mapping[str, Node]) -> str:
    """What is run again, in one line."""
    counts = Counter(nodes[name].stage if name in nodes else "of other arms or commands" for name in names)
    if not counts:
        return f"--again: nothing that is there was written by another version than {vig_ray.__version__}"
    listed = ", ".join(f"{count:,} {stage}" for stage, count in counts.items())
    return f"again, with what was made from them: {listed}; what is there is kept in runs/*.vig-ray-*"
