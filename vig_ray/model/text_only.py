"""Samples as a text-only language model sees them: the answers alone, or the conversation without its images.

PRIOR's reference model is trained on such documents (its equation 2) and gives the log-probs of its weights
(equation 3). A document is a start token, then, answer after answer, the answer's text and an end token:

    answer         <s> answer </s>                               of a caption; each further answer follows the last
    conversation   <s> question \\n answer </s> question \\n answer </s>

The start is the tokenizer's BOS, or its EOS where it has none, as Qwen's base models were trained between documents.
Each piece is tokenised by itself, so that an answer has the same tokens whatever stands before it, and no chat template
is used: the models that documents are for are mostly without one. Only answers and their ends are answer tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import local_folder, read_text_config, trust, trusted, unusable
from vig_ray.model.messages import check_question
from vig_ray.model.prompt import ImageInputs, Pixels, Prompt, PromptError, PromptImage
from vig_ray.model.sentencepiece import agree

Context = Literal["answer", "conversation"]
"""What a text-only model sees before an answer."""
_LONGEST = 4096  # of a model that names no limit
_MOST = 1 << 24  # a tokenizer without a limit names a far greater one


class TextOnly:
    """Prompts without images, made of conversations by a `tokenizer` with offsets. See the module.

    It is a `Formatter`; images that it is given are left out, and so are their marks. Raises StageError where the
    tokenizer has no token for the end of a text.
    """

    by_parts = True
    mean = (0.5, 0.5, 0.5)

    def __init__(self, tokenizer: Any, *, context: Context = "answer", max_length: int) -> None:
        self.tokenizer, self.context, self.max_length = tokenizer, context, max_length
        if tokenizer.eos_token_id is None:
            raise StageError("the tokenizer of the language model names no end of text (eos_token)")
        self.end = int(tokenizer.eos_token_id)
        self.stop_ids: tuple[int, ...] = (self.end,)
        self.start = self.end if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)

    def prompt(self, conversation: Sequence[Turn], images: Sequence[PromptImage] = ()) -> Prompt:  # noqa: ARG002
        """The document of a conversation. An assistant turn without text has no tokens, and no end either.

        `answer_chars` are the characters of the turn's text; an end token covers none, at the text's end. Raises
        PromptError where there is no answer, or an image mark in one.
        """
        document = self._document(conversation)
        if not len(document.answer_positions):
            raise PromptError("NoAnswer", "no assistant turn with an answer")
        return document

    def question(self, conversation: Sequence[Turn], images: Sequence[PromptImage] = ()) -> Prompt:  # noqa: ARG002
        """See `Formatter.question`: the document up to the next answer, which with the context "answer" hasn't got the
        question."""
        check_question(conversation)
        document = self._document(conversation)
        nothing = np.zeros(0, dtype=np.int32)
        return replace(document, answer_positions=nothing, turns=nothing, answer_chars=np.zeros((0, 2), dtype=np.int32))

    def _document(self, conversation: Sequence[Turn]) -> Prompt:
        """The document of a conversation, which may be without an answer."""
        pieces = [(np.asarray([self.start], dtype=np.int32), np.zeros((1, 2), dtype=np.int64), -1)]
        number = -1
        for turn in conversation:
            if turn.role == "assistant":
                number += 1
                pieces += self._answer(turn.text, number)
            elif self.context == "conversation":
                text = turn.text.replace(IMAGE_MARK, "").strip()
                if text:
                    pieces.append((*self._encoded(f"{text}\n"), -1))
        ids = np.concatenate([ids for ids, _, _ in pieces])
        chars = np.concatenate([chars for _, chars, _ in pieces])
        turns = np.concatenate([np.full(len(ids), turn, dtype=np.int32) for ids, _, turn in pieces])
        positions = np.flatnonzero(turns >= 0).astype(np.int32)
        return Prompt(
            token_ids=ids,
            answer_positions=positions,
            turns=turns[positions],
            image_mask=np.zeros(len(ids), dtype=np.bool_),
            image_spans=np.zeros((0, 2), dtype=np.int32),
            images=(),
            answer_chars=chars[positions].astype(np.int32),
        )

    def _answer(self, text: str, number: int) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], int]]:
        """An answer and its end, each as its token ids, their characters and its turn."""
        if not text:
            return []
        if IMAGE_MARK in text:
            raise PromptError("ImageInAnswer", f"assistant turn {number}: {IMAGE_MARK} in its text")
        end = np.asarray([self.end], dtype=np.int32), np.full((1, 2), len(text), dtype=np.int64), number
        return [(*self._encoded(text), number), end]

    def _encoded(self, text: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Token ids, int32 [n], and the characters of each, int64 [n, 2]."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.asarray(encoded["input_ids"], dtype=np.int32)
        return ids, np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)

    def preprocess(self, pixels: Pixels) -> ImageInputs:  # noqa: ARG002
        """Nothing: images are left out."""
        return {}

    def normalised(self, inputs: ImageInputs) -> ImageInputs:
        """As they are."""
        return inputs

    def collate(self, inputs: Sequence[ImageInputs], device: Any, dtype: Any) -> dict[str, Any]:  # noqa: ARG002
        """Nothing: images are left out."""
        return {}

    def identity(self) -> dict[str, Any]:
        """The tokenizer and what a document is made of."""
        return {
            "template": "text_only",
            "context": self.context,
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "start": self.start,
            "end": self.end,
        }


def text_formatter(
    model: str,
    context: Context = "answer",
    max_length: int | None = None,
    *,
    option: str = "--reference-model",
    trust_remote_code: bool = False,
) -> TextOnly:
    """The formatter of a language model, a checkpoint's folder or a hub id, for documents without images.

    `max_length`: tokens, by default as many as the model was made for. `option`: the one that named the model.
    Raises StageError where it isn't a language model or has no tokenizer that works.
    """
    from transformers import AutoTokenizer

    if trust_remote_code:
        trust(model)
    folder = local_folder(model, weights=False, option=option)
    config = read_text_config(folder, option=option)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted(folder))
        if not tokenizer.is_fast:
            raise StageError(f"{model}: its tokenizer gives no character offsets; add a tokenizer.json")
        if not os.path.isfile(os.path.join(folder, "tokenizer.json")):
            agree(tokenizer, folder)
    except StageError:
        raise
    except Exception as error:  # code that comes with a model raises whatever its author wrote
        raise unusable(model, "tokenizer can't be loaded", error) from error
    own = min(getattr(config, "max_position_embeddings", None) or _LONGEST, tokenizer.model_max_length)
    longest = max_length or (own if own < _MOST else _LONGEST)
    try:
        return TextOnly(tokenizer, context=context, max_length=longest)
    except StageError as error:
        raise StageError(f"{model}: {error}") from error
