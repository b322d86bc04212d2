"""The text pass: the log-probs of the same answer tokens by a language model that never sees an image (PRIOR's p_r).

A pass with a model of its own. Two models don't fit beside each other on one GPU, so a run with the text reference has
two phases, each with one engine: first the model's own passes, then the text pass, added to their finished scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vig_ray.dataset.schema import Turn
from vig_ray.errors import StageError
from vig_ray.model.by_characters import sums
from vig_ray.model.checkpoint import fingerprint
from vig_ray.model.llava import LlavaFormatter
from vig_ray.model.load import template_fingerprint
from vig_ray.model.prompt import Formatter, Prompt
from vig_ray.model.text_only import text_formatter
from vig_ray.scoring.config import ScoreConfig
from vig_ray.tables.passes import TEXT

TEXT_OPTIONS = ("reference_model", "reference_context", "align")
"""The options of `vig score` that are for the text pass."""


def phases(config: ScoreConfig) -> list[ScoreConfig]:
    """The runs, one after the other, that make up a run: one a model."""
    if TEXT not in config.reference or config.passes == "text":
        return [config]
    others = tuple(name for name in config.reference if name != TEXT)
    without_text = {name: ScoreConfig.model_fields[name].default for name in TEXT_OPTIONS} | {"reference": others}
    # Whatever is replaced, the first phase replaces; the second one adds to what that left.
    added = {"reference": (TEXT,), "overwrite": False}
    return [config.model_copy(update=without_text), config.model_copy(update=added)]


def check_text_pass(config: ScoreConfig, formatter: Formatter) -> dict[str, Any]:
    """What decides the text pass, as the record holds it. `formatter`: the vision-language model's.

    Raises StageError where the language model, its tokenizer or an option is wrong.
    """
    assert config.reference_model is not None
    trust = config.trust_remote_code
    text = text_formatter(config.reference_model, config.reference_context, trust_remote_code=trust)
    if config.align == "none":
        check_tokenizers(config.model, formatter.tokenizer, config.reference_model, text.tokenizer)
    if config.passes == "text" and config.too_long == "truncate" and not sized(formatter):
        raise StageError(
            f"--too-long truncate: where {config.model} cuts a prompt depends on the sizes of its images, which "
            "--passes text doesn't read; leave it out, or make the clean pass, too"
        )
    return {
        "model": fingerprint(config.reference_model),
        "template": template_fingerprint(text),
        "context": text.context,
        "max_length": text.max_length,
        "align": config.align,
    }


def sized(formatter: Formatter) -> bool:
    """Whether a model's images are all as long, so that a prompt's length is known without them."""
    return isinstance(getattr(formatter, "of", formatter), LlavaFormatter)  # its own prompt, or the plain one


def check_tokenizers(model: str, tokenizer: Any, text_model: str, text_tokenizer: Any) -> None:
    """Raise StageError where two tokenizers don't know the same tokens by the same ids, added ones left aside.

    What they make of a text may still differ, which is seen sample by sample.
    """
    ours, theirs = tokenizer.get_vocab(), text_tokenizer.get_vocab()
    added = {str(token) for each in (tokenizer, text_tokenizer) for token in each.added_tokens_decoder.values()}
    differing = sorted(name for name in (ours.keys() | theirs.keys()) - added if ours.get(name) != theirs.get(name))
    if not differing:
        return
    first = differing[0]
    ids = [vocabulary.get(first, "none") for vocabulary in (ours, theirs)]
    raise StageError(
        f"--reference-model {text_model}: its tokenizer isn't that of {model}: {len(differing):,} tokens have other "
        f"ids, such as {first!r}, {ids[0]} and {ids[1]}. --align characters carries its log-probs over to the model's "
        "tokens"
    )


def counterparts(text: Prompt, prompt: Prompt, conversation: Sequence[Turn]) -> npt.NDArray[np.int64] | None:
    """Which answer token of the text-only prompt is each of `prompt`'s, int64 [T]; None where they aren't the same.

    Tokens of an answer's text are the same by their ids. The token behind an answer is the end of its turn in one and
    the end of the text in the other, whatever their ids. `prompt` may be cut off, or train nothing behind an answer.
    """
    lengths = np.asarray([len(turn.text) for turn in conversation if turn.role == "assistant"], dtype=np.int64)
    mine = np.flatnonzero(np.isin(text.turns, prompt.turns))
    end_U, end_T = (
        (one.answer_chars[:, 0] == one.answer_chars[:, 1]) & (one.answer_chars[:, 1] == lengths[one.turns])
        for one in (text, prompt)
    )
    of_text = mine[~end_U[mine]]
    words_T = np.flatnonzero(~end_T)
    whole = prompt.truncated == 0
    if len(of_text) < len(words_T) or (whole and len(of_text) > len(words_T)):
        return None
    of_text = of_text[: len(words_T)]
    same = np.array_equal(text.answer_ids[of_text], prompt.answer_ids[words_T])
    if not same or not np.array_equal(text.turns[of_text], prompt.turns[words_T]):
        return None
    ends_T = np.flatnonzero(end_T)
    turns = prompt.turns[ends_T]
    if len(np.unique(turns)) < len(turns):  # several tokens behind an answer
        return None
    ends = {int(turn): int(place) for place, turn in zip(mine[end_U[mine]], text.turns[mine[end_U[mine]]], strict=True)}
    if not ends.keys() >= set(turns.tolist()):
        return None
    place_T = np.empty(len(prompt.turns), dtype=np.int64)
    place_T[words_T], place_T[ends_T] = of_text, [ends[turn] for turn in turns.tolist()]
    return place_T


def joined_ends(
    text: Prompt, prompt: Prompt, conversation: Sequence[Turn]
) -> tuple[Prompt, npt.NDArray[np.int64]] | None:
    """The text-only prompt of a caption, and the characters, int64 [T, 2], of the tokens that its log-probs go to, for
    a prompt that ends in a newline (`--template plain`) which is one token with the caption's last characters; None
    where the tokens before aren't the same.

    Byte-level vocabularies have such tokens, ".\\n" say. The newline counts as one more character, which is the end of
    the text on the other side: the last token takes the log-probs of both.
    """
    length = len(conversation[-1].text)
    chars_T, chars_U = prompt.answer_chars.astype(np.int64), text.answer_chars.astype(np.int64)
    if prompt.truncated or chars_T[-1, 0] == length or len(chars_U) < 2:
        return None
    first = chars_T[-1, 0]
    before_U = np.flatnonzero(chars_U[:-1, 1] <= first)
    if not np.array_equal(text.answer_ids[before_U], prompt.answer_ids[:-1]) or first not in chars_U[:-1, 0]:
        return None
    chars_T[-1, 1] = length + 1
    chars_U[-1] = length, length + 1
    return replace(text, answer_chars=chars_U.astype(np.int32)), chars_T


def carried(
    logp_U: npt.NDArray[np.float32], text: Prompt, row: Mapping[str, Any]
) -> tuple[npt.NDArray[np.float32], int]:
    """The log-probs of a row's own answer tokens, float32 [T], from those of the text-only prompt's, and how many of
    them are exact. `row`: as it was prepared."""
    if row.get("onto_chars") is None:
        return logp_U, len(logp_U)
    chars_T = np.asarray(row["onto_chars"], dtype=np.int64).reshape(-1, 2)
    logp_T, exact_T = sums(logp_U, text.answer_chars, chars_T, turns_U=text.turns, turns_T=np.asarray(row["turn"]))
    return logp_T.astype(np.float32), int(exact_T.sum())
