"""A conversation as a plain language model reads it: text alone, no image, no mark of one, no chat template.

    answer        <s> answer </s> answer </s>
    conversation  <s> question NEWLINE answer </s> question NEWLINE answer </s>

PRIOR (equation 2) has one caption a document. Where a sample has several answers, each ends with the end-of-text token
and sees those before it. Answers and their end-of-text tokens are trained and scored; questions never are. A tokenizer
without a token for a text's beginning has its end-of-text token there, as it stands between packed documents.

Every piece is tokenised by itself, so that what an answer's tokens are doesn't depend on the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import local_folder, read_config, trusted, unusable
from vig_ray.model.prompt import ImageInputs, Pixels, Prompt, PromptError, PromptImage

Context = Literal["answer", "conversation"]


class TextOnly:
    """The formatter of a language model. `max_length`: the longest document, tokens; nothing is cut here."""

    mean: tuple[float, ...] = ()

    def __init__(self, tokenizer: Any, *, context: Context, max_length: int) -> None:
        """Raises ValueError where the tokenizer has no token for a text's end."""
        if tokenizer.eos_token_id is None:
            raise ValueError("its tokenizer has no end-of-text token")
        self.tokenizer, self.context, self.max_length = tokenizer, context, max_length
        self._end = int(tokenizer.eos_token_id)
        self._begin = self._end if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)

    def prompt(self, conversation: Sequence[Turn], images: Sequence[PromptImage] = ()) -> Prompt:  # noqa: ARG002
        """The document of a conversation, whatever its images. Raises PromptError where it has no answer."""
        ids, turn_of, chars = [self._begin], [-1], [(0, 0)]
        answers = 0
        for turn in conversation:
            is_answer = turn.role == "assistant"
            if not is_answer and self.context == "answer":
                continue
            text = turn.text if is_answer else _without_marks(turn.text) + "\n"
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids += encoded["input_ids"]
            chars += encoded["offset_mapping"]
            turn_of += [answers if is_answer else -1] * len(encoded["input_ids"])
            if is_answer:
                ids.append(self._end)
                chars.append((len(text), len(text)))
                turn_of.append(answers)
                answers += 1
        if not answers:
            raise PromptError("NoAnswer", "no assistant turn")
        turns = np.array(turn_of, dtype=np.int32)
        positions = np.flatnonzero(turns >= 0).astype(np.int32)
        return Prompt(
            token_ids=np.array(ids, dtype=np.int32),
            answer_positions=positions,
            turns=turns[positions],
            image_mask=np.zeros(len(ids), dtype=np.bool_),
            image_spans=np.zeros((0, 2), dtype=np.int32),
            images=(),
            answer_chars=np.array(chars, dtype=np.int32)[positions],
        )

    def preprocess(self, pixels: Pixels) -> ImageInputs:  # noqa: ARG002
        """No image is read."""
        return {}

    def normalised(self, inputs: ImageInputs) -> ImageInputs:
        """No image is read."""
        return inputs

    def collate(self, inputs: Sequence[ImageInputs], device: Any, dtype: Any) -> dict[str, Any]:  # noqa: ARG002
        """No image is read."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What decides token ids and masks, as JSON values."""
        return {
            "template": "text-only",
            "context": self.context,
            "begin": self._begin,
            "end": self._end,
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
        }


def _without_marks(text: str) -> str:
    return text.replace(IMAGE_MARK, "").strip()


def text_formatter(model: str, context: Context, max_length: int | None = None) -> TextOnly:
    """The formatter of the language model in checkpoint `model`. `max_length`: by default what it was made for.

    Raises StageError where the checkpoint has no tokenizer that works.
    """
    from transformers import AutoTokenizer

    folder = local_folder(model, weights=False)
    limit = getattr(read_config(folder, images=False).get_text_config(), "max_position_embeddings", None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted(folder))
        if not tokenizer.is_fast:
            raise StageError(f"{model}: its tokenizer gives no character offsets; add a tokenizer.json")
        return TextOnly(tokenizer, context=context, max_length=max_length or limit or 4096)
    except StageError:
        raise
    except Exception as error:  # code that comes with a model raises whatever its author wrote
        raise unusable(model, "tokenizer can't be used", error) from error
