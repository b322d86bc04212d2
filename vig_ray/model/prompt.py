"""What an engine gets: token ids, the positions of the answer tokens, and images by name.

A `Prompt` is made by a formatter (`llava.py`, `chat.py`), changed by a reference (`vig_ray.scoring.reference`)
and run by an engine (`vig_ray.scoring.engines`). Shapes: L tokens of the whole prompt, T answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vig_ray.dataset.schema import Turn

Pixels = npt.NDArray[np.uint8]
"""An RGB image, uint8 [height, width, 3]."""

ImageInputs = Mapping[str, npt.NDArray[Any]]
"""One image's arrays for the model, without a batch dimension of their own unless the model's processor gives one."""


class ImageArrays(dict[str, npt.NDArray[Any]]):
    """One image's arrays, with the text that stands for it in a prompt, None where it has none by itself.

    A `PromptImage` is pickled without the text, which its prompt has used by then.
    """

    def __init__(self, arrays: ImageInputs, text: str | None) -> None:
        super().__init__(arrays)
        self.text = text


class PromptError(ValueError):
    """Why a conversation can't be made into a prompt, or a prompt can't be scored: becomes its row's error.

    `kind` is a short name to count by; the text is "kind: cause".
    """

    def __init__(self, kind: str, cause: str) -> None:
        super().__init__(kind, cause)
        self.kind = kind

    def __str__(self) -> str:
        return f"{self.kind}: {self.args[1]}"


class PromptImage:
    """An image on its way into a model: decoded at first use, preprocessed at first use, shared by its `key`.

    Samples that name the same image hold the same object, so each step is done once for all of them. Pickling
    keeps the key and the model inputs only: the pixels at their original size never leave the CPU stage.
    """

    def __init__(self, key: str, load: Callable[[], Pixels], preprocess: Callable[[Pixels], ImageInputs]) -> None:
        self.key = key
        self._load = load
        self._preprocess = preprocess
        self._derived: dict[str, PromptImage] = {}
        self._made_of: Callable[[], ImageInputs] | None = None

    @cached_property
    def pixels(self) -> Pixels:
        """The image at its original size, uint8 [H, W, 3]."""
        return self._load()

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the image at its original size, pixels; known after `release`, too."""
        height, width = self.pixels.shape[:2]
        return height, width

    @cached_property
    def inputs(self) -> ImageInputs:
        """The arrays that the model takes for this image."""
        return self._preprocess(self.pixels) if self._made_of is None else self._made_of()

    def derive(self, name: str, change: Callable[[Pixels], Pixels]) -> PromptImage:
        """The image after `change`, under a key of its own (every cache tells images apart by key)."""
        if name not in self._derived:
            self._derived[name] = PromptImage(f"{self.key}#{name}", lambda: change(self.pixels), self._preprocess)
        return self._derived[name]

    def derive_inputs(self, name: str, change: Callable[[ImageInputs], ImageInputs]) -> PromptImage:
        """The image after a change of the arrays that the model takes for it, under a key of its own; of one without
        its pixels, too."""
        if name not in self._derived:
            image = PromptImage(f"{self.key}#{name}", lambda: self.pixels, self._preprocess)
            image._made_of = lambda: change(self.inputs)
            self._derived[name] = image
        return self._derived[name]

    def release(self) -> None:
        """Forget the pixels, here and in derived images, once `inputs` has been computed."""
        self.__dict__.pop("pixels", None)
        for image in self._derived.values():
            image.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return prepared_image, (self.key, dict(self.inputs))


def prepared_image(key: str, inputs: ImageInputs) -> PromptImage:
    """An image of which nothing but the arrays for the model is left."""

    def gone(*_: Any) -> Any:
        raise RuntimeError(f"the pixels of {key} were left behind when it was made ready for the model")

    image = PromptImage(key, gone, gone)
    image.__dict__["inputs"] = inputs
    return image


