"""Training speed beside transformers.Trainer's: `python benchmarks/train.py`.

The demo model on demo samples selected by VIG (p = 70), float32, the same samples a step, the same optimizer, one
process. The Trainer gets the project's own collator, batches sorted by length (its `group_by_length`), and whatever
number of passes and loader processes suits it best; rates count whole steps with the wait for samples, without the
first three. The ways take turns, and their median rates are compared.

Then the same steps by one worker with two threads and by two workers (FSDP over gloo) with one thread each: what is
lost by exchanging weights and gradients, and that their last losses are the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vig_ray.demo import CHECKPOINT, world
from vig_ray.model.load import Prompts, load_model
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.collator import ActiveTokensCollator
from vig_ray.training.config import TrainConfig
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.index import of_selection
from vig_ray.training.metrics import SilentLogger
from vig_ray.training.run import Setup
from vig_ray.training.worker import train

LEFT_OUT = 3  # first steps, in which everything is warmed up


def make(folder: Path, samples: int) -> None:
    data = world.write(str(folder / "data"), samples, 1)
    vig = [sys.executable, "-m", "vig_ray.cli"]
    for words in (
        ["score", "--data", data, "--model", CHECKPOINT, "--out", folder],
        ["select", "--scores", folder, "--out", folder],
        ["export-data", "--format", "messages", "--selection", folder, "--samples", folder / "samples", "--out",
         folder / "chosen.jsonl"],
    ):  # fmt: skip
        subprocess.run([*vig, *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def setup_of(folder: Path, *, steps: int, batch: int, packing: bool) -> Setup:
    samples, selection = str(folder / "samples"), str(folder / "selection")
    config = TrainConfig(
        model=CHECKPOINT, samples=samples, selection=selection, out="-", max_steps=steps, global_batch=batch,
        packing=packing, lr=2e-5, save_every=10**6,
    )  # fmt: skip
    return Setup(
        config, Prompts(CHECKPOINT), of_selection(samples, selection), samples, selection, "float32", 0, 2048, False
    )


def ours(folder: Path, *, steps: int, batch: int, packing: bool) -> float:
    """Samples/s."""
    distributed = DistributedContext(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as out:
        run = train(
            setup_of(folder, steps=steps, batch=batch, packing=packing),
            distributed,
            CheckpointManager(out, keep=1, distributed=distributed),
            SilentLogger(),
        )
    lines = run.log[LEFT_OUT:]
    return sum(line["samples"] for line in lines) / sum(line["seconds"] for line in lines)


def _worker(rank: int, workers: int, folder: str, given: dict[str, int]) -> None:
    torch.set_num_threads(2 // workers)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers)
    distributed = DistributedContext(rank, workers, torch.device("cpu"))
    manager = CheckpointManager(f"{folder}/checkpoints", keep=1, distributed=distributed)
    run = train(setup_of(Path(folder).parent, packing=True, **given), distributed, manager, SilentLogger())
    if rank == 0:
        (Path(folder) / "log.json").write_text(json.dumps(run.log))
    torch.distributed.destroy_process_group()


def by_workers(folder: Path, workers: int, **given: int) -> tuple[float, float]:
    """Samples/s, and the last step's loss."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        torch.multiprocessing.spawn(_worker, (workers, out, given), nprocs=workers)
        log = json.loads((Path(out) / "log.json").read_text())
    lines = log[LEFT_OUT:]
    return sum(line["samples"] for line in lines) / sum(line["seconds"] for line in lines), log[-1]["loss"]


def theirs(
    rows: list[dict[str, Any]], *, steps: int, batch: int, loaders: int = 0, grouped: bool = True, passes: int = 1
) -> float:
    """Samples/s of transformers.Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class Grouped(Trainer):  # its own grouping wants a `datasets` dataset
        def _get_train_sampler(self, *_: Any) -> Any:
            return LengthGroupedSampler(batch // passes, lengths=[row["length"] for row in rows])

    ended: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append(time.monotonic())

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out, per_device_train_batch_size=batch // passes, gradient_accumulation_steps=passes,
            max_steps=steps, learning_rate=2e-5, lr_scheduler_type="cosine", warmup_steps=0.03,
            remove_unused_columns=False, report_to=[], use_cpu=True,
            save_strategy="no", logging_strategy="no", dataloader_num_workers=loaders, disable_tqdm=True,
        )  # fmt: skip
        model = load_model(CHECKPOINT, dtype="float32", device="cpu")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("vision_tower" not in name)
        trainer = (Grouped if grouped else Trainer)(
            model, arguments, train_dataset=rows, data_collator=ActiveTokensCollator(CHECKPOINT)
        )
        trainer.add_callback(Clock())
        trainer.train()
    return (len(ended) - LEFT_OUT) * batch / (ended[-1] - ended[LEFT_OUT - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    given = {"steps": options.steps, "batch": options.batch}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, options.samples)
        rows = [json.loads(line) for line in (folder / "chosen.jsonl").read_text().splitlines()]
        for row in rows:
            row["length"] = sum(len(str(message["content"])) for message in row["messages"])
        ways = {
            "Trainer, random order": lambda: theirs(rows, grouped=False, **given),
            "Trainer, grouped by length": lambda: theirs(rows, **given),
            "Trainer, grouped, 1 loader": lambda: theirs(rows, loaders=1, **given),
            "Trainer, grouped, 4 passes": lambda: theirs(rows, passes=4, **given),
            "Trainer, grouped, 4 passes, 1 loader": lambda: theirs(rows, passes=4, loaders=1, **given),
            "Trainer, grouped, 8 passes": lambda: theirs(rows, passes=8, **given),
            "vig-ray, padded": lambda: ours(folder, packing=False, **given),
            "vig-ray, packed": lambda: ours(folder, packing=True, **given),
        }
        seen: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, measure in ways.items():
                seen[way].append(measure())
        pairs = [[by_workers(folder, workers, **given) for workers in (1, 2)] for _ in range(options.rounds)]
    medians = {way: statistics.median(rates) for way, rates in seen.items()}
    best = max(rate for way, rate in medians.items() if way.startswith("Trainer"))
    for way, rate in medians.items():
        print(f"{way:36} {rate:7.1f} samples/s   {rate / best:5.2f} of the Trainer's best")
    one, two = (statistics.median(pair[which][0] for pair in pairs) for which in (0, 1))
    print(f"{'1 worker, 2 threads':36} {one:7.1f} samples/s   loss {pairs[0][0][1]:.6f}")
    print(f"{'2 workers, 1 thread each':36} {two:7.1f} samples/s   loss {pairs[0][1][1]:.6f}   {two / one:5.2f} of 1")


if __name__ == "__main__":
    main()
