"""The text of tokens: each in its answer, and a token by itself."""

from __future__ import annotations

from typing import Any

from vig_ray.errors import StageError
from vig_ray.model.checkpoint import local_folder

_CUT = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for a character that isn't whole yet


def load_tokenizer(model: str) -> Any:
    """A checkpoint's tokenizer. Raises StageError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(local_folder(model, weights=False))
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise StageError(
            f"--model {model}: its tokenizer can't be loaded; name the checkpoint's folder with --model"
        ) from error


def pieces_of(tokenizer: Any, ids: list[int], turns: list[int]) -> list[str]:
    """The text of each token, which joined give the text of each turn; a character's bytes come with its last token."""

    def text(part: list[int]) -> str:
        return str(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    pieces = []
    for turn in sorted(set(turns)):
        own = [token for token, of_turn in zip(ids, turns, strict=True) if of_turn == turn]
        # Decoded with what was told last before them: enough to see whether a space belongs in between.
        context = told = 0
        for end in range(1, len(own) + 1):
            before, whole = text(own[context:told]), text(own[context:end])
            if whole.endswith(_CUT) and end < len(own):
                pieces.append("")
                continue
            pieces.append(whole[len(before) :])
            context, told = told, end
    return pieces


def spelled(tokenizer: Any, token_id: int) -> str:
    """One token by itself: `white` where it begins a word, `-ize` where it goes on with one."""
    before = tokenizer.encode("a", add_special_tokens=False)
    pieces = pieces_of(tokenizer, [*before, token_id], [0] * (len(before) + 1))
    text = pieces[-1]
    if not text or _CUT in text:  # some bytes of a character
        return str(tokenizer.convert_ids_to_tokens(token_id))
    if not text.strip(" "):
        return "␣" * len(text)
    # Scripts beyond U+2E80 write words without spaces between them.
    begins = text[:1].isspace() or not text[:1].isalnum() or text[:1] >= "\u2e80"
    return visible(text.strip() or text) if begins else visible(f"-{text.strip()}")


def visible(text: str) -> str:
    """The text with escapes for what can't be seen, nor stand in XML: control characters and their like."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
