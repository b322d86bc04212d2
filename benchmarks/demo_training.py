"""What training on a selection does on the demo world: `python benchmarks/demo_training.py`.

From the packaged aligned model, one epoch with `vig` (p = 70), `random` (70 %) and `full`, for three seeds of the order
(and of what `random` picks). Measured on held-out samples that are neither mismatched nor partly wrong: how often the
likeliest token is the right one, teacher-forced, where the image decides it and where it doesn't, and the mean loss.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from vig_ray.demo import CHECKPOINT, held_out, world
from vig_ray.model.load import Prompts, load_model
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.config import TrainConfig
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.index import of_selection
from vig_ray.training.metrics import SilentLogger
from vig_ray.training.run import Setup
from vig_ray.training.worker import train

TEAM = DistributedContext(0, 1, torch.device("cpu"))


def vig(*words: object) -> None:
    done = subprocess.run([sys.executable, "-m", "vig_ray.cli", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def held_out_data(folder: Path, count: int) -> str:
    """Samples that no run sees, imported."""
    data = world.write(str(folder / "data"), count, 31_000)
    vig("import", "--data", data, "--out", folder)
    return str(folder)


def measured(folder: str, model: Any) -> dict[str, float]:
    """Accuracy and loss, where the image decides and elsewhere."""
    columns = held_out.measure(folder, model, Prompts(CHECKPOINT), world.CLEAN).columns()
    return {name: value for name, value in columns.items() if name.startswith(("accuracy", "loss"))}


def trained(folder: Path, selection: Path, *, batch: int, lr: float) -> tuple[Any, int]:
    samples, chosen = str(folder / "samples"), str(selection / "selection")
    config = TrainConfig(
        model=CHECKPOINT, samples=samples, selection=chosen, out="-", global_batch=batch, lr=lr, save_every=10**6
    )
    setup = Setup(
        config, Prompts(CHECKPOINT), of_selection(samples, chosen), samples, chosen, "float32", 0, 2048, False
    )
    with tempfile.TemporaryDirectory() as out:
        run = train(setup, TEAM, CheckpointManager(out, keep=1, distributed=TEAM), SilentLogger())
    return run.training_model.model, sum(line["active_tokens"] for line in run.log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--held-out", type=int, default=800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, aside = Path(name) / "train", Path(name) / "held-out"
        data = world.write(str(folder / "data"), options.samples, 30_000)
        vig("score", "--data", data, "--model", CHECKPOINT, "--out", folder)
        apart = held_out_data(aside, options.held_out)
        before = measured(apart, load_model(CHECKPOINT, dtype="float32", device="cpu"))
        columns = list(before)
        print(f"{'':10} {'active tokens':>14}  " + "  ".join(f"{column:>24}" for column in columns))
        print(f"{'aligned':10} {'':>14}  " + "  ".join(f"{before[column]:24.4f}" for column in columns), flush=True)
        for strategy in ("vig", "random", "full"):
            found, active = [], []
            for seed in range(options.seeds):
                out = folder / f"{strategy}-{seed}"
                share = [] if strategy == "full" else ["--p", 70]
                vig("select", "--scores", folder, "--strategy", strategy, *share, "--seed", seed, "--out", out)
                model, tokens = trained(folder, out, batch=options.batch, lr=options.lr)
                found.append(measured(apart, model))
                active.append(tokens)
            cells = []
            for column in columns:
                values = [each[column] for each in found]
                cells.append(f"{statistics.mean(values):.4f} ({min(values):.4f}..{max(values):.4f})")
            print(
                f"{strategy:10} {statistics.mean(active):14,.0f}  " + "  ".join(f"{c:>24}" for c in cells), flush=True
            )


if __name__ == "__main__":
    main()
