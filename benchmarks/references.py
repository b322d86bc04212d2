"""How far each reference agrees with blur, and what it costs: `python benchmarks/references.py`.

Samples of the demo world, of which it is known which answer tokens the image decides, are scored by the torch engine
with each reference. Prints a Markdown table: how alike the sample gains are to blur's (as `vig compare` counts it), how
well the token gains tell the decided tokens from the others, and how much the reference's pass computes.

`--model`: another model of the demo world, as `python -m vig_ray.demo.build --seed 7 --out DIR` makes one.
`--further STEPS`: train the model on before, on samples among which there are no unsharp pictures. The packaged one has
seen many, and was taught to answer what is usual to them; other models weren't.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.dataset import importing
from vig_ray.dataset.images import load_image
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT, build, truth, world
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.options import ReferenceName
from vig_ray.report import compare
from vig_ray.scoring.blur import blur_opencv
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.gain import token_gain
from vig_ray.scoring.reference import make_reference
from vig_ray.scoring.references.average import blur_mean_image, to_png
from vig_ray.stage import parquet_files, write_stage

TOP = (10.0, 30.0, 50.0, 70.0)


class Samples:
    """Samples of the demo world that have an image: prompts, and what is known of their answer tokens."""

    def __init__(self, folder: str, formatter: Any, count: int, seed: int) -> None:
        data = world.write(os.path.join(folder, "data"), count, seed)
        with open(os.path.join(os.path.dirname(data), "truth.jsonl")) as file:
            known = [json.loads(line) for line in file]
        self.directory = importing.run(importing.ImportConfig(data=data, out=folder)).directory
        self.keys: list[str] = []
        self.kinds: list[str] = []
        self.prompts: list[Prompt] = []
        self.decided: list[np.ndarray[Any, Any]] = []
        for row in pq.read_table(parquet_files(self.directory)).to_pylist():
            if not row["images"]:
                continue
            images = [
                PromptImage(
                    f"{row['sample_key']} {number}", lambda image=image: load_image(image), formatter.preprocess
                )
                for number, image in enumerate(row["images"])
            ]
            prompt = formatter.prompt([Turn(turn["role"], turn["text"]) for turn in row["conversation"]], images)
            of_sample = known[int(row["sample_key"].rsplit("/", 1)[1])]
            pieces = formatter.tokenizer.convert_ids_to_tokens(prompt.answer_ids.tolist())
            self.keys.append(row["sample_key"])
            self.kinds.append(of_sample["kind"])
            self.prompts.append(prompt)
            self.decided.append(truth.decided_tokens(pieces, prompt.turns.tolist(), of_sample["decided"]))

    def known(self, gains: list[np.ndarray[Any, Any]]) -> truth.Known:
        """These token gains beside the truth."""
        kinds = [np.full(len(gain), kind) for gain, kind in zip(gains, self.kinds, strict=True)]
        return truth.Known(
            np.concatenate(gains),
            np.concatenate(self.decided),
            np.concatenate(kinds),
            np.array([gain.mean() for gain in gains]),
            np.array(self.kinds),
        )

    def write(self, out: str, model: str, gains: list[np.ndarray[Any, Any]]) -> str:
        """Scores that `vig compare` reads: the keys, and each sample's gain."""
        scores = os.path.join(out, "scores")
        os.makedirs(scores)
        columns = {"sample_key": self.keys, "source": self.kinds, "vig": [float(gain.mean()) for gain in gains]}
        pq.write_table(pa.table(columns), os.path.join(scores, "0.parquet"))
        config = ScoreConfig(data=self.directory, model=model, out=out)
        write_stage(scores, "score", config, identity={}, complete=True, counts={"read": len(self.keys)})
        return out


def tokens(prompts: list[Prompt]) -> tuple[int, int, int]:
    """What a pass over the prompts computes: tokens, tokens where what prompts begin alike with is computed once, and
    passes of images through the tower."""
    beginnings = set()
    for prompt in prompts:
        elements: list[Any] = prompt.token_ids.tolist()
        for image, (first, past) in zip(prompt.images, prompt.image_spans.tolist(), strict=True):
            elements[first:past] = [(image.key, place) for place in range(past - first)]
        hidden = prompt.hide_images
        so_far = 0
        for element, is_image in zip(elements, prompt.image_mask.tolist(), strict=True):
            if not (hidden and is_image):
                so_far = hash((so_far, element))
                beginnings.add(so_far)
    images = {image.key for prompt in prompts if not prompt.hide_images for image in prompt.images}
    return sum(prompt.length for prompt in prompts), len(beginnings), len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=CHECKPOINT, help="a model of the demo world (default: the packaged one)")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=30_000, help="of the samples; the models' lessons are others")
    parser.add_argument("--further", type=int, default=0, help="steps of 32 samples to train the model on before")
    options = parser.parse_args()
    formatter = load_formatter(options.model)
    model = load_model(options.model, dtype="float32", device="cpu")
    if options.further:
        rng = random.Random(options.further)
        build.train_whole(model, formatter, steps=options.further, batch=32, pool=2000, rng=rng, unsharp=False)
    engine = TorchEngine(model, formatter.collate)
    with tempfile.TemporaryDirectory() as folder:
        samples = Samples(folder, formatter, options.samples, options.seed)
        average = to_png(blur_mean_image(samples.directory, 256, blur_opencv))
        clean = engine.logprobs(samples.prompts)
        shares = " | ".join(f"top {share:g} %" for share in TOP)
        print(f"{len(samples.prompts):,} samples with an image, {np.concatenate(samples.decided).mean():.1%} decided\n")
        print(f"| reference | Spearman | {shares} | AUROC | decided | others | tokens | once each | tower |")
        print("|---|" + "---:|" * (7 + len(TOP)), flush=True)
        of_blur, cost_of_blur = "", (1, 1, 1)
        for name in get_args(ReferenceName):
            reference = make_reference(name, formatter=formatter, average=average)
            prompts = [reference.without_image(prompt) for prompt in samples.prompts]
            without = engine.logprobs(prompts)
            gains = [token_gain(a, b) for a, b in zip(clean, without, strict=True)]
            scores, cost = samples.write(os.path.join(folder, name), options.model, gains), tokens(prompts)
            if name == "blur":
                of_blur, cost_of_blur = scores, cost
            alike = compare.run(compare.CompareConfig(a=of_blur, b=scores, p=TOP))
            known = samples.known(gains)
            cells = [f"{alike.spearman:.4f}"]
            cells += [f"{100 * top.both / top.a:.1f} %" for top in alike.agreements]
            cells += [f"{known.auroc():.4f}"]
            cells += [f"{known.gain[which].mean():+.3f}" for which in (known.decided, ~known.decided)]
            cells += [f"{100 * ours / its:.0f} %" for ours, its in zip(cost, cost_of_blur, strict=True)]
            print(f"| `{name}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
