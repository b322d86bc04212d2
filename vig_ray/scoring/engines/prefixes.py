"""Prompts that begin alike: the order in which a prefix cache has most of them, and the count of what it had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vig_ray.model.prompt import Prompt


def order_by_prefix(prompts: Sequence[Prompt]) -> list[int]:
    """The prompts' numbers in an order in which each one follows the one that it shares most of its beginning with.

    It is the order of a dictionary, over the token ids with each image's places replaced by its key: an image and its
    blurred version stand apart. No prompt before it shares more with it than its predecessor does, so that a cache that
    holds little more than one prompt hits as often as one that holds all. Equal prompts keep their order.
    """
    return sorted(range(len(prompts)), key=lambda number: _spelled(prompts[number]))


def _spelled(prompt: Prompt) -> list[bytes]:
    """Text, image, text, ..., text: the token ids' bytes and the images' keys in turn."""
    parts, begin = [], 0
    for image, (first, past) in zip(prompt.images, prompt.image_spans.tolist(), strict=True):
        parts += [prompt.token_ids[begin:first].tobytes(), image.key.encode("utf-8", "surrogateescape")]
        begin = past
    return [*parts, prompt.token_ids[begin:].tobytes()]


@dataclass
class PrefixUse:
    """Prompt tokens of the requests that were answered, and those of them that the prefix cache had."""

    tokens: int = 0
    cached: int = 0

    def add(self, tokens: int, cached: int) -> None:
        """One more request."""
        self.tokens += tokens
        self.cached += cached

    def take(self) -> tuple[int, int]:
        """Both counts since the last call."""
        taken = self.tokens, self.cached
        self.tokens = self.cached = 0
        return taken


def told(tokens: int, cached: int) -> str:
    """Both counts in words."""
    return f"prefix cache: had {100 * cached / tokens:.1f} % of {tokens:,} prompt tokens"
