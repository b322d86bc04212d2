"""The HTTP application beside the bare engine: `python benchmarks/serve.py`.

Two models: a LLaVA at random weights that is wide enough to cost about 50 ms a sample here, and the demo model. For
each: samples/s of the engine with its preparation (decoding, blur, tokenising) alone in one plain process; samples/s
and latency through `vig serve` at 1, 8, 64 and 256 clients (closed loop); an open loop at twice the rate that saturates
it, where throughput must hold and the surplus must be 503, with the time that such a refusal takes and what it costs
the CPU; and samples/s of one stream. Load by aiohttp's client, in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import psutil
import torch

from vig_ray.demo import CHECKPOINT
from vig_ray.demo.world import draw, samples

CLIENTS = (1, 8, 64, 256)
SATURATING = 64
AHEAD = 128
JSON = {"Content-Type": "application/json"}


def wide(folder: Path, width: int) -> str:
    """The demo model's architecture, `width` wide, at random weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    config = AutoConfig.from_pretrained(CHECKPOINT)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, 3 * width, 8
    text.num_attention_heads = text.num_key_value_heads = width // 64
    text.head_dim = 64
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(CHECKPOINT).save_pretrained(folder)
    return str(folder)


def requests(count: int) -> list[dict[str, Any]]:
    found = []
    for _, sample in samples(4 * count, 11):
        if sample.scene is not None and len(found) < count:
            file = io.BytesIO()
            draw(sample.scene).save(file, "PNG")
            turn = sample.turns[0]
            image = base64.b64encode(file.getvalue()).decode()
            found.append({"question": turn.question, "answer": turn.answer, "image": image})
    return found


def engine_alone(model: str, asked: list[dict[str, Any]]) -> None:
    """Print samples/s of the engine and its preparation for every line on standard input, a number of seconds."""
    from vig_ray.dataset.images import decode_image
    from vig_ray.dataset.schema import Turn
    from vig_ray.model.load import load_formatter, load_model
    from vig_ray.model.prompt import PromptImage
    from vig_ray.scoring.engines.torch import TorchEngine
    from vig_ray.scoring.prepare import make_passes, prepare
    from vig_ray.scoring.score import run_passes

    formatter = load_formatter(model)
    passes = make_passes(("clean", "blur"), formatter)

    def prepared(number: int) -> Any:
        each = asked[number % len(asked)]
        encoded = base64.b64decode(each["image"])
        image = PromptImage(str(number), partial(decode_image, encoded), formatter.preprocess)
        turns = [Turn("user", f"<image>\n{each['question']}"), Turn("assistant", each["answer"])]
        pair = prepare(formatter, passes, turns, [image]).prompts
        image.release()
        return pair

    engine = TorchEngine(load_model(model, dtype="float32", device="cpu"), formatter.collate)
    run_passes(engine, [prepared(number) for number in range(16)])
    for line in sys.stdin:
        began, done = time.monotonic(), 0
        while time.monotonic() - began < float(line):
            run_passes(engine, [prepared(done + number) for number in range(64)])
            done += 64
        print(done / (time.monotonic() - began), flush=True)


def rate_of(answered: list[float]) -> float:
    """Answers a second: the slope of their count over time, since they come a batch at a time."""
    return float(np.polyfit(answered, np.arange(len(answered)), 1)[0])


async def closed(url: str, asked: list[bytes], clients: int, seconds: float) -> tuple[float, list[float]]:
    """Samples/s and latencies of `clients` that each ask again as soon as they are answered."""
    answered: list[float] = []
    taken: list[float] = []
    end = time.monotonic() + seconds
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=JSON) as client:

        async def one(number: int) -> None:
            began = time.monotonic()
            while time.monotonic() < end:
                async with client.post(f"{url}/v1/score", data=asked[number % len(asked)]) as answer:
                    await answer.read()
                    if answer.status == 503:  # more clients than places: it comes again, and its time runs on
                        await asyncio.sleep(float(answer.headers["Retry-After"]))
                        continue
                    answer.raise_for_status()
                answered.append(time.monotonic())
                taken.append(answered[-1] - began)
                began = answered[-1]
                number += clients

        await asyncio.gather(*(one(number) for number in range(clients)))
    return rate_of([each for each in answered if each <= end]), taken


class Opened(NamedTuple):
    """Samples/s answered, how many answers of each status, and how long each refusal took."""

    rate: float
    statuses: Counter[int]
    refused_after: list[float]


async def opened(url: str, asked: list[bytes], rate: float, seconds: float) -> Opened:
    """Ask `rate` times a second, whatever happens."""
    statuses: Counter[int] = Counter()
    answered: list[float] = []
    refused_after: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=JSON) as client:

        async def one(number: int) -> None:
            asked_at = time.monotonic()
            async with client.post(f"{url}/v1/score", data=asked[number % len(asked)]) as answer:
                await answer.read()
            statuses[answer.status] += 1
            if answer.status == 200:
                answered.append(time.monotonic())
            else:
                refused_after.append(time.monotonic() - asked_at)

        began, tasks = time.monotonic(), []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            tasks.append(asyncio.create_task(one(number)))
        end = time.monotonic()
        await asyncio.gather(*tasks)
    # The queue fills at first: the rate is that of the rest, while requests still came.
    kept = [each for each in answered if began + seconds / 4 <= each <= end]
    return Opened(rate_of(kept), statuses, refused_after)