class WholeInputs:
    """The arrays of a sample's images as its processor gives them for the sample as a whole; made at first use.

    Pickling makes them, and leaves the pixels behind.
    """

    def __init__(
        self, make: Callable[[Sequence[PromptImage]], ImageInputs] | None, images: Sequence[PromptImage]
    ) -> None:
        self._make, self._images = make, tuple(images)

    def of(self, images: Sequence[PromptImage]) -> WholeInputs:
        """The same sample with other images of the same sizes."""
        return WholeInputs(self._make, images)

    def changed(self, change: Callable[[ImageInputs], ImageInputs]) -> WholeInputs:
        """The same sample with its arrays changed."""
        return WholeInputs(lambda _: change(self.arrays), self._images)

    @cached_property
    def arrays(self) -> ImageInputs:
        """By the names of the model's arguments. Raises PromptError where the images change the token ids."""
        assert self._make is not None, "a pickled one has its arrays already"
        return self._make(self._images)

    def __reduce__(self) -> tuple[Any, ...]:
        return whole_inputs, (dict(self.arrays),)


def whole_inputs(arrays: ImageInputs) -> WholeInputs:
    """A sample of which nothing but the arrays for the model is left."""
    whole = WholeInputs(None, ())
    whole.__dict__["arrays"] = arrays
    return whole


@dataclass(frozen=True, eq=False)
class Prompt:
    """A tokenised conversation with its answer tokens marked.

    `token_ids` int32 [L], each image expanded to as many image tokens as it has features.
    `answer_positions` int32 [T], rising: where in `token_ids` the trained tokens are. All are > 0; none of a question.
    `turns` int32 [T]: which assistant turn of the conversation each answer token is in, from 0.
    `image_mask` bool [L]: the positions that hold image features.
    `image_spans` int32 [images, 2]: each image's first position and the one past its last; between them there may be
    text of the processor's own (row separators), which `image_mask` leaves out.
    `answer_chars` int32 [T, 2]: the characters of its turn's text that each answer token covers, first and past the
    last; the end-of-turn token covers none, at the text's end.
    `hide_images`: run as if the image positions were padding, attention 0, while the text keeps its positions.
    `truncated`: how many answer tokens the length limit cut off.
    `whole`: the images' arrays for this sample as a whole, where its processor makes them of text and images together;
    the images then have none of their own, and `image_spans` is empty.
    `note`: what the model's authors' own training does otherwise with this sample.
    """

    token_ids: npt.NDArray[np.int32]
    answer_positions: npt.NDArray[np.int32]
    turns: npt.NDArray[np.int32]
    image_mask: npt.NDArray[np.bool_]
    image_spans: npt.NDArray[np.int32]
    images: tuple[PromptImage, ...]
    answer_chars: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int32))
    hide_images: bool = False
    truncated: int = 0
    whole: WholeInputs | None = None
    note: str | None = None

    @classmethod
    def marked(
        cls,
        token_ids: npt.NDArray[np.int32],
        turn_of: npt.NDArray[np.int32],
        *,
        image_token_id: int,
        image_spans: Sequence[tuple[int, int]],
        images: Sequence[PromptImage],
        offsets: npt.NDArray[np.int64],
        answers: Mapping[int, tuple[int, int]],
        whole: WholeInputs | None = None,
        note: str | None = None,
    ) -> Prompt:
        """A prompt from its tokens [L], each token's assistant turn [L], -1 where it is no answer, and image spans.

        `offsets` [L, 2]: each token's characters in the whole text. `answers`: where each turn's answer begins in it,
        and its length.
        """
        positions = np.flatnonzero(turn_of >= 0).astype(np.int32)
        turns = turn_of[positions]
        begin, length = np.asarray([answers[turn] for turn in turns.tolist()], dtype=np.int64).reshape(-1, 2).T
        chars = np.clip(offsets[positions] - begin[:, None], 0, length[:, None]).astype(np.int32)
        spans = np.asarray(image_spans, dtype=np.int32).reshape(-1, 2)
        mask = token_ids == image_token_id
        return cls(token_ids, positions, turns, mask, spans, tuple(images), chars, whole=whole, note=note)

    @property
    def answer_ids(self) -> npt.NDArray[np.int32]:
        """The answer tokens' ids, int32 [T]."""
        return self.token_ids[self.answer_positions]

    @property
    def length(self) -> int:
        """Tokens the model computes for this prompt: L, less the image positions where they are hidden."""
        return len(self.token_ids) - (int(self.image_mask.sum()) if self.hide_images else 0)


