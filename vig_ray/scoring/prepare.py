"""The CPU stage: rows of `samples/` to pairs of prompts. Images are decoded, blurred and resized here.

A row that can't be prepared keeps its place, with `error` set.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from vig_ray.dataset.images import ImageError, load_image
from vig_ray.dataset.schema import Turn
from vig_ray.model.load import load_formatter
from vig_ray.model.prompt import Formatter, Prompt, PromptError, PromptImage, truncate
from vig_ray.options import Template
from vig_ray.scoring.reference import REFERENCES
from vig_ray.scoring.schema import PREPARED

TooLong = Literal["error", "truncate"]


class Prepared(NamedTuple):
    """One sample ready for an engine: both prompts, or None where there is no image to leave out."""

    prompt: Prompt
    pair: tuple[Prompt, Prompt] | None


def prepare(
    formatter: Formatter,
    without_image: Callable[[Prompt], Prompt],
    conversation: list[Turn],
    images: list[PromptImage],
    *,
    too_long: TooLong = "error",
) -> Prepared:
    """Tokenise one sample and make its clean and its reference prompt; a text-only one has no pair.

    Raises PromptError or ImageError where the sample can't be scored.
    """
    prompt = formatter.prompt(conversation, images)
    if len(prompt.answer_positions) == 0:
        raise PromptError("NoAnswer", "no answer token")
    if len(prompt.token_ids) > formatter.max_length:
        if too_long == "error":
            raise PromptError(
                "TooLong",
                f"{len(prompt.token_ids)} tokens, and the limit is {formatter.max_length} "
                "(--too-long truncate scores what fits)",
            )
        prompt = truncate(prompt, formatter.max_length)
    if not prompt.images:
        return Prepared(prompt, None)
    pair = (prompt, without_image(prompt))
    for one in pair:  # computed now, so that a broken image is this row's error
        _ = [image.inputs for image in one.images]
        _ = one.whole and one.whole.arrays
    for image in images:
        image.release()
    return Prepared(prompt, pair)


class Preparer:
    """A Ray Data callable: a block of `SAMPLES` to a block of `PREPARED`, row for row."""

    def __init__(
        self,
        *,
        model: str,
        template: Template,
        max_length: int | None,
        end_of_turn: str | None = None,
        trust_remote_code: bool = False,
        reference: str,
        too_long: TooLong,
        max_image_pixels: int,
    ) -> None:
        cv2.setNumThreads(1)  # Ray runs one of these a core
        self._formatter = load_formatter(model, template, max_length, end_of_turn, trust_remote_code)
        self._without_image = REFERENCES[reference].without_image
        self._too_long = too_long
        self._max_image_pixels = max_image_pixels

    def __call__(self, samples: pa.Table) -> pa.Table:
        """Prepare a block; samples that name the same image share its decoding and its blur."""
        shared: dict[str, PromptImage] = {}
        rows = [self._row(row, shared) for row in samples.to_pylist()]
        return pa.Table.from_pylist(rows, schema=PREPARED)

    def _row(self, row: Mapping[str, Any], shared: dict[str, PromptImage]) -> dict[str, Any]:
        out: dict[str, Any] = {name: row[name] for name in ("sample_key", "id", "source", "error")}
        if row["error"] is not None:
            return out
        try:
            images = [self._image(image, shared) for image in row["images"] or ()]
            conversation = [Turn(turn["role"], turn["text"]) for turn in row["conversation"]]
            prepared = prepare(self._formatter, self._without_image, conversation, images, too_long=self._too_long)
        except (ImageError, PromptError) as error:
            return out | {"error": str(error)}
        except Exception as error:  # a processor or template that fails on one row must not end the job
            return out | {"error": f"{type(error).__name__}: {error}"[:500]}
        return out | {
            "num_truncated_tokens": prepared.prompt.truncated,
            "token_ids": prepared.prompt.answer_ids,
            "turn": prepared.prompt.turns,
            "note": prepared.prompt.note,
            # One pickle for both: what they share is stored once.
            "prompts": pickle.dumps(prepared.pair, protocol=5) if prepared.pair else None,
        }

    def _image(self, image: Mapping[str, Any], shared: dict[str, PromptImage]) -> PromptImage:
        key = image["uri"] or hashlib.blake2b(image["bytes"], digest_size=16).hexdigest()
        if key not in shared:

            def load() -> np.ndarray[Any, np.dtype[np.uint8]]:
                return load_image(image, max_pixels=self._max_image_pixels)

            shared[key] = PromptImage(key, load, self._formatter.preprocess)
        return shared[key]
