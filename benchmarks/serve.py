"""The HTTP application beside the bare engine: `python benchmarks/serve.py`.

Two models: a LLaVA at random weights that is wide enough to cost about 50 ms a sample here, and the demo model. For
each: samples/s of the engine alone in one process on prepared prompts; samples/s and latency through `vig serve` at 1,
8 and 64 clients (closed loop); and an open loop at twice the rate that saturates it, where throughput must hold and the
surplus must be 503. Load by aiohttp's client, in a process of its own.
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
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import PIL.Image
import torch

from vig_ray.demo import CHECKPOINT
from vig_ray.demo.world import draw, samples

CLIENTS = (1, 8, 64)
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
    """Print samples/s of the engine on prepared prompts for every line on standard input, a number of seconds."""
    from vig_ray.dataset.schema import Turn
    from vig_ray.model.load import load_formatter, load_model
    from vig_ray.model.prompt import PromptImage
    from vig_ray.scoring.engines.torch import TorchEngine
    from vig_ray.scoring.prepare import make_passes, prepare
    from vig_ray.scoring.score import run_passes

    formatter = load_formatter(model)
    passes = make_passes(("clean", "blur"), formatter)
    pairs: list[Any] = []
    for number, each in enumerate(asked):
        pixels = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(each["image"]))).convert("RGB"))
        image = PromptImage(str(number), lambda pixels=pixels: pixels, formatter.preprocess)  # type: ignore[misc]
        turns = [Turn("user", f"<image>\n{each['question']}"), Turn("assistant", each["answer"])]
        pairs.append(prepare(formatter, passes, turns, [image]).prompts)
    engine = TorchEngine(load_model(model, dtype="float32", device="cpu"), formatter.collate)
    run_passes(engine, pairs[:16])
    for line in sys.stdin:
        began, done = time.monotonic(), 0
        while time.monotonic() - began < float(line):
            run_passes(engine, pairs)
            done += len(pairs)
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
            while (began := time.monotonic()) < end:
                async with client.post(f"{url}/v1/score", data=asked[number % len(asked)]) as answer:
                    await answer.read()
                    answer.raise_for_status()
                answered.append(time.monotonic())
                taken.append(answered[-1] - began)
                number += clients

        await asyncio.gather(*(one(number) for number in range(clients)))
    return rate_of([each for each in answered if each <= end]), taken


async def opened(url: str, asked: list[bytes], rate: float, seconds: float) -> tuple[float, dict[int, int]]:
    """Samples/s answered, and how many of each status, where `rate` requests a second come whatever happens."""
    statuses: dict[int, int] = {}
    answered: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=JSON) as client:

        async def one(number: int) -> None:
            async with client.post(f"{url}/v1/score", data=asked[number % len(asked)]) as answer:
                await answer.read()
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            if answer.status == 200:
                answered.append(time.monotonic())

        began, tasks = time.monotonic(), []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            tasks.append(asyncio.create_task(one(number)))
        end = time.monotonic()
        await asyncio.gather(*tasks)
    # The queue fills at first: the rate is that of the rest, while requests still came.
    return rate_of([each for each in answered if began + seconds / 4 <= each <= end]), statuses


def measure(name: str, model: str, asked: list[bytes], seconds: float, rounds: int, port: int) -> None:
    """Print the figures of one model. What is compared is measured in turns, since a shared machine's speed drifts."""
    script = f"from benchmarks.serve import *; engine_alone({model!r}, requests(64))"
    engine = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "vig_ray.cli", "serve", "--model", model, "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert engine.stdin is not None
        assert engine.stdout is not None
        url = server.stdout.readline().strip()
        asyncio.run(closed(url, asked, 8, 5))
        print(name, flush=True)
        alone, twice, latencies = [], [], {clients: [] for clients in CLIENTS}
        ratios: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
        statuses = Counter[int]()
        for _ in range(rounds):
            print(seconds, file=engine.stdin, flush=True)
            alone.append(float(engine.stdout.readline()))
            for clients in CLIENTS:
                rate, taken = asyncio.run(closed(url, asked, clients, seconds))
                ratios[clients].append(rate / alone[-1])
                latencies[clients] += taken
            held, found = asyncio.run(opened(url, asked, 2 * rate, seconds))
            twice.append(held / rate)
            statuses.update(found)
        print(f"  engine alone {np.median(alone):.1f} samples/s ({1000 / np.median(alone):.0f} ms a sample)")
        for clients in CLIENTS:
            p50, p95, p99 = (1000 * q for q in (np.quantile(latencies[clients], [0.5, 0.95, 0.99])))
            print(
                f"  {clients:2} clients: {_of(ratios[clients])} of the engine alone;"
                f" latency p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms"
            )
        told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
        print(f"  twice the load of {CLIENTS[-1]} clients: {_of(twice)} of their samples/s; {told}", flush=True)
    finally:
        engine.kill()
        server.terminate()
        server.wait(60)


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
