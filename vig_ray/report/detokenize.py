"""Token ids back to text: each token in its answer, or one token by itself."""

from __future__ import annotations

from typing import Any

from vig_ray.errors import StageError
from vig_ray.model.checkpoint import local_folder

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for a character whose bytes aren't all there


def load_tokenizer(model: str) -> Any:
    """A checkpoint's tokenizer. Raises StageError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(local_folder(model, weights=False), trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise StageError(
            f"--model {model}: its tokenizer can't be loaded; name the checkpoint's folder with --model"
        ) from error


def token_texts(tokenizer: Any, ids: list[int], turns: list[int]) -> list[str]:
    """The text of each token; joined, they give the text of each turn.

    Where several tokens hold the bytes of one character, the last of them has the character and the others are empty.
    """

    def decode(part: list[int]) -> str:
        return str(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    pieces = []
    for turn in sorted(set(turns)):
        of_this_turn = [token for token, number in zip(ids, turns, strict=True) if number == turn]
        # Decoded with the piece before it: enough to see whether a space belongs in between.
        context = done = 0
        for end in range(1, len(of_this_turn) + 1):
            before, whole = decode(of_this_turn[context:done]), decode(of_this_turn[context:end])
            if whole.endswith(_INCOMPLETE) and end < len(of_this_turn):
                pieces.append("")
                continue
            pieces.append(whole[len(before) :])
            context, done = done, end
    return pieces


def token_text(tokenizer: Any, token_id: int) -> str:
    """One token by itself: `white` where it begins a word, `-ize` where it continues one."""
    before = tokenizer.encode("a", add_special_tokens=False)
    pieces = token_texts(tokenizer, [*before, token_id], [0] * (len(before) + 1))
    text = pieces[-1]
    if not text or _INCOMPLETE in text:  # some bytes of a character
        return str(tokenizer.convert_ids_to_tokens(token_id))
    if not text.strip(" "):
        return "␣" * len(text)
    # Scripts beyond U+2E80 write words without spaces between them.
    begins = text[:1].isspace() or not text[:1].isalnum() or text[:1] >= "\u2e80"
    return escape_unprintable(text.strip() or text) if begins else escape_unprintable(f"-{text.strip()}")


def escape_unprintable(text: str) -> str:
    """The text with escapes for what can't be seen and may not stand in XML, such as control characters."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
