"""How much a model attends to the image while it answers, layer by layer (VIG, section 4.4 and Figure 4).

The queries are the states that predict the answer's tokens, the keys that count are those of image tokens, and a share
is the mean over the answer's tokens, and over heads unless each is asked for. What was written is run once more as a
whole, its own tokens in their places; no matrix of all attention is made (`vig_ray.model.image_attention`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vig_ray.model.image_attention import Watch, watched
from vig_ray.model.prompt import ImageInputs, Prompt, PromptError
from vig_ray.scoring.engines.features import Collate
from vig_ray.scoring.engines.forwards import Forwards
from vig_ray.scoring.engines.target_logprobs import TargetLogProbs
from vig_ray.storage import one_line

_NAMED = re.compile(r"layer (\d+)(?: head (\d+))?")


class Place(NamedTuple):
    """A layer of the language model, from 0, or one of its heads. Its text is the name of its mark."""

    layer: int
    head: int | None = None

    def __str__(self) -> str:
        return f"layer {self.layer}" + ("" if self.head is None else f" head {self.head}")

    @classmethod
    def of(cls, name: str) -> Place | None:
        """The place that a mark is of; None for other marks."""
        found = _NAMED.fullmatch(name)
        return found and cls(int(found[1]), None if found[2] is None else int(found[2]))


class ImageAttention:
    """What a loaded model's layers say of one sample after the other. `collate`: the formatter's."""

    def __init__(self, model: Any, collate: Collate) -> None:
        self._model = model
        self._forwards = Forwards(model, collate, TargetLogProbs(model))

    def __call__(self, prompt: Prompt, *, heads: bool = False) -> dict[str, float]:
        """The shares of a prompt's answer tokens, mean over them, by the names of their `Place`.

        Empty where no token was answered or there is no image. Raises PromptError where attention can't be told.
        """
        if not len(prompt.answer_positions) or not prompt.image_mask.any():
            return {}
        try:
            with watched(self._model, prompt.answer_positions - 1, prompt.image_mask) as watch:
                self._forwards.states_plainly(prompt)
            found = dict(_means(watch, heads=heads))
        except ValueError as error:
            raise error if isinstance(error, PromptError) else PromptError("Attention", one_line(error)) from error
        if not np.isfinite(list(found.values())).all():
            raise PromptError("NotFinite", "attention overflows; --dtype bfloat16 or float32 has the range")
        return {str(place): share for place, share in found.items()}


def _means(watch: Watch, *, heads: bool) -> list[tuple[Place, float]]:
    means = []
    for layer, shares_HT in zip(watch.layers(), watch.by_head(), strict=True):
        means.append((Place(layer), float(shares_HT.mean())))
        if heads:
            means += [(Place(layer, head), float(shares_T.mean())) for head, shares_T in enumerate(shares_HT)]
    return means


def with_written(prompt: Prompt, token_ids: npt.NDArray[np.int32]) -> Prompt:
    """A prompt to be answered, with the tokens that were written after it as its answer."""
    length, count = len(prompt.token_ids), len(token_ids)

    def longer(arrays: ImageInputs) -> ImageInputs:
        """What a processor gives of every token says 0 of text."""
        ends = {name: array.ndim == 2 and array.shape[1] == length for name, array in arrays.items()}
        return {name: np.pad(array, ((0, 0), (0, count))) if ends[name] else array for name, array in arrays.items()}

    return replace(
        prompt,
        token_ids=np.concatenate([prompt.token_ids, token_ids]).astype(np.int32),
        answer_positions=np.arange(length, length + count, dtype=np.int32),
        turns=np.zeros(count, dtype=np.int32),
        image_mask=np.concatenate([prompt.image_mask, np.zeros(count, dtype=bool)]),
        answer_chars=np.zeros((count, 2), dtype=np.int32),
        whole=prompt.whole and prompt.whole.changed(longer),
    )


def last_answer(prompt: Prompt) -> Prompt:
    """A prompt with the tokens of its last answer alone as those that are asked about."""
    last = prompt.turns == prompt.turns.max(initial=-1)
    return replace(
        prompt,
        answer_positions=prompt.answer_positions[last],
        turns=prompt.turns[last],
        answer_chars=prompt.answer_chars[last],
    )


def places_of(marks: Iterable[str]) -> dict[Place, str]:
    """The names of those marks that are shares, by place; the layers and after them their heads, in order."""
    found = {place: name for name in marks if (place := Place.of(name)) is not None}
    return dict(sorted(found.items(), key=lambda item: (item[0].head is not None, item[0].layer, item[0].head or 0)))
