"""Scores made up for tests: any number of samples, cut into any files, with the record of a finished run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.dataset import importing
from vig_ray.dataset.importing import ImportConfig
from vig_ray.demo import CHECKPOINT, world
from vig_ray.model.load import template_fingerprint
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.prepare import Preparer
from vig_ray.scoring.prepared import unpack
from vig_ray.scoring.schema import scores_schema
from vig_ray.scoring.score import score_rows
from vig_ray.selection import job
from vig_ray.selection.config import SelectConfig
from vig_ray.stage import read_stage, write_stage

BLUR = {"name": "blur", "parameters": {}}
IDENTITY = {"samples": {"inputs": ["made"], "counts": {"rows": 1}}, "model": "m" * 16, "template": "t" * 16}
SCHEMA = scores_schema(["blur"])


def made_up(rows: int, seed: int = 0, *, ties: bool = False, answer: int = 12) -> list[dict[str, Any]]:
    """Rows of `scores/`: three sources, a tenth text-only, a few that failed."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(rows):
        tokens = int(rng.integers(1, answer))
        row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
        row |= {
            "sample_key": f"made/{number}",
            "id": str(number // 2),
            "source": ("coco", "vg", None)[int(rng.integers(3))],
            "num_answer_tokens": tokens,
            "num_truncated_tokens": 0,
            "token_ids": rng.integers(0, 500, tokens).tolist(),
            "turn": [0] * tokens,
        }
        kind = rng.random()
        if kind < 0.04:
            row |= {"error": "FileNotFoundError: gone", "token_ids": None, "turn": None, "num_answer_tokens": None}
        elif kind > 0.14:
            clean = np.minimum(-rng.exponential(1.0, tokens), 0)
            reference = np.minimum(clean - rng.normal(0.3, 1.0, tokens), 0)
            if ties:
                clean, reference = np.round(clean), np.round(reference)
            clean, reference = clean.astype(np.float32), reference.astype(np.float32)
            losses = [-float(np.mean(one, dtype=np.float64)) for one in (clean, reference)]
            row |= {
                "clean_logprobs": clean.tolist(),
                "blur_logprobs": reference.tolist(),
                "clean_loss": losses[0],
                "blur_loss": losses[1],
                "vig": losses[1] - losses[0],
            }
        found.append(row)
    return found


def write(
    directory: Path,
    rows: Sequence[dict[str, Any]],
    *,
    files: int = 3,
    identity: Any = None,
    references: Sequence[str] = ("blur",),
) -> str:
    """Write `directory`/scores of these rows; returns `directory`."""
    named = {"references": [{"name": name, "parameters": {}} for name in references]}
    scores = directory / "scores"
    scores.mkdir(parents=True)
    cuts = np.linspace(0, len(rows), files + 1).astype(int)
    for index in range(files):
        part = list(rows[cuts[index] : cuts[index + 1]])
        pq.write_table(
            pa.Table.from_pylist(part, schema=scores_schema(references)), scores / f"{index}.parquet", row_group_size=97
        )
    config = ScoreConfig(data="made", model="m", out=str(directory))
    facts: dict[str, Any] = {
        "identity": (identity or IDENTITY) | named,
        "complete": True,
        "counts": {"read": len(rows)},
    }
    write_stage(str(scores), "score", config, **facts)
    return str(directory)


def renamed(rows: Sequence[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """The same rows with their scores under another reference's columns."""
    return [{name.replace("blur_", f"{reference}_"): value for name, value in row.items()} for row in rows]


def write_as_before(directory: Path, rows: Sequence[dict[str, Any]], reference: str = "blur") -> str:
    """Write `directory`/scores as versions did that knew one reference a run; returns `directory`."""
    write(directory, renamed(rows, "reference"), references=["reference"])
    record = directory / "scores.stage.json"
    told = json.loads(record.read_text())
    told["config"]["reference"] = told["identity"]["reference"] = reference
    del told["identity"]["references"]
    record.write_text(json.dumps(told))
    return str(directory)


def selected(out: str | Path) -> list[dict[str, Any]]:
    """The rows of a selection in training order."""
    rows: list[dict[str, Any]] = []
    for path in sorted(Path(out, "selection").glob("*.parquet")):
        rows += pq.read_table(path).to_pylist()
    return sorted(rows, key=lambda row: row["position"])


def write_selected(out: Path, model: Any, formatter: Any, *, samples: int, p: float, **options: Any) -> None:
    """Demo samples in `out`: imported, scored with the torch engine, and selected; all without Ray."""
    data = world.write(str(out / "data"), samples, 123)
    imported = importing.run(ImportConfig(data=data, out=str(out)))
    tables = [pq.read_table(path) for path in sorted(Path(imported.directory).glob("*.parquet"))]
    preparer = Preparer(
        model=CHECKPOINT,
        template="auto",
        max_length=None,
        passes=("clean", "blur"),
        too_long="error",
        max_image_pixels=10**8,
    )
    prepared = preparer(pa.concat_tables(tables))
    rows = score_rows(TorchEngine(model, formatter.collate), unpack(prepared), ("clean", "blur"))
    (out / "scores").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), out / "scores" / "0.parquet")
    stage = read_stage(imported.directory) or {}
    identity = {
        "samples": {key: stage.get(key) for key in ("inputs", "format", "images", "name", "counts")},
        "model": "m",
        "template": template_fingerprint(formatter),
        "references": [BLUR],
    }
    config = ScoreConfig(data=data, model=CHECKPOINT, out=str(out))
    write_stage(str(out / "scores"), "score", config, identity=identity, complete=True)
    job.run(SelectConfig(scores=str(out), out=str(out), p=p, **options))


def copy_outputs(source: Path, target: Path, *names: str) -> None:
    """Copy outputs of stages, such as scores/, with the records beside them."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copytree(source / name, target / name)
        shutil.copy(source / f"{name}.stage.json", target)
