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
import numpy.typing as npt
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
    "prior=0.9",
    "redundant=0.5",
    "redundant=0.9",
    "visual=0.2",
)


Right = npt.NDArray[np.float64]


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
def answered(model: Any, questions: list[Asked], formatter: Any) -> Right:
    """Which of Q questions it answers right, 0 or 1, float64 [Q]."""
    right = []
    model.eval()
    for start in range(0, len(questions), 64):
        batch = questions[start : start + 64]
        ids = torch.zeros((len(batch), max(len(each.prompt.token_ids) for each in batch)), dtype=torch.long)
        for row, each in enumerate(batch):
            ids[row, : len(each.prompt.token_ids)] = torch.from_numpy(each.prompt.token_ids)
        pixels = formatter.collate([each.prompt.images[0].inputs for each in batch], "cpu", torch.float32)
        logits = model(input_ids=ids, use_cache=False, **pixels).logits
        for row, each in enumerate(batch):
            right.append(float(logits[row, each.place, each.words].argmax() == 0))
    return np.asarray(right)


def mean_and_interval(right_SQ: Right) -> tuple[float, float]:
    """The mean of S seeds and Q questions, and half of its 95 % interval: what other seeds and other questions would
    have made of it."""
    seeds, questions = right_SQ.shape
    variance = right_SQ.mean(0).var(ddof=1) / questions
    if seeds > 1:
        variance += right_SQ.mean(1).var(ddof=1) / seeds
    return float(right_SQ.mean()), 1.96 * math.sqrt(variance)


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
    print(f"{'':24}" + "".join(f"{name:>16}" for name in names) + "   less than the first   seconds", flush=True)
    with tempfile.TemporaryDirectory() as name:
        asked.write_hard_asked(f"{name}/asked", options.asked, 90_000)
        questions = read_asked(Path(name, "asked"), options.model)
        of_kind = {kind: np.array([kind in ("all", each.kind) for each in questions]) for kind in hard.ASKED}
        of_kind = {"all": np.ones(len(questions), bool), **of_kind}

        def row(setting: str, right_SQ: Right) -> str:
            told = (mean_and_interval(right_SQ[:, of_kind[each]]) for each in names)
            return f"{setting:24}" + "".join(f"{mean:8.3f} ± {half:.3f}" for mean, half in told)

        formatter = load_formatter(options.model)
        before = load_model(options.model, dtype="float32", device="cpu")
        print(row("aligned", answered(before, questions, formatter)[None]), flush=True)
        first: Right | None = None
        for setting in options.settings:
            rights, seconds = [], []
            for seed in range(options.seeds):
                out = os.path.join(name, f"{setting or 'none'}-{seed}")
                data = hard.write(f"{out}/data", options.samples, 91_000 + seed, knobs_of(setting))
                import_data(ImportConfig(data=data, out=out))
                began = time.monotonic()
                model = trained(options.model, f"{out}/samples", batch=options.batch, lr=options.lr, seed=seed)
                seconds.append(time.monotonic() - began)
                rights.append(answered(model, questions, formatter))
            right_SQ = np.stack(rights)
            first = right_SQ if first is None else first
            less, half = mean_and_interval(first - right_SQ)  # of the same seeds and questions
            print(
                f"{row(setting or 'full', right_SQ)}{less:14.3f} ± {half:.3f}{statistics.fmean(seconds):10.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
