"""The trainer against training written out plainly: the same losses, the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.plain import plain_training
from tests.training.runs import alone, setup_of, together, weights_of
from vig_ray.demo import CHECKPOINT

STEPS = 20


@pytest.fixture(scope="module")
def plainly(chosen: Path, demo_formatter: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses, model = plain_training(
        CHECKPOINT, demo_formatter, chosen / "samples", chosen / "selection", steps=STEPS, batch=8, lr=1e-3
    )
    return losses, model.state_dict()


def assert_same(log: list[dict[str, Any]], weights: dict[str, torch.Tensor], plainly: Any) -> None:
    losses, expected = plainly
    assert [line["loss"] for line in log] == pytest.approx(losses, abs=1e-4)
    assert weights.keys() == expected.keys()
    worst = max((weights[name] - expected[name]).abs().max().item() for name in expected)
    print(f"largest difference of a weight: {worst:.1e}")
    assert worst < 1e-4


WAYS = {
    "packed": {},
    "packed, 4 passes": {"micro_batch": 2},
    "padded": {"packing": False},
    "padded, 4 passes": {"packing": False, "micro_batch": 2},
    "recomputed": {"activation_checkpointing": "on"},
}


@pytest.mark.parametrize("way", WAYS)
def test_one_worker_trains_as_written_out_plainly(chosen: Path, plainly: Any, tmp_path: Path, way: str) -> None:
    run = alone(setup_of(chosen, max_steps=STEPS, **WAYS[way]), tmp_path)
    assert_same(run.log, weights_of(run), plainly)


def test_two_workers_train_as_one(chosen: Path, plainly: Any, tmp_path: Path) -> None:
    setups = {name: setup_of(chosen, max_steps=STEPS, **options) for name, options in WAYS.items()}
    for name, found in together(2, tmp_path, setups).items():
        print(name)
        assert_same(found["log"], found["weights"], plainly)