class Formatter(Protocol):
    """One model family's way from a conversation to a prompt."""

    max_length: int
    tokenizer: Any
    stop_ids: tuple[int, ...]
    """The tokens at which an answer that is written is at its end."""

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean colour that the image processor takes images to have: red, green, blue, each from 0 to 1."""

    def prompt(self, conversation: Sequence[Turn], images: Sequence[PromptImage]) -> Prompt:
        """Tokenise `conversation`; raises PromptError where it can't be."""

    def question(self, conversation: Sequence[Turn], images: Sequence[PromptImage]) -> Prompt:
        """The prompt that ends where the answer to the last turn, a user's, would begin; it has no answer tokens.

        It is what the family's own processor gives to be answered, and what stands before the answer in `prompt` unless
        the template tells the two apart. Raises PromptError where the last turn isn't the user's, or as `prompt` does.
        """

    def preprocess(self, pixels: Pixels) -> ImageInputs:
        """One image, uint8 [H, W, 3], to the arrays that `collate` takes."""

    def normalised(self, inputs: ImageInputs) -> ImageInputs:
        """The same arrays, which `collate` takes as well, with pixels as the model sees them: less their mean, by their
        standard deviation. Raises PromptError where the processor leaves that to the model."""

    def collate(self, inputs: Sequence[ImageInputs], device: Any, dtype: Any) -> dict[str, Any]:
        """Arrays of several images to the keyword arguments of the model's vision pass, on `device`."""

    def identity(self) -> dict[str, Any]:
        """What decides token ids, masks and pixels, as JSON values: hashed into the template fingerprint."""


def answer_token_turns(
    offsets: Sequence[tuple[int, int]] | npt.NDArray[np.int64], spans: Sequence[tuple[int, int, int]]
) -> npt.NDArray[np.int32]:
    """Which answer span each token lies in, int32 [tokens]; -1 outside.

    `offsets` [tokens, 2]: each token's characters (start, end), as a tokenizer gives them. `spans`: (start, end,
    turn), rising. A token belongs to a span when they share a character. So the first word of an answer keeps the
    space that its tokenizer glued to it, each byte of a split character counts, and a token of no characters (a lone
    prefix space) counts where it stands strictly inside.
    """
    turns = np.full(len(offsets), -1, dtype=np.int32)
    if not spans or not len(offsets):
        return turns
    start, end = np.asarray(offsets, dtype=np.int64).T
    for first, last, turn in spans:
        shares = (start < last) & (end > first)
        inside = (start == end) & (start > first) & (start < last)
        turns[shares | inside] = turn
    return turns


def truncate(prompt: Prompt, max_length: int) -> Prompt:
    """The first `max_length` tokens of a prompt; fewer where that would cut an image, which is left out with all that
    follows. Raises PromptError where no answer token would be left."""
    if len(prompt.token_ids) <= max_length:
        return prompt
    if prompt.whole is not None:
        raise PromptError(
            "TooLong", f"{len(prompt.token_ids)} tokens, and this model's samples, which its processor makes as a "
            f"whole, can't be cut at the limit of {max_length}"
        )  # fmt: skip
    whole = prompt.image_spans[:, 1] <= max_length
    end = max_length if whole.all() else min(max_length, int(prompt.image_spans[~whole][0, 0]))
    kept = prompt.answer_positions < end
    if not kept.any():
        raise PromptError("TooLong", f"{len(prompt.token_ids)} tokens, and the limit of {max_length} leaves no answer")
    return Prompt(
        token_ids=prompt.token_ids[:end],
        answer_positions=prompt.answer_positions[kept],
        turns=prompt.turns[kept],
        image_mask=prompt.image_mask[:end],
        image_spans=prompt.image_spans[whole],
        images=tuple(image for image, inside in zip(prompt.images, whole, strict=True) if inside),
        answer_chars=prompt.answer_chars[kept],
        hide_images=prompt.hide_images,
        truncated=int((~kept).sum()),
        note=prompt.note,
    )
