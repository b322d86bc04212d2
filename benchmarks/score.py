"""How fast scoring is, as ratios to named baselines measured in the same run: `python -m benchmarks.score`.

    engine      the torch engine against the published way: one sample at a time, full logits, two passes
                (VisNec's loop, benchmarks/published.py), on the same prepared prompts of the demo world
    shape       the same on a LLaVA of 12 layers of 768 and samples of LLaVA-665K's shape, for each reference; beside
                the ratio of rates that of the FLOPs, the loop's as counted over the least (benchmarks/least.py): an
                engine that computes no more than it must, as fast as the loop's kernels, has a quotient of 1
    job         the whole Ray job in its steady state against the same work (decode, blur, tokenise, score) in one
                plain process with the same engine; with `--model shape` against the bare engine on prepared prompts.
                Start-up is told apart

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
from pathlib import Path

import pyarrow.parquet as pq
import torch

from benchmarks.flops import counted
from benchmarks.least import least_flops
from benchmarks.llava_shape import PASSES, llava, prepared, reference, samples
from benchmarks.published import largest_difference, published_loop
from benchmarks.shape_files import write_checkpoint, write_dataset
from vig_ray.dataset import importing
from vig_ray.demo import CHECKPOINT, world
from vig_ray.model.load import load_formatter, load_model
from vig_ray.scoring import job
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.prepare import Preparer
from vig_ray.scoring.prepared import unpack
from vig_ray.scoring.schema import prepared_schema
from vig_ray.scoring.score import score_rows
from vig_ray.stage import parquet_files

BLUR = ("clean", "blur")


def preparer(model: str = CHECKPOINT) -> Preparer:
    """The CPU stage with the job's defaults."""
    config = ScoreConfig(data="", model=model, out="")
    return Preparer(
        model=config.model,
        template=config.template,
        max_length=config.max_length,
        passes=BLUR,
        too_long=config.too_long,
        max_image_pixels=config.max_image_pixels,
    )


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
    formatter = load_formatter(CHECKPOINT)
    model = load_model(CHECKPOINT, dtype="float32", device="cpu")
    engine = TorchEngine(model, formatter.collate)
    pairs = [row["prompts"] for row in rows if row["prompts"] is not None]
    prompts = [prompt for pair in pairs for prompt in pair]
    worst = largest_difference(published_loop(model, formatter.collate, prompts[:40]), engine.logprobs(prompts[:40]))
    ratios, rates = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        published_loop(model, formatter.collate, prompts)
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


def shape_part(names: list[str], count: int, images: int, rounds: int, *, small: bool) -> None:
    """Each reference's two passes, the loop and the engine in turns."""
    family = llava("small" if small else "12x768")
    model = family.model()
    collate = family.formatter.collate
    clean = prepared(samples(family, count, images=images))
    print(f"shape   {family.name}, {count} samples on {images} images, medians of {rounds} rounds", flush=True)
    for name in names:
        without_image = reference(name, family)
        prompts = prepared([each for prompt in clean for each in (prompt, without_image(prompt))])
        expected: list = []
        flops = counted(model, lambda into=expected, given=prompts: into.extend(published_loop(model, collate, given)))
        worst = largest_difference(expected, TorchEngine(model, collate).logprobs(prompts))
        loops, ours = [], []
        for _ in range(rounds):
            began = time.perf_counter()
            published_loop(model, collate, prompts)
            loops.append(time.perf_counter() - began)
            # Another one each time: the least has what a set begins with once, and so must the engine.
            engine = TorchEngine(model, collate)
            began = time.perf_counter()
            engine.logprobs(prompts)
            ours.append(time.perf_counter() - began)
        ratios = [loop / our for loop, our in zip(loops, ours, strict=True)]
        ratio, allowed = statistics.median(ratios), flops.total / least_flops(family.config, prompts).total
        print(
            f"  {name:9} loop {count / statistics.median(loops):.3f} samples/s, engine "
            f"{count / statistics.median(ours):.3f}: {ratio:.2f} times ({', '.join(f'{r:.2f}' for r in ratios)}); "
            f"FLOPs, loop over least, {allowed:.2f}; quotient {ratio / allowed:.3f}; largest difference {worst:.1e}",
            flush=True,
        )


def plain_process(table, window: int) -> float:
    """Decode, blur, tokenise and score in this process; samples/s."""
    prepare = preparer()
    formatter = load_formatter(CHECKPOINT)
    engine = TorchEngine(load_model(CHECKPOINT, dtype="float32", device="cpu"), formatter.collate)
    score_rows(engine, unpack(prepare(table.slice(0, 64))), BLUR)
    began = time.perf_counter()
    for start in range(0, table.num_rows, window):
        score_rows(engine, unpack(prepare(table.slice(start, window))), BLUR)
    return table.num_rows / (time.perf_counter() - began)


