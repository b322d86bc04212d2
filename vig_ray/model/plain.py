"""The prompt of LLaVA's alignment: an image, its caption and a newline, every token of the caption trained.

    BOS <image> A red circle.\\n

Source: the training code of LLaVA-1.5 (Liu et al., arXiv 2310.03744): `preprocess_plain`, `conv_llava_plain` and
`tokenizer_image_token`. The question is dropped. What `<image>` parts is tokenised piece by piece, each piece's own BOS
dropped but for the first, so a caption is tokenised as if it stood alone. Its newline is its end, trained with it.

A sample without an image is a text, such as PRIOR mixes in (section 3.1): BOS and the text, all of it trained, with no
newline, since a text isn't a caption. LLaVA's code stops at such a sample, as it does at everything that is refused
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.model.messages import check_question as check_last_turn
from vig_ray.model.prompt import ImageInputs, Pixels, Prompt, PromptError, PromptImage

END = "\n"
"""`conv_llava_plain.sep`."""


class Captioned(Protocol):
    """What this prompt takes from the model's family: its images, its tokenizer, and what stands before a caption."""

    max_length: int
    tokenizer: Any
    image_token_id: int

    @property
    def mean(self) -> tuple[float, ...]:
        """As a `Formatter`'s, and so the rest."""

    def preprocess(self, pixels: Pixels) -> ImageInputs:
        """One image's arrays."""

    def normalised(self, inputs: ImageInputs) -> ImageInputs:
        """The same, as the model sees them."""

    def collate(self, inputs: Sequence[ImageInputs], device: Any, dtype: Any) -> dict[str, Any]:
        """Several images' arrays as arguments of the model."""

    def identity(self) -> dict[str, Any]:
        """What decides ids and pixels."""

    def before_caption(self, image: PromptImage | None) -> npt.NDArray[np.int32]:
        """The ids that a caption follows, or a text where there is no image, int32 [n]."""

    def encode(self, text: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """A text's ids by itself, int32 [n], and the characters of each, int64 [n, 2]."""


def caption_of(conversation: Sequence[Turn], images: int) -> str:
    """The caption of a sample with an image, or the text of one without.

    Raises PromptError where the conversation is neither: LLaVA's code takes a question with one image and an answer.
    """
    *before, last = conversation or [Turn("user", "")]
    if last.role != "assistant" or len(before) > 1 or any(turn.role != "user" for turn in before):
        roles = ", ".join(turn.role for turn in conversation) or "none"
        raise PromptError("Template", f"the plain prompt takes a question and its answer, a caption; turns: {roles}")
    question, caption = before[0].text if before else "", last.text
    if not caption.strip():
        raise PromptError("EmptyAnswer", "assistant turn 0: no text")
    if IMAGE_MARK in caption:
        raise PromptError("ImageInAnswer", f"assistant turn 0: {IMAGE_MARK} in its text")
    marks = question.count(IMAGE_MARK)
    if images > 1 or marks != images:
        raise PromptError(
            "ImageCount",
            f"{marks} {IMAGE_MARK} in the question, and {images} images; the plain prompt takes one of each, or none",
        )
    if not images and question.strip():
        raise PromptError(
            "Template", "a question without an image, which the plain prompt would drop; it takes texts alone, too"
        )
    return caption


def check_question(conversation: Sequence[Turn], images: int) -> None:
    """Raise PromptError for what has no caption to be written: it takes one question, which is dropped, and its image.

    Without an image there must be no question either: a text is then begun from nothing.
    """
    check_last_turn(conversation)
    if len(conversation) > 1:
        raise PromptError("Template", f"the plain prompt takes one question, not {len(conversation)} turns")
    caption_of([*conversation, Turn("assistant", "a")], images)


def ids_ending_in_newline(tokenizer: Any) -> tuple[int, ...]:
    """The tokens whose text ends in a newline, by a byte's name, in byte-level spelling or as it is: some vocabularies
    have one for a full stop and a newline together."""
    spelled = ("\n", "\u010a", "<0x0A>")
    return tuple(sorted(token for text, token in tokenizer.get_vocab().items() if text.endswith(spelled)))


class PlainFormatter:
    """Plain prompts for a checkpoint; `of`: the formatter of its family."""

    def __init__(self, of: Captioned) -> None:
        self.of = of
        self.tokenizer, self.max_length = of.tokenizer, of.max_length
        self.told = ["an image, its caption and a newline are a sample; questions are dropped"]
        end = of.tokenizer.eos_token_id
        self.stop_ids = (*ids_ending_in_newline(of.tokenizer), *(() if end is None else (int(end),)))

    def prompt(self, conversation: Sequence[Turn], images: Sequence[PromptImage]) -> Prompt:
        """The sample's prompt. Raises PromptError where it is neither a caption with its image nor a text alone."""
        text = caption_of(conversation, len(images))
        before = self.of.before_caption(images[0] if images else None)
        ids, offsets = self.of.encode(text + END if images else text)
        turn_of = np.full(len(before) + len(ids), -1, dtype=np.int32)
        turn_of[max(1, len(before)) :] = 0  # nothing predicts the first token of all
        return self._marked(before, ids, offsets, turn_of, images, {0: (0, len(text))})

    def question(self, conversation: Sequence[Turn], images: Sequence[PromptImage]) -> Prompt:
        """See `Formatter.question`: what a caption follows, BOS and the image, or BOS alone."""
        check_question(conversation, len(images))
        before = self.of.before_caption(images[0] if images else None)
        if not len(before):
            raise PromptError("Template", "without an image and a BOS there is nothing that a text could follow")
        nothing = np.zeros(0, dtype=np.int32), np.zeros((0, 2), dtype=np.int64)
        return self._marked(before, *nothing, np.full(len(before), -1, dtype=np.int32), images, {})

    def _marked(
        self,
        before: npt.NDArray[np.int32],
        ids: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
        turn_of: npt.NDArray[np.int32],
        images: Sequence[PromptImage],
        answers: Mapping[int, tuple[int, int]],
    ) -> Prompt:
        features = np.flatnonzero(before == self.of.image_token_id)
        return Prompt.marked(
            np.concatenate([before, ids]),
            turn_of,
            image_token_id=self.of.image_token_id,
            image_spans=[(int(features[0]), int(features[-1]) + 1)] if images else [],
            images=images,
            offsets=np.concatenate([np.zeros((len(before), 2), dtype=np.int64), offsets]),
            answers=answers,
        )

    @property
    def mean(self) -> tuple[float, ...]:
        """The family's."""
        return self.of.mean

    def preprocess(self, pixels: Pixels) -> ImageInputs:
        """The family's."""
        return self.of.preprocess(pixels)

    def normalised(self, inputs: ImageInputs) -> ImageInputs:
        """The family's."""
        return self.of.normalised(inputs)

    def collate(self, inputs: Sequence[ImageInputs], device: Any, dtype: Any) -> dict[str, Any]:
        """The family's."""
        return self.of.collate(inputs, device, dtype)

    def identity(self) -> dict[str, Any]:
        """This prompt's rules, and what the family's formatter is."""
        return {"template": "plain", "rules": 1, "of": self.of.identity()}
