"""`vig serve` for long, under everything at once: right answers, refusals as promised, nothing that hangs or grows.

VIG_TEST_SOAK_MINUTES=30 python -m pytest -m long tests/end_to_end/test_serve_soak.py -s
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import pytest

from tests import gates as gating
from tests.end_to_end.server import Server
from tests.end_to_end.test_serve import Asked, requests_of
from tests.serving.malformed import request_of, undocumented
from vig_ray.scoring.engines.torch import TorchEngine

MINUTES = float(os.environ.get("VIG_TEST_SOAK_MINUTES", "2"))
TIMEOUT_S = 30  # the server's; no request takes longer than this and what the client itself waits
JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}

pytestmark = [pytest.mark.long, pytest.mark.timeout(MINUTES * 60 + 600)]


class Soak:
    """The load, and what came of it: `statuses` by kind of client, and whatever is `wrong`."""

    def __init__(self, server: Server, asked: list[Asked]) -> None:
        self.server, self.asked = server, asked
        self.statuses: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.sizes: list[tuple[float, float, float]] = []  # seconds, MB and open files of all but the engines
        self._rng = random.Random(5)
        self._end = time.monotonic() + MINUTES * 60

    def going_on(self) -> bool:
        return time.monotonic() < self._end

    def check(self, answer: dict[str, Any], row: dict[str, Any]) -> None:
        if abs(answer["vig"] - row["vig"]) > 1e-5:
            self.wrong.append(f"vig {answer['vig']}, not {row['vig']}")

    async def steady(self, client: aiohttp.ClientSession) -> None:
        """Asks, checks, asks again."""
        body, row = self._rng.choice(self.asked)
        async with client.post("/v1/score", json=body) as answer:
            told = await answer.json()
            self.statuses[f"steady {answer.status}"] += 1
            if answer.status == 200:
                self.check(told, row)
            elif answer.status == 503 and "Retry-After" in answer.headers:
                await asyncio.sleep(float(answer.headers["Retry-After"]))
            else:
                self.wrong.append(f"{answer.status}: {told}")

    async def streaming(self, client: aiohttp.ClientSession) -> None:
        """A stream of fifty samples, each answered in its place."""
        chosen = [self._rng.choice(self.asked) for _ in range(50)]
        body = b"".join(json.dumps(asked).encode() + b"\n" for asked, _ in chosen)
        async with client.post("/v1/score/stream", data=body, headers=NDJSON) as answer:
            if answer.status == 503:
                self.statuses["stream 503"] += 1
                await asyncio.sleep(1)
                return
            *items, end = [json.loads(line) async for line in answer.content]
        self.statuses[f"stream {end['end']}"] += 1
        if not end["end"] or len(items) != len(chosen):
            self.wrong.append(f"a stream of {len(chosen)} ended so: {end}")
        for item, (_, row) in zip(items, chosen, strict=False):
            self.statuses[f"line {item.get('error', {}).get('kind', 200)}"] += 1
            if "result" in item:
                self.check(item["result"], row)
            elif item["error"]["kind"] not in ("Busy", "Timeout"):
                self.wrong.append(f"a line: {item}")

    async def vanishing(self, client: aiohttp.ClientSession) -> None:
        """Leaves before it is answered."""
        asking = asyncio.create_task(self.steady(client))
        await asyncio.sleep(self._rng.random() * 0.2)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        self.statuses["vanished"] += 1

    async def malformed(self, client: aiohttp.ClientSession) -> None:
        """A fuzzer's body: only documented answers."""
        route, body, headers = request_of(self._rng)
        async with client.post(route, data=body, headers=headers) as answer:
            self.statuses[f"malformed {answer.status}"] += 1
            if wrong := undocumented(route, answer.status, await answer.text(), also=(503,)):
                self.wrong.append(f"malformed: {wrong}")

    async def slow(self, _: aiohttp.ClientSession) -> None:
        """Sends a byte a second, and reads nothing until it is cut off."""
        port = int(self.server.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 100000\r\n\r\n"
        began = time.monotonic()
        try:
            for byte in head.encode() + b" " * 1000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1 if self._rng.random() < 0.5 else 0.01)
                if reader.at_eof():
                    break
        except OSError:
            pass
        finally:
            writer.close()
        self.statuses["slow"] += 1
        if time.monotonic() - began > 3 * TIMEOUT_S + 10:
            self.wrong.append("a slow client was not cut off")

    async def again(self, what: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, None]]) -> None:
        limit = aiohttp.ClientTimeout(total=4 * TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self.server.url, timeout=limit, connector=connector) as client:
            while self.going_on():
                try:
                    await what(client)
                except TimeoutError:
                    self.wrong.append(f"{what.__name__} hung")
                except aiohttp.ClientError as error:
                    self.wrong.append(f"{what.__name__}: {type(error).__name__}: {error}")

    async def killing(self) -> None:
        """An engine's process every twenty seconds."""
        while self.going_on():
            await asyncio.sleep(20)
            engines = self.server.replicas("Scorer")
            if len(engines) == 2:  # else the last one's successor is still being loaded
                self._rng.choice(engines).send_signal(signal.SIGKILL)
                self.statuses["killed"] += 1

    async def measuring(self) -> None:
        began = time.monotonic()
        while self.going_on():
            await asyncio.sleep(5)
            own = [psutil.Process(self.server.process.pid), *self.server.replicas("Entrance")]
            size, files = 0.0, 0
            for process in own:
                size += process.memory_info().rss / 1e6
                files += process.num_fds()
            self.sizes.append((time.monotonic() - began, size, files))

    async def run(self) -> None:
        load = [self.steady] * 12 + [self.streaming] * 2 + [self.vanishing] * 4 + [self.malformed] * 4 + [self.slow] * 4
        await asyncio.gather(*map(self.again, load), self.killing(), self.measuring())


@pytest.fixture
def server(preforked: None) -> Iterator[Server]:
    started = Server("--workers", 2, "--queue", 64, "--timeout", TIMEOUT_S)
    yield started
    assert "Traceback" not in started.stop()


def test_it_is_left_running(
    server: Server, tmp_path: Path, demo_model: Any, demo_formatter: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    world = gating.write_world(tmp_path, 40, 77)
    engine = TorchEngine(demo_model, demo_formatter.collate)
    soak = Soak(server, requests_of(world, gating.expected_scores(world, engine.logprobs)))
    asyncio.run(soak.run())
    # The first part is for caches and pools to fill.
    after = [size for size in soak.sizes if size[0] > min(300, MINUTES * 60 / 3)]
    seconds, megabytes, files = np.array(after).T
    memory = np.polyfit(seconds / 60, megabytes, 1)[0]
    handles = np.polyfit(seconds / 60, files, 1)[0]
    with capsys.disabled():
        print(f"\n{dict(sorted(soak.statuses.items()))}")
        print(f"memory {megabytes[0]:.0f} to {megabytes[-1]:.0f} MB, {memory:+.2f} MB a minute; ", end="")
        print(f"files {files[0]:.0f} to {files[-1]:.0f}, {handles:+.3f} a minute; wrong: {len(soak.wrong)}")
    assert not soak.wrong, soak.wrong[:20]
    assert memory * MINUTES < 200
    assert handles * MINUTES < 50
