"""What writes answers: the interface of generators, as `vig_ray.scoring.engines` has that of engines.

Answers are what the model's own logits say: settings that a checkpoint's generation config adds (a penalty on what was
said already, say) are left out, but for its stop tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vig_ray.model.prompt import Prompt, PromptError

HOTTEST = 2.0
"""The highest temperature, which is vLLM's."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is written. `temperature` 0: the likeliest token each time, and `top_p` and `seed` have no effect.
    `seed`: with the prompt's tokens and its images' keys it decides what is drawn, whatever else is in its batch; the
    same prompt with the same seed has the same answer. Another engine draws others."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Written(NamedTuple):
    """An answer: its tokens without the one that ended it, int32 [n]; their text without special tokens and without
    space around it; and whether it ended by itself."""

    token_ids: npt.NDArray[np.int32]
    text: str
    finished: bool


def check_sampling(sampling: Sampling) -> None:
    """Raise ValueError for what can't be drawn by."""
    if sampling.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {sampling.max_new_tokens}: takes a number from 1")
    if not 0 <= sampling.temperature <= HOTTEST:
        raise ValueError(f"temperature {sampling.temperature}: takes a number from 0 to {HOTTEST:g}")
    if not 0 < sampling.top_p <= 1:
        raise ValueError(f"top_p {sampling.top_p}: takes a number above 0 and up to 1")


def seed_of(prompt: Prompt, seed: int) -> int:
    """What a prompt's draws begin with, 56 bits: of its tokens, its images' keys and `seed`."""
    digest = hashlib.blake2b(f"{seed}\n".encode(), digest_size=7)
    digest.update(np.ascontiguousarray(prompt.token_ids, dtype=np.int32).tobytes())
    for image in prompt.images:
        digest.update(b"\n" + image.key.encode("utf-8", "surrogateescape"))
    return int.from_bytes(digest.digest(), "big")


def longest_answer(prompt: Prompt, sampling: Sampling, *, limit: int, room: int | None) -> Sampling:
    """The sampling with as few new tokens as fit behind the prompt: `room` for both, None for any number.

    Raises PromptError where the prompt is longer than `limit` or leaves no room.
    """
    length = len(prompt.token_ids)
    if not length:
        raise PromptError("Empty", "a prompt of no tokens")
    if len(prompt.answer_positions):
        raise PromptError("Question", "the prompt has its answer already")
    if length > limit or (room is not None and length >= room):
        most = limit if room is None else min(limit, room - 1)
        raise PromptError("TooLong", f"{length} tokens, and the limit is {most}; a question isn't cut")
    return sampling if room is None else replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room - length))


def overflow() -> PromptError:
    """What a prompt has in place of an answer where its logits, at any of its tokens, are no numbers."""
    return PromptError("NotFinite", "logits overflow; --dtype bfloat16 or float32 has the range")


class Generator(Protocol):
    """`description`: one line for the log and the record, what writes and how."""

    description: str

    def generate(self, prompts: Sequence[Prompt], sampling: Sequence[Sampling]) -> list[Written | PromptError]:
        """An answer to each prompt, which ends where the answer would begin (`Formatter.question`).

        A prompt that can't be run gives a PromptError in its place; the others are not affected. The answer to a prompt
        is the same in any batch. Raises EngineDiedError where it can't go on.
        """
