"""Reports of made-up scores, and what their numbers are held against."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vig_ray.demo import CHECKPOINT
from vig_ray.report import job
from vig_ray.report.job import ReportConfig

NEAR = 0.25


def with_turns(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Answers of several turns, a long one now and then, and a few that were truncated."""
    rng = np.random.default_rng(seed)
    for number, row in enumerate(rows):
        if row["vig"] is None:
            continue
        if number % 50 == 0:
            for name in ("token_ids", "clean_logprobs", "blur_logprobs"):
                row[name] = row[name] * 9
            row["num_answer_tokens"] = len(row["token_ids"])
        row["turn"] = sorted(rng.integers(0, 3, row["num_answer_tokens"]).tolist())
        row["num_truncated_tokens"] = int(number % 40 == 0)
    rows[3] |= dict.fromkeys(("vig", "clean_loss", "clean_logprobs", "blur_loss", "blur_logprobs"))
    rows[3]["error"] = "TooLarge: too large"
    return rows


def report(scores: str, out: Path, **options: Any) -> dict[str, Any]:
    """The numbers of a report, as the JSON file has them."""
    job.run(ReportConfig(**{"scores": scores, "out": str(out / "r.html"), "model": CHECKPOINT, "near_zero": NEAR,
                            "figures": False, "tagger": "none"} | options))  # fmt: skip
    found: dict[str, Any] = json.loads((out / "r.json").read_text())
    return found


def gains_of(row: dict[str, Any]) -> list[float]:
    return [a - b for a, b in zip(row["clean_logprobs"], row["blur_logprobs"], strict=True)]


def assert_mean(found: dict[str, Any], values: list[float]) -> None:
    assert found["mean"] == pytest.approx(statistics.fmean(values), abs=1e-9)
    if len(values) < 2:
        assert found["low"] is None
        assert found["high"] is None
        return
    half = 1.959963984540054 * statistics.stdev(values) / math.sqrt(len(values))
    assert found["low"] == pytest.approx(statistics.fmean(values) - half, abs=1e-7)
    assert found["high"] == pytest.approx(statistics.fmean(values) + half, abs=1e-7)
