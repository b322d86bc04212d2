"""What each knob of the demo world does to a model trained on its samples: `python benchmarks/demo_knobs.py`.

From the packaged aligned model of the harder look, one epoch on all samples (`full`), for each setting of the knobs and
for three seeds of the samples and their order, in this process, without Ray. Asked are the same questions each time, of
`write_hard_asked`: even, of images that no training sees. An answer is right where, of the words that could stand at
the decided place, the right one is the likeliest; `vig eval --tasks choices` compares the same answers as a whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from vig_ray.dataset.importing import ImportConfig
from vig_ray.dataset.importing import run as import_data
from vig_ray.dataset.schema import Turn
from vig_ray.demo import HARD_CHECKPOINT, asked, hard
from vig_ray.demo.knobs import AS_IS, Knobs
from vig_ray.model.load import Prompts, load_formatter, load_model
from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.config import TrainConfig
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.index import of_samples
from vig_ray.training.metrics import SilentLogger
from vig_ray.training.run import Setup
from vig_ray.training.worker import train

TEAM = DistributedContext(0, 1, torch.device("cpu"))
SETTINGS = (
    "",
    "mismatched=0.2",
    "mismatched=0.4",
    "prior=0.5",
    "prior=0.9",
    "redundant=0.5",
    "redundant=0.9",
    "visual=0.5",
    "visual=0.2",
)


class Asked(NamedTuple):
    """A question as a prompt with its right answer. `place`: of the token before the decided word; `words`: the token
    ids that could follow, the right one first."""

    kind: str
    prompt: Prompt
    place: int
    words: list[int]


def knobs_of(setting: str) -> Knobs:
    """ "mismatched=0.2,prior=0.9" as knobs."""
    pairs = (pair.partition("=") for pair in setting.split(",") if pair)
    return dataclasses.replace(AS_IS, **{name: float(value) for name, _, value in pairs})


def read_asked(folder: Path, model: str) -> list[Asked]:
    """The questions of a folder of `write_hard_asked`."""

    formatter: Any = load_formatter(model)
    found = []
    for line in (folder / asked.CHOICES).read_text().splitlines():
        row = json.loads(line)
        pixels = np.asarray(Image.open(folder / row["image"]))
        image = PromptImage(row["id"], lambda p=pixels: p, formatter.preprocess)  # type: ignore[misc]
        answers = [row["answer"], *(each for each in row["choices"] if each != row["answer"])]
        of_answers = [
            formatter.prompt([Turn("user", f"<image>\n{row['question']}"), Turn("assistant", answer)], [image])
            for answer in answers
        ]
        tokens = np.stack([prompt.token_ids for prompt in of_answers])
        (differs,) = np.flatnonzero((tokens != tokens[0]).any(0))[:1]
        found.append(Asked(row["kind"], of_answers[0], int(differs) - 1, tokens[:, differs].tolist()))
    return found


@torch.no_grad()
def accuracy(model: Any, questions: list[Asked], formatter: Any) -> dict[str, float]:
    """The share of right answers by kind, and the mean over all questions."""
    right: dict[str, list[bool]] = {kind: [] for kind in hard.ASKED}
    model.eval()
    for start in range(0, len(questions), 64):
        batch = questions[start : start + 64]
        ids = torch.zeros((len(batch), max(len(each.prompt.token_ids) for each in batch)), dtype=torch.long)
        for row, each in enumerate(batch):
            ids[row, : len(each.prompt.token_ids)] = torch.from_numpy(each.prompt.token_ids)
        pixels = formatter.collate([each.prompt.images[0].inputs for each in batch], "cpu", torch.float32)
        logits = model(input_ids=ids, use_cache=False, **pixels).logits
        for row, each in enumerate(batch):
            right[each.kind].append(int(logits[row, each.place, each.words].argmax()) == 0)
    by_kind = {kind: statistics.fmean(of) for kind, of in right.items()}
    return {"all": statistics.fmean(each for of in right.values() for each in of)} | by_kind


def trained(model: str, samples: str, *, batch: int, lr: float, seed: int) -> Any:
    """The model after an epoch on all samples, in the order of `seed`."""
    config = TrainConfig(
        model=model, samples=samples, out="-", global_batch=batch, lr=lr, save_every=10**6, seed=seed, watch=("none",)
    )
    setup = Setup(config, Prompts(model), of_samples(samples, seed), samples, None, "float32", 0, 2048, False)
    with tempfile.TemporaryDirectory() as out:
        run = train(setup, TEAM, CheckpointManager(out, keep=1, distributed=TEAM), SilentLogger())
    return run.training_model.model


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=HARD_CHECKPOINT)
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--asked", type=int, default=480, help="images to ask about, four questions each")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="CPU cores of the training")
    parser.add_argument("--settings", nargs="*", default=SETTINGS, metavar="KNOB=SHARE,...")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = ("all", *hard.ASKED)
    print(f"{'':24}" + "".join(f"{name:>18}" for name in names) + "   seconds", flush=True)
    with tempfile.TemporaryDirectory() as name:
        asked.write_hard_asked(f"{name}/asked", options.asked, 90_000)
        questions = read_asked(Path(name, "asked"), options.model)
        formatter = load_formatter(options.model)
        before = accuracy(load_model(options.model, dtype="float32", device="cpu"), questions, formatter)
        print(f"{'aligned':24}" + "".join(f"{before[each]:18.3f}" for each in names), flush=True)
        for setting in options.settings:
            found, seconds = [], []
            for seed in range(options.seeds):
                out = os.path.join(name, f"{setting or 'none'}-{seed}")
                data = hard.write(f"{out}/data", options.samples, 91_000 + seed, knobs_of(setting))
                import_data(ImportConfig(data=data, out=out))
                began = time.monotonic()
                model = trained(options.model, f"{out}/samples", batch=options.batch, lr=options.lr, seed=seed)
                seconds.append(time.monotonic() - began)
                found.append(accuracy(model, questions, formatter))
            cells = ""
            for each in names:
                values = [of_seed[each] for of_seed in found]
                # Of the mean over the seeds: what the seeds and the questions that happened to be asked make of it.
                count = len(questions) if each == "all" else len(questions) / len(hard.ASKED)
                mean = statistics.fmean(values)
                error = mean * (1 - mean) / count
                error += statistics.variance(values) / len(values) if len(values) > 1 else 0
                cells += f"{mean:10.3f} ± {1.96 * math.sqrt(error):.3f}"
            seeds = " ".join(f"{of_seed['all']:.3f}" for of_seed in found)
            print(f"{setting or 'full':24}{cells}{statistics.fmean(seconds):10.0f}   all by seed: {seeds}", flush=True)


if __name__ == "__main__":
    main()