def bare_engine(table, window: int, model: str) -> float:
    """Score what is prepared already, window by window; samples/s without the first one."""
    rows = unpack(preparer(model)(table))
    engine = TorchEngine(load_model(model, dtype="float32", device="cpu"), load_formatter(model).collate)
    score_rows(engine, rows[:window], BLUR)
    began = time.perf_counter()
    for start in range(window, len(rows), window):
        score_rows(engine, rows[start : start + window], BLUR)
    return (len(rows) - window) / (time.perf_counter() - began)


def demo_job(folder: str, count: int, rounds: int) -> None:
    data = world.write(os.path.join(folder, "data"), count, seed=9)
    job_part(folder, data, CHECKPOINT, rounds, "one plain process", lambda table: plain_process(table, 256))


def shape_job(folder: str, count: int, rounds: int, window: int, *, small: bool) -> None:
    """One engine with all cores on either side, which takes the same windows."""
    family = llava("small" if small else "12x768")
    model = write_checkpoint(family, Path(folder) / "model")
    data = write_dataset(family, Path(folder) / "data", count)
    job_part(
        folder, data, model, rounds, f"bare engine, {family.name}", lambda table: bare_engine(table, window, model),
        workers=1, prepare_workers=1, window=window,
    )  # fmt: skip


def job_part(folder: str, data: str, model: str, rounds: int, baseline: str, measure, **options) -> None:
    imported = importing.run(importing.ImportConfig(data=data, out=folder))
    table = pq.read_table(parquet_files(imported.directory))
    ratios, plain, ray_rates, start_ups = [], [], [], []
    for number in range(rounds):
        plain.append(measure(table))
        out = os.path.join(folder, f"out-{number}")
        summary = job.run(ScoreConfig(data=folder, model=model, out=out, **options))
        assert not summary.failed, summary
        with open(os.path.join(out, "scores.stage.json")) as file:
            timing = json.load(file)["timing"]
        (first, rows_before), (last, rows_after) = timing["rows_over_time"][0], timing["rows_over_time"][-1]
        ray_rates.append((rows_after - rows_before) / (last - first))
        start_ups.append(timing["total_s"] - (last - first))
        ratios.append(ray_rates[-1] / plain[-1])
    print(f"job     {table.num_rows} samples")
    print(f"  {baseline:30} {statistics.median(plain):8.2f} samples/s")
    print(f"  Ray job, steady state          {statistics.median(ray_rates):8.2f} samples/s")
    print(f"  ratio {statistics.median(ratios):.2f} (of {rounds} rounds: {', '.join(f'{r:.2f}' for r in ratios)})")
    print(f"  start-up and end of the job    {statistics.median(start_ups):8.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("engine", "shape", "job", "all"), default="all")
    parser.add_argument("--model", choices=("demo", "shape"), default="demo", help="of the job part")
    parser.add_argument("--small", action="store_true", help="the small model in place of 12 layers of 768")
    parser.add_argument("--references", nargs="+", choices=PASSES, default=list(PASSES), help="of the shape part")
    parser.add_argument(
        "--samples", type=int, help="by default 5000 of the job part, 48 of its larger model, 8 of shape"
    )
    parser.add_argument("--images", type=int, default=3, help="distinct ones of the shape part")
    parser.add_argument("--window", type=int, default=8, help="of the job part on the larger model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch, outside the Ray job")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{os.cpu_count()} CPU cores, {options.threads} threads, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if options.part in ("engine", "all"):
            data = world.write(os.path.join(folder, "engine", "data"), 600, seed=8)
            imported = importing.run(importing.ImportConfig(data=data, out=os.path.join(folder, "engine"))).directory
            rows = unpack(preparer()(pq.read_table(parquet_files(imported))))
            assert list(rows[0]) == prepared_schema().names
            engine_part(rows, options.rounds)
        if options.part in ("shape", "all"):
            shape_part(options.references, options.samples or 8, options.images, options.rounds, small=options.small)
        if options.part in ("job", "all"):
            if options.model == "demo":
                demo_job(os.path.join(folder, "job"), options.samples or 5000, options.rounds)
            if options.model == "shape" or options.part == "all":
                here = os.path.join(folder, "shape")
                shape_job(here, options.samples or 48, options.rounds, options.window, small=options.small)


if __name__ == "__main__":
    main()
