"""Scores made up for tests: any number of samples, cut into any files, with the record of a finished run."""

from __future__ import annotations

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
from vig_ray.scoring.schema import SCORES
from vig_ray.scoring.score import score_rows
from vig_ray.selection import job
from vig_ray.selection.config import SelectConfig
from vig_ray.stage import read_stage, write_stage

IDENTITY = {"samples": {"inputs": ["made"], "counts": {"rows": 1}}, "model": "m" * 16, "template": "t" * 16}


def made_up(rows: int, seed: int = 0, *, ties: bool = False, answer: int = 12) -> list[dict[str, Any]]:
    """Rows of `scores/`: three sources, a tenth text-only, a few that failed."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(rows):
        tokens = int(rng.integers(1, answer))
        row: dict[str, Any] = dict.fromkeys(SCORES.names)
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
                "reference_logprobs": reference.tolist(),
                "clean_loss": losses[0],
                "reference_loss": losses[1],
                "vig": losses[1] - losses[0],
            }
        found.append(row)
    return found


def write(directory: Path, rows: Sequence[dict[str, Any]], *, files: int = 3, identity: Any = None) -> str:
    """Write `directory`/scores of these rows; returns `directory`."""
    scores = directory / "scores"
    scores.mkdir(parents=True)
    cuts = np.linspace(0, len(rows), files + 1).astype(int)
    for index in range(files):
        part = list(rows[cuts[index] : cuts[index + 1]])
        pq.write_table(pa.Table.from_pylist(part, schema=SCORES), scores / f"{index}.parquet", row_group_size=97)
    config = ScoreConfig(data="made", model="m", out=str(directory))
    write_stage(str(scores), "score", config, identity=identity or IDENTITY, complete=True, counts={"read": len(rows)})
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
        reference="blur",
        too_long="error",
        max_image_pixels=10**8,
    )
    prepared = preparer(pa.concat_tables(tables))
    rows = score_rows(TorchEngine(model, formatter.collate), prepared.to_pylist())
    (out / "scores").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORES), out / "scores" / "0.parquet")
    stage = read_stage(imported.directory) or {}
    identity = {
        "samples": {key: stage.get(key) for key in ("inputs", "format", "images", "name", "counts")},
        "model": "m",
        "template": template_fingerprint(formatter),
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
