"""The CPU stage of the text pass: rows of `samples/` to prompts of a language model. No image is opened.

A sample's answer tokens are the vision-language model's: its prompt is made with stand-ins for the images, on whose
pictures answer tokens don't depend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from vig_ray.dataset.schema import Turn
from vig_ray.model.load import load_formatter
from vig_ray.model.plain import PlainFormatter
from vig_ray.model.prompt import Prompt, PromptError, PromptImage, truncate
from vig_ray.model.text_only import Context, text_formatter
from vig_ray.options import Template
from vig_ray.scoring.prepare import TooLong
from vig_ray.scoring.prepared import pack
from vig_ray.scoring.schema import groups_schema, prepared_schema
from vig_ray.scoring.text_pass import counterparts, joined_ends, sized
from vig_ray.tables.key_index import KeyedRows
from vig_ray.tables.passes import CLEAN, loss_column

_SIDE = 224  # pixels: of a stand-in


class TextPreparer:
    """A Ray Data callable: a block of `SAMPLES` to one row of `groups_schema`, which holds every sample of the block.

    The options up to `trust_remote_code` are `load_formatter`'s. `text_model`, `context`: of the text pass. `align`:
    what happens where its tokens aren't the sample's. `held`: passes that rows of `earlier` have the results of.
    """

    def __init__(
        self,
        *,
        model: str,
        template: Template,
        max_length: int | None,
        end_of_turn: str | None = None,
        trust_remote_code: bool = False,
        text_model: str,
        context: Context,
        align: Literal["none", "characters"],
        too_long: TooLong,
        held: tuple[str, ...] = (),
        earlier: Callable[[], KeyedRows] | None = None,
    ) -> None:
        self._formatter = load_formatter(model, template, max_length, end_of_turn, trust_remote_code)
        self._text = text_formatter(text_model, context, trust_remote_code=trust_remote_code)
        self._align, self._too_long = align, too_long
        self._stand_in = PromptImage("stand-in", _grey, self._formatter.preprocess)
        self._columns, self._schema = prepared_schema(held).names, groups_schema(held)
        self._earlier = earlier() if earlier else None

    def __call__(self, samples: pa.Table) -> pa.Table:
        """Prepare a block."""
        rows = samples.to_pylist()
        if self._earlier is None:
            return pack([self._row(row) for row in rows], self._schema)
        earlier = self._earlier.of(samples["sample_key"])
        return pack([self._added(*both) for both in zip(rows, earlier, strict=True)], self._schema)

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {name: row[name] for name in ("sample_key", "id", "source", "kept", "error")} | {
            "prompts": None
        }
        if row["error"] is not None:
            return out
        conversation = _conversation(row)
        try:
            prompt = self._within(self._prompt(row, conversation))
        except PromptError as error:
            return out | {"error": str(error)}
        except Exception as error:  # a processor or template that fails on one row must not end the job
            return out | {"error": f"{type(error).__name__}: {error}"[:500]}
        out |= {
            "num_truncated_tokens": prompt.truncated,
            "token_ids": prompt.answer_ids,
            "turn": prompt.turns,
            "note": prompt.note,
        }
        return out | self._texts(prompt, conversation)

    def _added(self, row: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
        """An earlier row with its text-only prompt."""
        out = {name: earlier[name] for name in self._columns if name in earlier}
        out |= {"kept": row["kept"], "prompts": None}
        cut_off = earlier["error"] is None and earlier[loss_column(CLEAN)] is None  # its images, at the length limit
        if earlier["token_ids"] is None or not row["images"] or cut_off:  # it never came to a pass
            return out
        conversation = _conversation(row)
        try:
            prompt = _first_answers(self._prompt(row, conversation), len(earlier["token_ids"]))
        except PromptError as error:
            return out | {"prompts": (error,)}
        except Exception as error:
            return out | {"prompts": (PromptError(type(error).__name__, str(error)[:500]),)}
        if prompt.answer_ids.tolist() != earlier["token_ids"]:
            return out | {"prompts": (PromptError("Changed", "its answer tokens aren't those of the passes before"),)}
        return out | self._texts(prompt, conversation)

    def _prompt(self, row: Mapping[str, Any], conversation: list[Turn]) -> Prompt:
        prompt = self._formatter.prompt(conversation, [self._stand_in] * len(row["images"] or ()))
        if len(prompt.answer_positions) == 0:
            raise PromptError("NoAnswer", "no answer token")
        return prompt

    def _within(self, prompt: Prompt) -> Prompt:
        """The prompt, cut at the length limit where it may be. Raises PromptError where it is longer.

        A stand-in is as long as LLaVA's every image; other models' images count nothing, whose sizes aren't known.
        """
        known = sized(self._formatter)
        length = len(prompt.token_ids) - (0 if known else int(prompt.image_mask.sum()))
        limit = self._formatter.max_length
        if length <= limit:
            return prompt
        if self._too_long == "error":
            raise PromptError(
                "TooLong",
                f"{length} tokens, and the limit is {limit} (--too-long truncate scores what fits)",
            )
        assert known, "refused before"
        return truncate(prompt, limit)

    def _texts(self, prompt: Prompt, conversation: list[Turn]) -> dict[str, Any]:
        """The text-only prompt, of the same answer tokens or with what they cover; nothing without an image."""
        if not prompt.images:
            return {"prompts": None}
        try:
            conversation = _as_placed(conversation, prompt)
            text = self._text.prompt(conversation)
            if len(text.token_ids) > self._text.max_length:
                raise PromptError(
                    "TooLong", f"{len(text.token_ids)} tokens, and the language model takes {self._text.max_length}"
                )
            places = counterparts(text, prompt, conversation)
            if places is not None:
                chosen = {name: getattr(text, name)[places] for name in ("answer_positions", "turns", "answer_chars")}
                return {"prompts": (replace(text, **chosen),)}
            joined = joined_ends(text, prompt, conversation) if isinstance(self._formatter, PlainFormatter) else None
            if joined is not None:
                return {"prompts": (joined[0],), "onto_chars": joined[1].reshape(-1)}
            if self._align == "none":
                raise PromptError(
                    "Tokens", "the language model's tokenizer makes others of the answer (--align characters)"
                )
        except PromptError as error:
            return {"prompts": (error,)}
        return {"prompts": (text,), "onto_chars": prompt.answer_chars.reshape(-1)}


def _as_placed(conversation: Sequence[Turn], prompt: Prompt) -> list[Turn]:
    """The conversation with answers as the model's template has placed them: some leave out spaces at their ends."""
    placed, answers = [], 0
    for turn in conversation:
        text = turn.text
        if turn.role == "assistant":
            of_turn = prompt.answer_chars[prompt.turns == answers]
            past = int(of_turn[:, 1].max()) if len(of_turn) else len(text)
            text = text[:past] if not text[past:].strip() else text
            answers += 1
        placed.append(Turn(turn.role, text))
    return placed


def _first_answers(prompt: Prompt, count: int) -> Prompt:
    """The prompt with its first `count` answer tokens, as its passes were cut at the length limit."""
    if len(prompt.answer_positions) <= count:
        return prompt
    kept = {name: getattr(prompt, name)[:count] for name in ("answer_positions", "turns", "answer_chars")}
    return replace(prompt, **kept, truncated=len(prompt.answer_positions) - count)


def _conversation(row: Mapping[str, Any]) -> list[Turn]:
    return [Turn(turn["role"], turn["text"]) for turn in row["conversation"]]


def _grey() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((_SIDE, _SIDE, 3), 128, dtype=np.uint8)
