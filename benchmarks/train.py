"""Training speed beside transformers.Trainer's: `python -m benchmarks.train`.

The demo model on demo samples selected by VIG (p = 70), float32, the same samples a step, the same optimizer, one
process. The Trainer gets the project's own collator, batches sorted by length (its `group_by_length`), and whatever
number of passes and loader processes suits it best; rates count whole steps with the wait for samples, without the
first ones. The ways take turns, and their median rates are compared.

Then the same steps by one worker with two threads and by two workers (FSDP over gloo) with one thread each: what is
lost by exchanging weights and gradients, and that their last losses are the same.

`--model shape`: a LLaVA of 12 layers of 768 on samples of LLaVA-665K's shape, all answer tokens trained, in fewer and
smaller steps (4 of 4 samples), one process only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.beside_trainer import Data, medians, ours, rate_of, trainers
from benchmarks.llava_shape import llava
from benchmarks.shape_files import write_checkpoint, write_dataset
from vig_ray.dataset import importing
from vig_ray.demo import CHECKPOINT, world
from vig_ray.model.load import Prompts, load_model
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.collator import ActiveTokensCollator
from vig_ray.training.config import TrainConfig
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.index import of_samples, of_selection
from vig_ray.training.metrics import SilentLogger
from vig_ray.training.run import Setup
from vig_ray.training.worker import train


class Work(NamedTuple):
    """What is trained on what: `selection` None for all samples; `rows` as the Trainer's collator takes them;
    `left_out` first steps, in which everything is warmed up."""

    model: str
    samples: str
    selection: str | None
    rows: list[dict[str, Any]]
    left_out: int


def demo(folder: Path, samples: int) -> Work:
    data = world.write(str(folder / "data"), samples, 1)
    vig = [sys.executable, "-m", "vig_ray.cli"]
    for words in (
        ["score", "--data", data, "--model", CHECKPOINT, "--out", folder],
        ["select", "--scores", folder, "--out", folder],
        ["export-data", "--format", "messages", "--selection", folder, "--samples", folder / "samples", "--out",
         folder / "chosen.jsonl"],
    ):  # fmt: skip
        subprocess.run([*vig, *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "chosen.jsonl").read_text().splitlines()]
    return Work(CHECKPOINT, str(folder / "samples"), str(folder / "selection"), _with_lengths(rows), 3)


def shape(folder: Path, samples: int, *, small: bool) -> Work:
    family = llava("small" if small else "12x768")
    model = write_checkpoint(family, folder / "model")
    data = write_dataset(family, folder / "data", samples)
    imported = importing.run(importing.ImportConfig(data=data, out=str(folder))).directory
    rows = [
        {
            "messages": [
                {"role": "user" if turn["from"] == "human" else "assistant", "content": turn["value"]}
                for turn in row["conversations"]
            ],
            "images": [str(folder / "data" / row["image"])],
        }
        for row in json.loads(Path(data).read_text())
    ]
    return Work(model, imported, None, _with_lengths(rows), 1)


def _with_lengths(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        row["length"] = sum(len(str(message["content"])) for message in row["messages"])
    return rows


def setup_of(work: Work, *, steps: int, batch: int, packing: bool) -> Setup:
    model, samples, selection, _, _ = work
    config = TrainConfig(
        model=model, samples=samples, selection=selection, out="-", max_steps=steps, global_batch=batch,
        packing=packing, lr=2e-5, save_every=10**6,
    )  # fmt: skip
    index = of_selection(samples, selection) if selection else of_samples(samples, 0)
    return Setup(config, Prompts(model), index, samples, selection, "float32", 0, 2048, False)


def own(work: Work, **given: Any) -> float:
    """Samples/s of this project."""
    return ours(setup_of(work, **given), work.left_out)


def _worker(rank: int, workers: int, folder: str, work: Work, given: dict[str, int]) -> None:
    torch.set_num_threads(2 // workers)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers)
    distributed = DistributedContext(rank, workers, torch.device("cpu"))
    manager = CheckpointManager(f"{folder}/checkpoints", keep=1, distributed=distributed)
    run = train(setup_of(work, packing=True, **given), distributed, manager, SilentLogger())
    if rank == 0:
        (Path(folder) / "log.json").write_text(json.dumps(run.log))
    torch.distributed.destroy_process_group()


def by_workers(work: Work, workers: int, **given: int) -> tuple[float, float]:
    """Samples/s, and the last step's loss."""
    with tempfile.TemporaryDirectory() as out:
        torch.multiprocessing.spawn(_worker, (workers, out, work._replace(rows=[]), given), nprocs=workers)
        log = json.loads((Path(out) / "log.json").read_text())
    return rate_of(log, work.left_out), log[-1]["loss"]


def theirs(work: Work, **given: Any) -> float:
    """Samples/s of transformers.Trainer."""
    model = load_model(work.model, dtype="float32", device="cpu")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name)
    data = Data(work.rows, [row["length"] for row in work.rows], ActiveTokensCollator(work.model))
    return trainers(model, data, left_out=work.left_out, **given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", "shape"), default="demo")
    parser.add_argument("--small", action="store_true", help="with --model shape: the small model")
    parser.add_argument("--samples", type=int, help="by default 2000, of the larger model 32")
    parser.add_argument("--steps", type=int, help="by default 12, of the larger model 4")
    parser.add_argument("--batch", type=int, help="by default 128, of the larger model 4")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    larger = options.model == "shape"
    given = {"steps": options.steps or (4 if larger else 12), "batch": options.batch or (4 if larger else 128)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = (
            shape(folder, options.samples or 32, small=options.small)
            if larger
            else demo(folder, options.samples or 2000)
        )
        ways = {
            "Trainer, random order": lambda: theirs(work, grouped=False, **given),
            "Trainer, grouped by length": lambda: theirs(work, **given),
            "Trainer, grouped, 1 loader": lambda: theirs(work, loaders=1, **given),
            "Trainer, grouped, 4 passes": lambda: theirs(work, passes=4, **given),
            "Trainer, grouped, 4 passes, 1 loader": lambda: theirs(work, passes=4, loaders=1, **given),
            "Trainer, grouped, 8 passes": lambda: theirs(work, passes=8, **given),
            "vig-ray, padded": lambda: own(work, packing=False, **given),
            "vig-ray, packed": lambda: own(work, packing=True, **given),
        }
        if larger:  # its samples are few and each is long: grouping, loading and more passes have nothing to give
            kept = ("Trainer, grouped by length", "Trainer, grouped, 4 passes", "vig-ray, padded", "vig-ray, packed")
            ways = {way: ways[way] for way in kept}
        rates = medians(ways, options.rounds)
        pairs = [
            [by_workers(work, workers, **given) for workers in (1, 2)] for _ in range(options.rounds * (not larger))
        ]
    best = max(rate for way, rate in rates.items() if way.startswith("Trainer"))
    for way, rate in rates.items():
        print(f"{way:36} {rate:7.2f} samples/s   {rate / best:5.2f} of the Trainer's best")
    if pairs:
        one, two = (statistics.median(pair[which][0] for pair in pairs) for which in (0, 1))
        print(f"{'1 worker, 2 threads':36} {one:7.1f} samples/s   loss {pairs[0][0][1]:.6f}")
        print(
            f"{'2 workers, 1 thread each':36} {two:7.1f} samples/s   loss {pairs[0][1][1]:.6f}   {two / one:5.2f} of 1"
        )


if __name__ == "__main__":
    main()
