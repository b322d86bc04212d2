"""Training rates of one process: this project's own, and those of transformers.Trainer for the same steps."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.metrics import SilentLogger
from vig_ray.training.run import Setup
from vig_ray.training.worker import train


def rate_of(log: Sequence[Mapping[str, Any]], left_out: int) -> float:
    """Samples/s by the lines of a run's log, without the first steps."""
    lines = log[left_out:]
    return float(sum(line["samples"] for line in lines) / sum(line["seconds"] for line in lines))


def ours(setup: Setup, left_out: int) -> float:
    """Samples/s of this project in this process."""
    distributed = DistributedContext(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as out:
        run = train(setup, distributed, CheckpointManager(out, keep=1, distributed=distributed), SilentLogger())
    return rate_of(run.log, left_out)


class Data(NamedTuple):
    """What the Trainer is given: its samples, how long each is, and what makes tensors of some."""

    samples: Sequence[Mapping[str, Any]]
    lengths: Sequence[int]
    collate: Callable[[Any], Any]


def trainers(
    model: Any,
    data: Data,
    *,
    steps: int,
    batch: int,
    left_out: int,
    grouped: bool = True,
    passes: int = 1,
    loaders: int = 0,
) -> float:
    """Samples/s of transformers.Trainer: `batch` samples a step in so many `passes`, sorted by length (`grouped`) or in
    random order, made by so many `loaders` beside it."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class Grouped(Trainer):  # its own grouping wants a `datasets` dataset
        def _get_train_sampler(self, *_: Any) -> Any:
            return LengthGroupedSampler(batch // passes, lengths=list(data.lengths))

    ended: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append(time.monotonic())

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out, per_device_train_batch_size=batch // passes, gradient_accumulation_steps=passes,
            max_steps=steps, learning_rate=2e-5, lr_scheduler_type="cosine", warmup_steps=0.03,
            remove_unused_columns=False, report_to=[], use_cpu=True, save_strategy="no", logging_strategy="no",
            dataloader_num_workers=loaders, disable_tqdm=True,
        )  # fmt: skip
        trainer = (Grouped if grouped else Trainer)(
            model, arguments, train_dataset=data.samples, data_collator=data.collate
        )
        trainer.add_callback(Clock())
        trainer.train()
    return (len(ended) - left_out) * batch / (ended[-1] - ended[left_out - 1])


def medians(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median rate of each way; they take turns."""
    seen: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, measure in ways.items():
            seen[way].append(measure())
    return {way: statistics.median(rates) for way, rates in seen.items()}
