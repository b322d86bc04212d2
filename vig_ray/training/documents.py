"""What of a sample is trained on: the whole prompt of a vision-language model, or a document of its text alone."""

from __future__ import annotations

from typing import NamedTuple

from vig_ray.model.load import Prompts, load_formatter
from vig_ray.model.prompt import Formatter, Prompt, PromptError, truncate
from vig_ray.model.text_only import Context, text_formatter


class Documents(NamedTuple):
    """What decides a document: the language model, what its answers see, the longest one in tokens where the model
    itself takes longer ones, and whether the checkpoint's code is run."""

    model: str
    context: Context
    max_length: int
    trust_remote_code: bool = False

    @property
    def template(self) -> None:
        """None: there is no prompt around a document."""
        return


Recipe = Prompts | Documents
"""What decides the tokens of a sample."""


def formatter_of(recipe: Recipe) -> Formatter:
    """The formatter that makes them. Raises StageError where the checkpoint has none that works."""
    if isinstance(recipe, Prompts):
        return load_formatter(*recipe)
    formatter = text_formatter(
        recipe.model, recipe.context, option="--model", trust_remote_code=recipe.trust_remote_code
    )
    formatter.max_length = min(formatter.max_length, recipe.max_length)
    return formatter


def fitted(prompt: Prompt, recipe: Recipe, max_length: int) -> Prompt:
    """The prompt within the limit: a vision-language model's is cut there, as LLaVA's code does it.

    A document never is, since its end would be missing and nobody told. Raises PromptError for a longer one, and where
    the cut leaves no answer token.
    """
    if isinstance(recipe, Prompts):
        return truncate(prompt, max_length)
    if len(prompt.token_ids) > max_length:
        raise PromptError("TooLong", f"{len(prompt.token_ids):,} tokens, and a document has {max_length:,} at most")
    return prompt