async def streamed(url: str, asked: list[bytes], seconds: float) -> float:
    """Samples/s of one stream."""
    answered: list[float] = []
    end = time.monotonic() + seconds

    async def lines() -> AsyncIterator[bytes]:
        number = 0
        while time.monotonic() < end:
            if number - len(answered) < AHEAD:
                yield asked[number % len(asked)] + b"\n"
                number += 1
            else:  # the sockets on the way hold thousands, which would all have to be scored after the end
                await asyncio.sleep(0.01)

    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{url}/v1/score/stream", data=lines(), headers={"Content-Type": "application/x-ndjson"}) as answer,
    ):
        answer.raise_for_status()
        lines_of_answer = aiter(answer.content)
        while line := await anext(lines_of_answer, b""):
            answered.append(time.monotonic())
            last = line
    ended = json.loads(last)
    assert ended == {"end": True, "samples": len(answered) - 1, "failed": 0}, ended
    return rate_of([each for each in answered[:-1] if each <= end])


def cpu_of(server: subprocess.Popen[str], name: str) -> float:
    """Seconds of CPU that the server's processes with this name have taken."""
    taken = 0.0
    for process in psutil.Process(server.pid).children(recursive=True):
        if name in " ".join(process.cmdline()):
            taken += sum(process.cpu_times()[:2])
    return taken


class Measured:
    """What came out for one model, round by round."""

    def __init__(self) -> None:
        self.alone: list[float] = []
        self.ratios: dict[Any, list[float]] = defaultdict(list)
        self.latencies: dict[int, list[float]] = defaultdict(list)
        self.statuses: Counter[int] = Counter()
        self.refused_after: list[float] = []
        self.refusal_cpu: list[float] = []

    def round(self, engine: subprocess.Popen[str], server: Any, url: str, asked: list[bytes], seconds: float) -> None:
        """Each figure once. What is compared is measured in turns, since a shared machine's speed drifts."""
        assert engine.stdin is not None
        assert engine.stdout is not None
        print(seconds, file=engine.stdin, flush=True)
        self.alone.append(float(engine.stdout.readline()))
        best = 0.0
        for clients in CLIENTS:
            before = cpu_of(server, "Entrance")
            rate, taken = asyncio.run(closed(url, asked, clients, seconds))
            self.ratios[clients].append(rate / self.alone[-1])
            self.latencies[clients] += taken
            if clients == SATURATING:
                best, answer_cpu = rate, (cpu_of(server, "Entrance") - before) / len(taken)
        before = cpu_of(server, "Entrance")
        found = asyncio.run(opened(url, asked, 2 * best, seconds))
        rest = cpu_of(server, "Entrance") - before - answer_cpu * found.statuses[200]
        self.ratios["twice"].append(found.rate / best)
        self.statuses += found.statuses
        self.refused_after += found.refused_after
        if found.refused_after:
            self.refusal_cpu.append(1000 * rest / len(found.refused_after))
        self.ratios["stream"].append(asyncio.run(streamed(url, asked, seconds)) / self.alone[-1])

    def tell(self) -> None:
        """Print the figures."""
        alone = float(np.median(self.alone))
        print(f"  engine with its preparation alone {alone:.1f} samples/s ({1000 / alone:.1f} ms a sample)")
        for clients in CLIENTS:
            ratios, told = _of(self.ratios[clients]), _quantiles(self.latencies[clients])
            print(f"  {clients:3} clients: {ratios} of that; latency {told}")
        statuses = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()))
        print(f"  twice the load of {SATURATING} clients: {_of(self.ratios['twice'])} of their samples/s; {statuses}")
        if self.refused_after:
            cost = float(np.median(self.refusal_cpu))
            print(f"  a refusal: {_quantiles(self.refused_after)}; about {cost:.1f} ms of the entrance's CPU")
        print(f"  stream: {_of(self.ratios['stream'])} of the engine with its preparation alone", flush=True)


def measure(name: str, model: str, asked: list[bytes], seconds: float, rounds: int, port: int) -> None:
    """Print the figures of one model."""
    script = f"from benchmarks.serve import *; engine_alone({model!r}, requests(64))"
    engine = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    began = time.monotonic()
    server = subprocess.Popen(
        [sys.executable, "-m", "vig_ray.cli", "serve", "--model", model, "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        print(f"{name}: ready after {time.monotonic() - began:.1f} s", flush=True)
        asyncio.run(closed(url, asked, 8, 5))
        found = Measured()
        for _ in range(rounds):
            found.round(engine, server, url, asked, seconds)
        found.tell()
    finally:
        engine.kill()
        server.terminate()
        server.wait(60)


def _quantiles(seconds: list[float]) -> str:
    p50, p95, p99 = 1000 * np.quantile(seconds, [0.5, 0.95, 0.99])
    return f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms"


def _of(ratios: list[float]) -> str:
    return f"{np.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--port", type=int, default=8199)
    options = parser.parse_args()
    asked = [json.dumps(each).encode() for each in requests(256)]
    with tempfile.TemporaryDirectory() as folder:
        measure("wide model", wide(Path(folder), options.width), asked, options.seconds, options.rounds, options.port)
        measure("demo model", CHECKPOINT, asked, options.seconds, options.rounds, options.port + 1)


if __name__ == "__main__":
    main()
