"""What training on a selection does on the demo world: `python benchmarks/demo_training.py`.

From the packaged aligned model, one epoch with `vig` (p = 70), `random` (70 %) and `full`, for three seeds of the order
(and of what `random` picks). Measured on held-out samples that are neither mismatched nor partly wrong: how often the
likeliest token is the right one, teacher-forced, where the image decides it and where it doesn't, and the mean loss.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vig_ray.demo import CHECKPOINT, world
from vig_ray.demo.truth import decided_tokens
from vig_ray.model.load import Prompts, load_model
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.config import TrainConfig
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.index import of_samples, of_selection
from vig_ray.training.loader import SampleSource
from vig_ray.training.metrics import SilentLogger
from vig_ray.training.run import Setup
from vig_ray.training.worker import train

CLEAN = ("color", "place", "caption", "turns", "prior", "knowledge")
TEAM = DistributedContext(0, 1, torch.device("cpu"))


def vig(*words: object) -> None:
    done = subprocess.run([sys.executable, "-m", "vig_ray.cli", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


class HeldOut:
    """Samples that no run sees, with the truth about their tokens."""

    def __init__(self, folder: Path, count: int) -> None:
        data = world.write(str(folder / "data"), count, 31_000)
        vig("import", "--data", data, "--out", folder)
        truth = [json.loads(line) for line in (folder / "data" / "truth.jsonl").read_text().splitlines()]
        samples = str(folder / "samples")
        self.source = SampleSource(of_samples(samples, 0), samples, None, Prompts(CHECKPOINT))
        self.samples: list[tuple[Any, np.ndarray[Any, Any]]] = []
        tokenizer: Any = self.source.formatter.tokenizer  # type: ignore[attr-defined]
        for sample in self.source.__getitems__(range(len(self.source))):
            known = truth[int(sample.key.rsplit("/", 1)[1])]
            if known["kind"] in CLEAN and sample.prompt.images:  # type: ignore[union-attr]
                pieces = tokenizer.convert_ids_to_tokens(sample.prompt.answer_ids)  # type: ignore[union-attr]
                turns = sample.prompt.turns.tolist()  # type: ignore[union-attr]
                self.samples.append((sample, decided_tokens(pieces, turns, known["decided"])))

    @torch.no_grad()
    def measure(self, model: Any) -> dict[str, float]:
        model.eval()
        right, nll, decided = [], [], []
        for sample, is_decided in self.samples:
            prompt = sample.prompt
            ids = torch.from_numpy(prompt.token_ids.astype(np.int64))[None]
            pixels = self.source.formatter.collate([image.inputs for image in prompt.images], "cpu", torch.float32)
            logp = (
                model(input_ids=ids, use_cache=False, **pixels).logits[0, prompt.answer_positions - 1].log_softmax(-1)
            )
            target = ids[0, prompt.answer_positions]
            right.append((logp.argmax(-1) == target).numpy())
            nll.append(-logp.gather(1, target[:, None])[:, 0].numpy())
            decided.append(is_decided)
        hits, losses, mask = np.concatenate(right), np.concatenate(nll), np.concatenate(decided)
        return {
            "accuracy, image decides": float(hits[mask].mean()),
            "accuracy, others": float(hits[~mask].mean()),
            "loss, image decides": float(losses[mask].mean()),
            "loss, others": float(losses[~mask].mean()),
        }


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
        held_out = HeldOut(aside, options.held_out)
        before = held_out.measure(load_model(CHECKPOINT, dtype="float32", device="cpu"))
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
                found.append(held_out.measure(model))
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
