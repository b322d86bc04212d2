"""The stand-in server, and waits that aren't waited for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.stand_in import StandIn
from vig_ray.client import retries


@pytest.fixture
def server() -> Iterator[StandIn]:
    stand_in = StandIn()
    yield stand_in
    stand_in.stop()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """What clients were to wait, in order; they don't wait that long."""
    told: list[float | None] = []
    wait = retries.Retries.wait

    def short(self: retries.Retries, tries: int, error: Exception) -> float | None:
        told.append(wait(self, tries, error))
        return None if told[-1] is None else 0.001

    monkeypatch.setattr(retries.Retries, "wait", short)
    return told
