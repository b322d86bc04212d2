"""A plugin for ms-swift: what is trained of a row of `vig export-data --format swift` is what the row says.

    swift sft --dataset chosen.jsonl --external_plugins plugin.py --loss_scale vig ...

The file needs nothing of vig-ray: it may be copied to where ms-swift runs. Without it, ms-swift trains the end of a
turn wherever the token before it is trained, and the one that it adds to an answer that has none.
"""

from __future__ import annotations

from typing import Any

from swift.loss_scale import LossScale, loss_scale_map
from swift.template import Template


class TokensWithLossScale(LossScale):  # type: ignore[misc]  # ms-swift isn't typed
    """A loss on tokens that come with their own loss scale, and on no other."""

    def __call__(self, context_list: Any, context_types: Any, messages: Any, **kwargs: Any) -> Any:
        """As LossScale's. Raises ValueError where an answer has no token ids: none of it would be trained."""
        for message in messages:
            answer = message["content"]
            if message["role"] == "assistant" and isinstance(answer, str) and message.get("loss") is not False:
                raise ValueError(f"an answer without token ids ({answer[:50]!r}): leave out --loss_scale vig")
        return super().__call__(context_list, context_types, messages, **kwargs)

    def get_loss_scale(self, context: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """0, for whatever has no loss scale of its own."""
        return [context], [0.0]


def _nothing_more(*_: Any) -> None:
    """In the place of what makes the end of a turn trained."""


loss_scale_map["vig"] = TokensWithLossScale
Template._add_dynamic_eos = staticmethod(_nothing_more)
