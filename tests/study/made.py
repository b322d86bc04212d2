"""A study of two arms on 80 demo samples, of which a stage takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.evaluation.made import write_questions
from vig_ray.demo import world


def write(folder: Path, **changes: Any) -> Path:
    """study.yaml and what it needs; `changes`: of its keys, stages merged into those that are there."""
    world.write(str(folder / "data"), 80, 3)
    write_questions(folder / "asked", 24)
    stages = {
        "score": {},
        "select": {"p": 50},
        "train": {"lr": 1e-3, "global_batch": 16, "max_steps": 3, "watch": "none"},
        "eval": {"tasks": "exact", "data": {"exact": "asked/exact.jsonl"}, "max_new_tokens": 8},
    }
    for stage, options in changes.pop("stages", {}).items():
        stages[stage] = stages.get(stage, {}) | options
    study = {
        "title": "small",
        "values": {"model": "$demo-model", "data": "data/data.json"},
        "stages": stages,
        "arms": {"random": {"select": {"strategy": "random"}}, "vig": {}},
        "baseline": "random",
        "seeds": 2,
        "orders": ["random < vig on exact.exact"],
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study | changes, sort_keys=False))
    return path


def records(out: Path) -> dict[str, dict[str, Any]]:
    """What a study kept of each stage, by name."""
    return {file.parent.name: json.loads(file.read_text()) for file in out.glob("runs/*/study.json")}


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "study.json").read_text())
    return found


def numbers(out: Path) -> dict[tuple[str, str, str], float]:
    """Every number of a study by row, metric and seed."""
    return {
        (row["label"], metric, seed): value
        for row in results(out)["rows"]
        for metric, found in row["numbers"].items()
        for seed, value in found["by_seed"].items()
    }
