"""Two processes (gloo), each with microbatches of its own: the loss and gradients of all of them together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.end_to_end.server import free_port
from tests.forks import in_processes
from tests.integrations.made import expected, farthest, messages_rows, weighted
from tests.integrations.trained import one_step
from vig_ray.demo import CHECKPOINT

CASES = {
    "transformers, masks": ("transformers", "masks", "tokens"),
    "transformers, real": ("transformers", "real", "samples"),
    "trl, masks": ("trl", "masks", "samples"),
    "trl, real": ("trl", "real", "tokens"),
}


def _work(rank: int, folder: str, port: int, given: dict[str, Any]) -> None:
    """What torchrun sets, and a step of each trainer."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    for name, (kind, weights, normalisation) in CASES.items():
        options = {"gradient_accumulation_steps": 2, "normalisation": normalisation, "ddp_backend": "gloo"}
        found = one_step(kind, CHECKPOINT, given[weights], Path(folder) / str(rank), **options)
        assert torch.distributed.get_world_size() == 2
        torch.save(tuple(found), f"{folder}/{name}.{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_two_processes_give_the_loss_of_the_whole(tmp_path: Path) -> None:
    rows = messages_rows(tmp_path)
    given = {kind: weighted(rows, CHECKPOINT, kind) for kind in ("masks", "real")}
    in_processes(_work, (str(tmp_path), free_port(), given), 2)
    for name, (_, weights, normalisation) in CASES.items():
        wanted = expected(CHECKPOINT, given[weights], normalisation)
        for rank in range(2):
            loss, gradients = torch.load(tmp_path / f"{name}.{rank}.pt")
            assert loss == pytest.approx(wanted.loss, abs=1e-5), name
            assert farthest(gradients, wanted.gradients) < 1e-5, name
