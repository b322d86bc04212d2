"""What a review of `vig eval` found, each held by a small case worked by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vig_ray.evaluation.outcomes import Marked
from vig_ray.evaluation.tasks import task


def marked(**columns: list[float]) -> Marked:
    """Marks of as many questions, all answered."""
    arrays = {name.replace("_", " "): np.array(values) for name, values in columns.items()}
    keys = pa.array([f"q{number}" for number in range(len(next(iter(arrays.values()))))])
    answered = np.ones(len(keys), dtype=bool)
    return Marked(keys, keys, pa.nulls(len(keys), pa.string()), answered, arrays, Counter(), {})


@pytest.mark.parametrize(("name", "tokens"), [("held-out", "tokens"), ("swap:held-out", "swap_tokens")])
def test_losses_by_token_do_not_count_and_other_tokens_are_told(name: str, tokens: str) -> None:
    made: Any = task(name)
    assert not any(metric.main for metric in made.metrics_of)
    base, same = marked(**{tokens: [3.0, 4.0, np.nan]}), marked(**{tokens: [3.0, 4.0, 5.0]})
    other = marked(**{tokens: [3.0, 6.0, 5.0]})
    assert not list(made.told({"base": base, "same": same}, "base"))
    (line,) = made.told({"base": base, "other": other}, "base")
    assert line.startswith(f"{name}: 1 right answers are of other numbers of tokens for other than for base")
