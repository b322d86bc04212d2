"""The CPU stage: rows of `samples/` to prompts, one a pass. Images are decoded, blurred and resized here.

A row that can't be prepared keeps its place, with `error` set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from vig_ray.dataset.images import ImageError, load_image
from vig_ray.dataset.schema import Turn
from vig_ray.model.load import load_formatter
from vig_ray.model.prompt import Formatter, Prompt, PromptError, PromptImage, truncate
from vig_ray.options import BlurName, ReferenceName, Template
from vig_ray.scoring.prepared import pack
from vig_ray.scoring.reference import make_reference
from vig_ray.scoring.schema import groups_schema, prepared_schema
from vig_ray.tables.key_index import KeyedRows

TooLong = Literal["error", "truncate"]
Pass = Callable[[Prompt], Prompt]
"""From a sample's prompt to that of one pass: itself for the clean pass. Raises PromptError where there can be none."""


class Prepared(NamedTuple):
    """One sample ready for an engine: its prompt, and that of each pass or why it has none.

    `prompts` is None where there is no image to leave out.
    """

    prompt: Prompt
    prompts: tuple[Prompt | PromptError, ...] | None


def make_passes(
    names: Sequence[Literal["clean"] | ReferenceName],
    formatter: Formatter,
    *,
    blur: BlurName = "fast",
    average: bytes | None = None,
) -> tuple[Pass, ...]:
    """The passes of these names, for prompts that `formatter` makes; the options are `make_reference`'s."""
    return tuple(
        _as_it_is
        if name == "clean"
        else make_reference(name, formatter=formatter, blur=blur, average=average).without_image
        for name in names
    )


def _as_it_is(prompt: Prompt) -> Prompt:
    return prompt


def prepare(
    formatter: Formatter,
    passes: Sequence[Pass],
    conversation: list[Turn],
    images: list[PromptImage],
    *,
    too_long: TooLong = "error",
) -> Prepared:
    """Tokenise one sample and make the prompt of each pass; a text-only sample has none.

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
    prompts = tuple(made_by(one, prompt) for one in passes)
    for image in images:
        image.release()
    return Prepared(prompt, prompts)


def made_by(one: Pass, prompt: Prompt) -> Prompt | PromptError:
    """The prompt of a pass with its arrays: computed now, so that a broken image is this row's error."""
    try:
        made = with_arrays(one(prompt))
    except ImageError:
        raise
    except Exception as error:  # a reference that fails leaves the other passes as they are
        if one is _as_it_is:
            raise
        return error if isinstance(error, PromptError) else PromptError(type(error).__name__, str(error)[:500])
    return made


def with_arrays(prompt: Prompt) -> Prompt:
    """The same prompt, the arrays of its images computed. Raises ImageError, and whatever a processor raises."""
    _ = [image.inputs for image in prompt.images]
    _ = prompt.whole and prompt.whole.arrays
    return prompt


def shared_image(
    image: Mapping[str, Any], shared: dict[str, PromptImage], formatter: Formatter, *, max_pixels: int
) -> PromptImage:
    """An image of the samples table, the same one wherever rows that use `shared` name it."""
    key = image["uri"] or hashlib.blake2b(image["bytes"], digest_size=16).hexdigest()
    if key not in shared:

        def load() -> np.ndarray[Any, np.dtype[np.uint8]]:
            return load_image(image, max_pixels=max_pixels)

        shared[key] = PromptImage(key, load, formatter.preprocess)
    return shared[key]


class Preparer:
    """A Ray Data callable: a block of `SAMPLES` to one row of `groups_schema`, which holds every sample of the block.

    `passes`: the names of those to run; `blur`, `average`: see `make_reference`. `held`: of those that rows of
    `earlier` have the results of.
    """

    def __init__(
        self,
        *,
        model: str,
        template: Template,
        max_length: int | None,
        end_of_turn: str | None = None,
        trust_remote_code: bool = False,
        passes: Sequence[Literal["clean"] | ReferenceName],
        blur: BlurName = "fast",
        average: bytes | None = None,
        too_long: TooLong,
        max_image_pixels: int,
        held: Sequence[str] = (),
        earlier: Callable[[], KeyedRows] | None = None,
    ) -> None:
        cv2.setNumThreads(1)  # Ray runs one of these a core
        self._formatter = load_formatter(model, template, max_length, end_of_turn, trust_remote_code)
        self._passes = make_passes(passes, self._formatter, blur=blur, average=average)
        self._too_long = too_long
        self._max_image_pixels = max_image_pixels
        self._columns, self._schema = prepared_schema(held).names, groups_schema(held)
        self._earlier = earlier() if earlier else None

    def __call__(self, samples: pa.Table) -> pa.Table:
        """Prepare a block; samples that name the same image share its decoding and its blur."""
        shared: dict[str, PromptImage] = {}
        rows = samples.to_pylist()
        if self._earlier is None:
            rows = [self._row(row, shared) for row in rows]
        else:
            earlier = self._earlier.of(samples["sample_key"])
            rows = [self._added(*both, shared) for both in zip(rows, earlier, strict=True)]
        return pack(rows, self._schema)

    def _row(self, row: Mapping[str, Any], shared: dict[str, PromptImage]) -> dict[str, Any]:
        out: dict[str, Any] = {name: row[name] for name in ("sample_key", "id", "source", "kept", "error")} | {
            "prompts": None
        }
        if row["error"] is not None:
            return out
        prepared = self._prepared(row, shared)
        if isinstance(prepared, str):
            return out | {"error": prepared}
        return out | {
            "num_truncated_tokens": prepared.prompt.truncated,
            "token_ids": prepared.prompt.answer_ids,
            "turn": prepared.prompt.turns,
            "note": prepared.prompt.note,
            "prompts": prepared.prompts,
        }

    def _added(
        self, row: Mapping[str, Any], earlier: Mapping[str, Any], shared: dict[str, PromptImage]
    ) -> dict[str, Any]:
        """An earlier row with the prompts of the passes that it lacks.

        What is kept is the sample's: scores of versions that kept nothing lack it.
        """
        out = {name: earlier[name] for name in self._columns if name in earlier}
        out |= {"kept": row["kept"], "prompts": None}
        if earlier["token_ids"] is None or not row["images"]:  # it never came to a pass
            return out
        prepared = self._prepared(row, shared)
        if isinstance(prepared, str):
            kind, _, cause = prepared.partition(": ")
            failed = PromptError(kind, cause)
        elif prepared.prompt.answer_ids.tolist() != earlier["token_ids"]:
            failed = PromptError("Changed", "its answer tokens aren't those of the passes before")
        else:
            return out | {"prompts": prepared.prompts}
        return out | {"prompts": (failed,) * len(self._passes)}

    def _prepared(self, row: Mapping[str, Any], shared: dict[str, PromptImage]) -> Prepared | str:
        """A sample with the prompts of its passes, or why it can't be scored."""
        try:
            limit = self._max_image_pixels
            images = [shared_image(image, shared, self._formatter, max_pixels=limit) for image in row["images"] or ()]
            conversation = [Turn(turn["role"], turn["text"]) for turn in row["conversation"]]
            return prepare(self._formatter, self._passes, conversation, images, too_long=self._too_long)
        except (ImageError, PromptError) as error:
            return str(error)
        except Exception as error:  # a processor or template that fails on one row must not end the job
            return f"{type(error).__name__}: {error}"[:500]
