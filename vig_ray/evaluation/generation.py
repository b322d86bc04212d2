"""What writes answers: the interface of generators, as `vig_ray.scoring.engines` has that of engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vig_ray.model.prompt import Prompt, PromptError


@dataclass(frozen=True)
class Sampling:
    """How answers are written. `temperature` 0: the likeliest token each time, and `top_p` and `seed` have no effect.
    `seed`: with a prompt's own key it decides what is drawn, whatever else is in its batch."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Written(NamedTuple):
    """An answer: its tokens without the one that ended it, int32 [n], their text, and whether it ended by itself."""

    token_ids: npt.NDArray[np.int32]
    text: str
    finished: bool


class Generator(Protocol):
    """`description`: one line for the log and the record, what writes and how."""

    description: str

    def generate(self, prompts: Sequence[Prompt], sampling: Sequence[Sampling]) -> list[Written | PromptError]:
        """An answer to each prompt, which ends where the answer would begin (`Formatter.question`).

        A prompt that can't be run gives a PromptError in its place; the others are not affected. The answer to a prompt
        is the same in any batch. Raises EngineDiedError where it can't go on.
        """
