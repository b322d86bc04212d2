"""A sample through the family's own processor, as a whole: what comes back is what the model is given.

The processor decides the token ids and every array. Which of the tokens are answers is read off the text that it hands
to its tokenizer, image tokens expanded and all, which is noted on the way, with the characters that each token covers.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vig_ray.model.prompt import PromptError


class Noted(NamedTuple):
    """What a processor made of a sample.

    `text`: what its tokenizer got. `token_ids` int32 [L], `offsets` int64 [L, 2]: each token's characters in `text`.
    `arrays`: all else that it gave, by name, with the batch dimension of 1 that it has where it has one.
    """

    text: str
    token_ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    arrays: dict[str, npt.NDArray[Any]]


class _Calls(threading.local):
    """The tokenizer's calls in this thread while they are noted: text, ids, offsets."""

    noted: list[tuple[str, npt.NDArray[np.int32], npt.NDArray[np.int64]]] | None = None


class NotingProcessor:
    """A transformers `processor` whose tokenizer notes what it is given."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self._calls = _Calls()
        _note_calls(processor.tokenizer, self._calls)

    def __call__(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Noted:
        """The conversation, images in its content lists, through chat template and processor. `options`: those of
        `apply_chat_template`.

        Raises PromptError where the processor doesn't hand one text to its tokenizer and its ids on, and whatever a
        template or a processor raises by itself.
        """
        self._calls.noted = []
        try:
            out = self.processor.apply_chat_template(
                list(messages), tokenize=True, return_dict=True, return_tensors="pt", **options
            )
            noted = self._calls.noted
        finally:
            self._calls.noted = None
        ids = np.asarray(out.pop("input_ids")).astype(np.int32)
        if ids.ndim == 2 and len(ids) == 1:
            ids = ids[0]
        whole = [call for call in noted if np.array_equal(call[1], ids)]
        if not whole:
            raise PromptError("Processor", "the processor changes the token ids after its tokenizer made them")
        mask = out.pop("attention_mask", None)
        if mask is not None and not np.asarray(mask).all():
            raise PromptError("Processor", "the processor masks tokens of a sample that stands alone")
        text, _, offsets = whole[-1]
        arrays = {name: as_array(value) for name, value in out.items() if name != "labels"}  # they decide nothing
        return Noted(text, ids, offsets, arrays)


def _note_calls(tokenizer: Any, calls: _Calls) -> None:
    kind = type(tokenizer)

    class Noting(kind):  # type: ignore[misc, valid-type]
        def __call__(self, text: Any = None, *arguments: Any, **options: Any) -> Any:
            if calls.noted is None:
                return super().__call__(text, *arguments, **options)
            encoded = super().__call__(text, *arguments, **(options | {"return_offsets_mapping": True}))
            offsets = np.asarray(encoded.pop("offset_mapping"), dtype=object)
            sample = text[0] if isinstance(text, list) and len(text) == 1 else text
            if isinstance(sample, str):
                ids = np.asarray(encoded["input_ids"]).astype(np.int32).reshape(-1)
                calls.noted.append((sample, ids, offsets.reshape(-1, 2).astype(np.int64)))
            return encoded

    # Processors look at its name ("Fast" in it), and save it.
    Noting.__name__, Noting.__qualname__, Noting.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    tokenizer.__class__ = Noting


def as_array(value: Any) -> npt.NDArray[Any]:
    """A tensor as an array. NumPy has no bfloat16; float32 holds every one of its numbers."""
    if hasattr(value, "is_floating_point") and value.is_floating_point():
        return np.asarray(value.float())
    return np.asarray(value)
