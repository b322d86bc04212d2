"""The CPU stage: rows of `samples/` to prompts, one a pass. Images are decoded, blurred and resized here.

A row that can't be prepared keeps its place, with `error` set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import cv2
import pyarrow as pa

from vig_ray.dataset.images import MAX_PIXELS, ImageError
from vig_ray.dataset.schema import Turn
from vig_ray.model.load import load_formatter
from vig_ray.model.prompt import Formatter, Prompt, PromptError, PromptImage, truncate
from vig_ray.model.shared_images import SharedImages
from vig_ray.options import BlurName, ReferenceName, Template
from vig_ray.scoring.prepared import pack
from vig_ray.scoring.reference import make_reference
from vig_ray.scoring.references.other_images import OF_OTHER_IMAGES, About, Drawn, OtherImages, pool_of, release
from vig_ray.scoring.schema import groups_schema, prepared_schema
from vig_ray.tables.key_index import KeyedRows

TooLong = Literal["error", "truncate"]
Pass = Callable[[Prompt], Prompt] | OtherImages
"""From a sample's prompt to that of one pass: itself for the clean pass. Raises PromptError where there can be none."""


class Prepared(NamedTuple):
    """One sample ready for an engine: its prompt, and those of each pass or why it has none; `marginal` has several.

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
) -> tuple[Callable[[Prompt], Prompt], ...]:
    """The passes of these names, for prompts that `formatter` makes; the options are `make_reference`'s."""
    return tuple(
        _as_it_is
        if name == "clean"
        else make_reference(name, formatter=formatter, blur=blur, average=average).without_image
        for name in names
    )


def passes_of(
    slots: Sequence[str],
    formatter: Formatter,
    *,
    blur: BlurName = "fast",
    average: bytes | None = None,
    drawn: Mapping[str, Drawn] | None = None,
    too_long: TooLong = "error",
    max_image_pixels: int = MAX_PIXELS,
) -> tuple[Pass, ...]:
    """One pass a slot, as `vig_ray.scoring.passes.slots_of` has them. `drawn`: the images of `marginal` and `swap`."""
    pools = {name: pool_of(of_name, formatter, max_image_pixels) for name, of_name in (drawn or {}).items()}
    passes: list[Pass] = []
    for slot, name in enumerate(slots):
        if name in OF_OTHER_IMAGES:
            assert drawn is not None
            place = None if drawn[name].by_source else slots[:slot].count(name)
            passes.append(OtherImages(place, pools[name], formatter, drawn[name].seed, too_long))
        else:
            known = cast(Literal["clean"] | ReferenceName, name)
            passes += make_passes((known,), formatter, blur=blur, average=average)
    return tuple(passes)


def _as_it_is(prompt: Prompt) -> Prompt:
    return prompt


def prepare(
    formatter: Formatter,
    passes: Sequence[Pass],
    conversation: list[Turn],
    images: list[PromptImage],
    *,
    too_long: TooLong = "error",
    source: str | None = None,
    key: str = "",
) -> Prepared:
    """Tokenise one sample and make the prompt of each pass; a text-only sample has none.

    `source`, `key`: the sample's, by which `swap` chooses its image. Raises PromptError or ImageError where the sample
    can't be scored.
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
    about = About(conversation, source, key)
    prompts = tuple(made_by(one, prompt, about) for one in passes)
    for image in images:
        image.release()
    return Prepared(prompt, prompts)


def made_by(one: Pass, prompt: Prompt, about: About | None = None) -> Prompt | PromptError:
    """The prompt of a pass with its arrays: computed now, so that a broken image is this row's error."""
    try:
        if isinstance(one, OtherImages):
            assert about is not None
            made = with_arrays(one.of(prompt, about))
            release(made)
            return made
        made = with_arrays(one(prompt))
    except ImageError as error:
        if isinstance(one, OtherImages):  # it isn't this sample's
            return PromptError("OtherImage", str(error)[:500])
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


class Preparer:
    """A Ray Data callable: a block of `SAMPLES` to one row of `groups_schema`, which holds every sample of the block.

    `passes`: a name for each prompt to make, see `vig_ray.scoring.passes.slots_of`; `blur`, `average`: see
    `make_reference`; `drawn`: the images of `marginal` and `swap`. `held`: names of passes that rows of `earlier` have
    the results of.
    """

    def __init__(
        self,
        *,
        model: str,
        template: Template,
        max_length: int | None,
        end_of_turn: str | None = None,
        trust_remote_code: bool = False,
        passes: Sequence[str],
        blur: BlurName = "fast",
        average: bytes | None = None,
        drawn: Mapping[str, Drawn] | None = None,
        too_long: TooLong,
        max_image_pixels: int,
        held: Sequence[str] = (),
        earlier: Callable[[], KeyedRows] | None = None,
    ) -> None:
        cv2.setNumThreads(1)  # Ray runs one of these a core
        self._formatter = load_formatter(model, template, max_length, end_of_turn, trust_remote_code)
        self._passes = passes_of(
            passes, self._formatter, blur=blur, average=average, drawn=drawn, too_long=too_long,
            max_image_pixels=max_image_pixels,
        )  # fmt: skip
        self._too_long = too_long
        self._max_image_pixels = max_image_pixels
        self._columns, self._schema = prepared_schema(held).names, groups_schema(held)
        self._earlier = earlier() if earlier else None

    def __call__(self, samples: pa.Table) -> pa.Table:
        """Prepare a block; samples that name the same image share its decoding and its blur."""
        shared = SharedImages(self._formatter.preprocess, self._max_image_pixels)
        rows = samples.to_pylist()
        if self._earlier is None:
            rows = [self._row(row, shared) for row in rows]
        else:
            earlier = self._earlier.of(samples["sample_key"])
            rows = [self._added(*both, shared) for both in zip(rows, earlier, strict=True)]
        return pack(rows, self._schema)

    def _row(self, row: Mapping[str, Any], shared: SharedImages) -> dict[str, Any]:
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

    def _added(self, row: Mapping[str, Any], earlier: Mapping[str, Any], shared: SharedImages) -> dict[str, Any]:
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

    def _prepared(self, row: Mapping[str, Any], shared: SharedImages) -> Prepared | str:
        """A sample with the prompts of its passes, or why it can't be scored."""
        try:
            images = shared.of(row)
            conversation = [Turn(turn["role"], turn["text"]) for turn in row["conversation"]]
            return prepare(
                self._formatter, self._passes, conversation, images, too_long=self._too_long, source=row["source"],
                key=row["sample_key"],
            )  # fmt: skip
        except (ImageError, PromptError) as error:
            return str(error)
        except Exception as error:  # a processor or template that fails on one row must not end the job
            return f"{type(error).__name__}: {error}"[:500]
