"""What the torch engine computes, counted by torch, beside the least."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.flops import compared, counted
from benchmarks.llava_shape import PASSES, Family, llava, samples
from vig_ray.scoring.engines.torch import TorchEngine


@pytest.fixture(scope="module")
def family() -> Family:
    return llava("small")


@pytest.fixture(scope="module")
def model(family: Family) -> Any:
    return family.model()


@pytest.mark.parametrize("name", PASSES)
def test_the_engine_computes_hardly_more_than_the_least(family: Family, model: Any, name: str) -> None:
    engine = TorchEngine(model, family.formatter.collate)
    result = compared(family, model, engine, samples(family, 12), name)
    assert result.difference < 1e-5
    # What the least has is needed, but for attention, whose future a kernel may leave out.
    assert result.engine.by_part["layers"] >= result.least.layers
    assert result.engine.total <= 1.05 * result.least.total


def test_attention_is_counted_on_a_cpu() -> None:
    layer = torch.nn.Linear(4, 4)
    model = torch.nn.ModuleDict({"language_model": layer})
    model.get_decoder = lambda: torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})  # type: ignore[assignment]
    query = torch.randn(2, 3, 5, 4)

    def call() -> None:
        layer(query)
        torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)

    with torch.no_grad():
        seen = counted(model, call)
    assert seen.by_part["attention and others"] == 4 * 2 * 3 * 5 * 5 * 4
    assert seen.by_part["layers"] == 2 * (2 * 3 * 5) * 4 * 4
    assert seen.tokens == 2 * 3 * 5
