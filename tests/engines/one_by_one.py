"""`--engine tests.engines.one_by_one:engine`: transformers' own generate, a prompt at a time, and the project's torch
engine for log-probs, behind the gates of `gated.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tests.engines.gated import Gated
from vig_ray.evaluation.generation import Sampling, Written
from vig_ray.model.load import load_formatter, load_model
from vig_ray.scoring.engines.torch import TorchEngine


class OneByOne:
    description = "transformers' generate, one by one"

    def __init__(self, model: str, threads: int | None) -> None:
        torch.set_num_threads(threads or 1)
        self._formatter: Any = load_formatter(model)
        self._model = load_model(model, dtype="float32", device="cpu")
        self._engine = TorchEngine(self._model, self._formatter.collate)
        self._gated = Gated(self._engine.logprobs, self.description)

    def logprobs(self, prompts: Sequence[Any]) -> list[Any]:
        return self._gated.logprobs(prompts)

    def generate(self, prompts: Sequence[Any], sampling: Sequence[Sampling]) -> list[Written]:
        return [self._one(*each) for each in zip(prompts, sampling, strict=True)]

    def _one(self, prompt: Any, sampling: Sampling) -> Written:
        ids = torch.tensor(prompt.token_ids.tolist())[None]
        images = [image.inputs for image in prompt.images]
        given = self._formatter.collate(images, "cpu", torch.float32) if images else {}
        with torch.no_grad():
            out = self._model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), **given, do_sample=False,
                max_new_tokens=sampling.max_new_tokens,
            )[0, ids.shape[1] :]  # fmt: skip
        ended = bool(len(out) and out[-1] == self._formatter.tokenizer.eos_token_id)
        kept = out[:-1] if ended else out
        text = self._formatter.tokenizer.decode(kept, skip_special_tokens=True)
        return Written(np.asarray(kept, dtype=np.int32), text.strip(), ended)


def engine(*, model: str, threads: int | None, **_: Any) -> OneByOne:
    return OneByOne(model, threads)
