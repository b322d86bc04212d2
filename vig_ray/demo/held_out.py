"""How well a model does on samples of the demo world that no run sees, where the image decides a word and elsewhere.

By transformers' own forward, sample by sample and teacher-forced: it shares nothing with the engines but the prompts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vig_ray.demo import truth
from vig_ray.model.load import Prompts
from vig_ray.model.prompt import Prompt
from vig_ray.scoring.reference import make_reference
from vig_ray.training.batch import TrainingSample
from vig_ray.training.index import of_samples
from vig_ray.training.loader import SampleSource


@dataclass(frozen=True)
class Measured:
    """T answer tokens of all samples. `right` bool [T]: the likeliest token is the right one. `loss` and `gain`,
    float64 [T], nats, the gain over the blurred image. `decided` bool [T]: the image decides the token. `sample`
    int64 [T]: which of `keys` it is of; `place` int64 [T]: which of its answer tokens."""

    right: npt.NDArray[np.bool_]
    loss: npt.NDArray[np.float64]
    gain: npt.NDArray[np.float64]
    decided: npt.NDArray[np.bool_]
    sample: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    keys: tuple[str, ...]

    def columns(self) -> dict[str, float]:
        """The means over the tokens that images decide, and over the others."""
        decided, others = self.decided, ~self.decided
        known = truth.Known(self.gain, decided, np.empty(0, np.str_), np.empty(0), np.empty(0, np.str_))
        return {
            "accuracy, image decides": float(self.right[decided].mean()),
            "accuracy, others": float(self.right[others].mean()),
            "loss, image decides": float(self.loss[decided].mean()),
            "loss, others": float(self.loss[others].mean()),
            "gain, image decides": float(self.gain[decided].mean()),
            "gain, others": float(self.gain[others].mean()),
            "AUROC of gain": known.auroc(),
        }


@torch.no_grad()
def measure(folder: str, model: Any, prompts: Prompts, kinds: Collection[str] | None = None) -> Measured:
    """Run a model over the samples with an image of `folder`/samples, of which `folder`/data/truth.jsonl tells.

    `model`: on the CPU, in float32. `prompts`: how it is spoken to. `kinds`: of the samples, by default all.
    """
    with open(os.path.join(folder, "data", "truth.jsonl")) as file:
        known = [json.loads(line) for line in file]
    samples = os.path.join(folder, "samples")
    source = SampleSource(of_samples(samples, 0), samples, None, prompts)
    formatter: Any = source.formatter
    blur = make_reference("blur", formatter=formatter)
    columns: dict[str, list[Any]] = {name: [] for name in Measured.__dataclass_fields__ if name != "keys"}
    keys: list[str] = []
    model.eval()
    for sample in source.__getitems__(range(len(source))):
        assert isinstance(sample, TrainingSample)
        of_sample, prompt = known[int(sample.key.rsplit("/", 1)[1])], sample.prompt
        if not prompt.images or (kinds is not None and of_sample["kind"] not in kinds):
            continue
        logp = _logprobs(model, formatter, prompt)
        target = torch.from_numpy(prompt.answer_ids.astype(np.int64))[:, None]
        clean = logp.gather(1, target)[:, 0].double().numpy()
        blurred = _logprobs(model, formatter, blur.without_image(prompt)).gather(1, target)[:, 0].double().numpy()
        pieces = formatter.tokenizer.convert_ids_to_tokens(prompt.answer_ids.tolist())
        columns["right"].append((logp.argmax(-1) == target[:, 0]).numpy())
        columns["loss"].append(-clean)
        columns["gain"].append(clean - blurred)
        columns["decided"].append(truth.decided_tokens(pieces, prompt.turns.tolist(), of_sample["decided"]))
        columns["sample"].append(np.full(len(clean), len(keys)))
        columns["place"].append(np.arange(len(clean)))
        keys.append(sample.key)
    return Measured(**{name: np.concatenate(arrays) for name, arrays in columns.items()}, keys=tuple(keys))


def _logprobs(model: Any, formatter: Any, prompt: Prompt) -> torch.Tensor:
    """Log-probs of the whole vocabulary before each answer token, float32 [T, V]."""
    ids = torch.from_numpy(prompt.token_ids.astype(np.int64))[None]
    pixels = formatter.collate([image.inputs for image in prompt.images], "cpu", torch.float32)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, **pixels).logits[0, prompt.answer_positions - 1]
    return logits.log_softmax(-1)
