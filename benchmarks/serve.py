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
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import PIL.Image
import torch

from vig_ray.demo import CHECKPOINT
from vig_ray.demo.world import draw, samples


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


def engine_alone(model: str, asked: list[dict[str, Any]]) -> float:
    """Samples/s of the engine on prepared prompts, `window` of them at a time."""
    from vig_ray.dataset.schema import Turn
    from vig_ray.model.load import load_formatter, load_model
    from vig_ray.model.prompt import PromptImage
    from vig_ray.scoring.engines.torch import TorchEngine
    from vig_ray.scoring.prepare import prepare
    from vig_ray.scoring.reference import blur
    from vig_ray.scoring.score import score_pairs

    formatter = load_formatter(model)
    pairs: list[Any] = []
    for number, each in enumerate(asked):
        pixels = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(each["image"]))).convert("RGB"))
        image = PromptImage(str(number), lambda pixels=pixels: pixels, formatter.preprocess)  # type: ignore[misc]
        turns = [Turn("user", f"<image>\n{each['question']}"), Turn("assistant", each["answer"])]
        pairs.append(prepare(formatter, blur, turns, [image]).pair)
    engine = TorchEngine(load_model(model, dtype="float32", device="cpu"), formatter.collate)
    score_pairs(engine, pairs[:16])
    began, done = time.monotonic(), 0
    while time.monotonic() - began < 15:
        score_pairs(engine, pairs)
        done += len(pairs)
    return done / (time.monotonic() - began)


async def closed(url: str, asked: list[dict[str, Any]], clients: int, seconds: float) -> tuple[float, list[float]]:
    """Samples/s and latencies of `clients` that each ask again as soon as they are answered."""
    taken: list[float] = []
    end = time.monotonic() + seconds
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def one(number: int) -> None:
            while time.monotonic() < end:
                began = time.monotonic()
                async with client.post(f"{url}/v1/score", json=asked[number % len(asked)]) as answer:
                    await answer.read()
                    answer.raise_for_status()
                taken.append(time.monotonic() - began)
                number += clients

        began = time.monotonic()
        await asyncio.gather(*(one(number) for number in range(clients)))
        return len(taken) / (time.monotonic() - began), taken


async def opened(url: str, asked: list[dict[str, Any]], rate: float, seconds: float) -> tuple[float, dict[int, int]]:
    """Samples/s answered, and how many of each status, where `rate` requests a second come whatever happens."""
    statuses: dict[int, int] = {}
    answered: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def one(number: int) -> None:
            async with client.post(f"{url}/v1/score", json=asked[number % len(asked)]) as answer:
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
    # The queue fills at first: the rate is that of the second half, while requests still came.
    middle = began + seconds / 2
    return sum(middle <= each <= end for each in answered) / (end - middle), statuses


def measure(name: str, model: str, asked: list[dict[str, Any]], seconds: float, port: int) -> None:
    command = [sys.executable, "-c", f"from benchmarks.serve import *; print(engine_alone({model!r}, requests(64)))"]
    alone = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    print(f"{name}: engine alone {alone:.1f} samples/s ({1000 / alone:.0f} ms a sample)", flush=True)
    server = subprocess.Popen(
        [sys.executable, "-m", "vig_ray.cli", "serve", "--model", model, "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        asyncio.run(closed(url, asked, 8, 5))
        best = 0.0
        for clients in (1, 8, 64):
            rate, taken = asyncio.run(closed(url, asked, clients, seconds))
            p50, p95, p99 = (1000 * q for q in (np.quantile(taken, [0.5, 0.95, 0.99])))
            best = max(best, rate)
            print(
                f"  {clients:3} clients {rate:7.1f} samples/s, {rate / alone:4.2f} of the engine alone;"
                f" latency p50 {p50:6.0f} ms, p95 {p95:6.0f} ms, p99 {p99:6.0f} ms",
                flush=True,
            )
        rate, statuses = asyncio.run(opened(url, asked, 2 * best, seconds))
        told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
        print(f"  at twice the load {rate:7.1f} samples/s, {rate / best:4.2f} of its best; {told}", flush=True)
    finally:
        server.terminate()
        server.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--port", type=int, default=8199)
    options = parser.parse_args()
    asked = requests(256)
    with tempfile.TemporaryDirectory() as folder:
        measure("wide model", wide(Path(folder), options.width), asked, options.seconds, options.port)
        measure("demo model", CHECKPOINT, asked, options.seconds, options.port + 1)


if __name__ == "__main__":
    main()
