"""Prompts written out by hand, from LLaVA-1.5's rules and a tokenizer alone: no formatter of the project has a part.

    A chat ... USER: <image>\\n{question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT: {answer}</s>

The text is cut at `<image>` and each piece is tokenised by itself, one BOS in front. What is trained is found as LLaVA
finds it, by counting: as many tokens as the text up to and including `ASSISTANT:` has by itself are skipped, and the
rest of the text up to and including `</s>` is trained.
"""

from __future__ import annotations

from typing import Any, NamedTuple

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class Written(NamedTuple):
    """Token ids with every image's features in place, and which of them are trained, rising."""

    ids: list[int]
    trained: list[int]


def llava(tokenizer: Any, conversation: list[tuple[str, str]], *, image_token: int, features: int) -> Written:
    """`conversation`: (role, text) of user and assistant in turn; `<image>` in a text where an image stands."""

    def tokens(text: str) -> list[int]:
        ids = [tokenizer.bos_token_id]
        for index, piece in enumerate(text.split("<image>")):
            ids += [image_token] * features if index else []
            ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids

    text, trained = SYSTEM + " ", []
    for role, said in conversation:
        if role == "user":
            images = said.count("<image>")
            question = "<image>\n" * images + said.replace("<image>", "").strip() if images else said
            text += f"USER: {question} ASSISTANT:"
            continue
        skipped = len(tokens(text))
        text += f" {said}</s>"
        trained += range(skipped, len(tokens(text)))
    return Written(tokens(text), trained)
