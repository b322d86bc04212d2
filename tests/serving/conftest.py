"""The HTTP side over the real engine, in this process."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from serve_app.access import read_access
from serve_app.api import Api
from serve_app.batching import Batcher
from serve_app.clients import current
from serve_app.keys import plain_keys
from serve_app.options import AppConfig
from serve_app.prepare import PreparedSample
from serve_app.routes import make_app
from serve_app.schema import ModelFacts
from vig_ray.demo import CHECKPOINT
from vig_ray.scoring.engines import LogProbs
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.score import run_passes

FACTS = ModelFacts(name="demo", fingerprint="f" * 16, template="t" * 16, dtype="float32", engine="torch")


class LocalBackend:
    """A backend without Ray: the engine and the batches of a replica."""

    def __init__(self, engine: TorchEngine) -> None:
        self.loaded, self.scoring = True, 0
        self.gate = threading.Event()  # samples wait before it; open unless a test closes it
        self.gate.set()
        self.recorded: list[tuple[str, int]] = []
        self.refusals: list[tuple[str, int]] = []
        self.verdicts: list[tuple[str, str, str]] = []
        self._batches: Any = Batcher(lambda pairs: run_passes(engine, pairs), max_tokens=4096)

    async def score(self, prepared: PreparedSample) -> tuple[LogProbs, LogProbs]:
        self.scoring += 1
        try:
            while not self.gate.is_set():
                await asyncio.sleep(0.01)
        finally:
            self.scoring -= 1
        logprobs: tuple[LogProbs, LogProbs] = await self._batches(prepared.pair, prepared.tokens, current().name)
        return logprobs

    async def facts(self) -> ModelFacts | None:
        return FACTS if self.loaded else None

    def record(self, route: str, status: int, seconds: float) -> None:
        self.recorded.append((route, status))

    def watch(self, under_way: Callable[[], int]) -> None:
        self.under_way = under_way

    def refused(self, kind: str, status: int) -> None:
        self.refusals.append((kind, status))

    def gated(self, policy: str, key: str, verdict: str) -> None:
        self.verdicts.append((policy, key, verdict))


@pytest.fixture(scope="session")
def engine(demo_model: Any, demo_formatter: Any) -> TorchEngine:
    return TorchEngine(demo_model, demo_formatter.collate)


@pytest.fixture
def serving(engine: TorchEngine, demo_formatter: Any) -> Callable[..., tuple[TestClient, LocalBackend]]:
    """A client of an application with these options; its backend. `keys`: plain ones; `keys_file`: --keys."""

    def make(
        *, keys: str = "", keys_file: str | None = None, client: str = "127.0.0.1", **options: Any
    ) -> tuple[TestClient, LocalBackend]:
        backend = LocalBackend(engine)
        config = AppConfig(**{"model": f"demo={CHECKPOINT}", "keys": keys_file} | options)
        access = read_access(config)
        if keys:
            access = access._replace(keys=plain_keys(keys))
        app = make_app(Api(config, demo_formatter, backend, access))
        return TestClient(app, "http://localhost", client=(client, 1234), raise_server_exceptions=False), backend

    return make


def png(seed: int = 0, side: int = 56) -> bytes:
    """An image file."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side + 8, 3), dtype=np.uint8)
    return bytes(cv2.imencode(".png", pixels)[1])


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()
