"""How fast scoring is, as ratios to named baselines measured in the same run: `python benchmarks/score.py`.

    engine      the torch engine against the published way: one sample at a time, full logits, two passes
                (VisNec's loop), on the same prepared prompts
    job         the whole Ray job in its steady state against the same work (decode, blur, tokenise, score) in one
                plain process with the same engine; start-up is told apart

The floor of a sample is arithmetic: 2 FLOP a weight a token, twice. The engine part prints how near it comes to the
matrix product rate of this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time

import numpy as np
import pyarrow.parquet as pq
import torch

from vig_ray.dataset import importing
from vig_ray.demo import CHECKPOINT, world
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import Prompt
from vig_ray.scoring import job
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.prepare import Preparer
from vig_ray.scoring.schema import prepared_schema
from vig_ray.scoring.score import score_rows
from vig_ray.stage import parquet_files

PASSES = ("clean", "blur")


def preparer() -> Preparer:
    """The CPU stage with the job's defaults."""
    config = ScoreConfig(data="", model=CHECKPOINT, out="")
    return Preparer(
        model=config.model,
        template=config.template,
        max_length=config.max_length,
        passes=PASSES,
        too_long=config.too_long,
        max_image_pixels=config.max_image_pixels,
    )


def published_loop(model, formatter, pairs: list[tuple[Prompt, Prompt]]) -> list[np.ndarray]:
    """One sample at a time, logits of every position, two passes."""
    found = []
    for pair in pairs:
        for prompt in pair:
            ids = torch.from_numpy(prompt.token_ids).long()[None]
            images = formatter.collate([image.inputs for image in prompt.images], "cpu", torch.float32)
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **images).logits
            logp = torch.log_softmax(logits[0, :-1].float(), dim=-1)
            logp = logp.gather(1, ids[0, 1:, None])[:, 0]
            found.append(logp[torch.from_numpy(prompt.answer_positions).long() - 1].numpy())
    return found


def matrix_rate() -> float:
    """FLOP/s of a large float32 matrix product on this machine, best of five."""
    a = torch.randn(2048, 2048)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        _ = a @ a
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
    return best


def engine_part(rows: list[dict], rounds: int) -> None:
    import pickle

    formatter = load_formatter(CHECKPOINT)
    model = load_model(CHECKPOINT, dtype="float32", device="cpu")
    engine = TorchEngine(model, formatter.collate)
    pairs = [pickle.loads(row["prompts"]) for row in rows if row["prompts"] is not None]
    prompts = [prompt for pair in pairs for prompt in pair]
    expected, found = published_loop(model, formatter, pairs[:20]), engine.logprobs(prompts[:40])
    worst = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
    ratios, rates = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        published_loop(model, formatter, pairs)
        middle = time.perf_counter()
        engine.logprobs(prompts)
        end = time.perf_counter()
        ratios.append((middle - began) / (end - middle))
        rates.append((len(pairs) / (middle - began), len(pairs) / (end - middle)))
    loop, ours = (statistics.median(rate[i] for rate in rates) for i in (0, 1))
    weights = sum(p.numel() for p in model.model.language_model.layers.parameters())
    tower = sum(p.numel() for p in model.model.vision_tower.parameters())
    tokens = sum(len(prompt.token_ids) for prompt in prompts) / len(pairs)
    flop = 2 * weights * tokens + 2 * 2 * tower * 17
    print(f"engine  {len(pairs)} samples, largest difference {worst:.1e}")
    print(f"  published loop, one at a time  {loop:8.1f} samples/s")
    print(f"  torch engine                   {ours:8.1f} samples/s")
    print(f"  ratio {statistics.median(ratios):.2f} (of {rounds} rounds: {', '.join(f'{r:.2f}' for r in ratios)})")
    share = ours * flop / matrix_rate()
    print(f"  floor: {flop / 1e6:.0f} MFLOP a sample; {share:.0%} of this machine's float32 matrix rate", flush=True)


def plain_process(table, window: int) -> float:
    """Decode, blur, tokenise and score in this process; samples/s."""
    prepare = preparer()
    formatter = load_formatter(CHECKPOINT)
    engine = TorchEngine(load_model(CHECKPOINT, dtype="float32", device="cpu"), formatter.collate)
    score_rows(engine, prepare(table.slice(0, 64)).to_pylist(), PASSES)
    began = time.perf_counter()
    for start in range(0, table.num_rows, window):
        score_rows(engine, prepare(table.slice(start, window)).to_pylist(), PASSES)
    return table.num_rows / (time.perf_counter() - began)


def job_part(folder: str, samples: int, rounds: int) -> None:
    data = world.write(os.path.join(folder, "data"), samples, seed=9)
    imported = importing.run(importing.ImportConfig(data=data, out=folder))
    table = pq.read_table(parquet_files(imported.directory))
    ratios, plain, ray_rates, start_ups = [], [], [], []
    for number in range(rounds):
        plain.append(plain_process(table, 256))
        out = os.path.join(folder, f"out-{number}")
        job.run(ScoreConfig(data=folder, model=CHECKPOINT, out=out))
        with open(os.path.join(out, "scores.stage.json")) as file:
            timing = json.load(file)["timing"]
        (first, rows_before), (last, rows_after) = timing["rows_over_time"][0], timing["rows_over_time"][-1]
        ray_rates.append((rows_after - rows_before) / (last - first))
        start_ups.append(timing["total_s"] - (last - first))
        ratios.append(ray_rates[-1] / plain[-1])
    print(f"job     {samples} samples")
    print(f"  one plain process              {statistics.median(plain):8.1f} samples/s")
    print(f"  Ray job, steady state          {statistics.median(ray_rates):8.1f} samples/s")
    print(f"  ratio {statistics.median(ratios):.2f} (of {rounds} rounds: {', '.join(f'{r:.2f}' for r in ratios)})")
    print(f"  start-up and end of the job    {statistics.median(start_ups):8.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("engine", "job", "all"), default="all")
    parser.add_argument("--samples", type=int, default=5000, help="samples of the job part")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    print(f"{os.cpu_count()} CPU cores, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if options.part in ("engine", "all"):
            data = world.write(os.path.join(folder, "engine", "data"), 600, seed=8)
            samples = importing.run(importing.ImportConfig(data=data, out=os.path.join(folder, "engine"))).directory
            rows = preparer()(pq.read_table(parquet_files(samples))).to_pylist()
            assert list(rows[0]) == prepared_schema().names
            engine_part(rows, options.rounds)
        if options.part in ("job", "all"):
            job_part(os.path.join(folder, "job"), options.samples, options.rounds)


if __name__ == "__main__":
    main()
