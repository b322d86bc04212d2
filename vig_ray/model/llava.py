"""LLaVA-1.5's prompt, to the letter: the vicuna_v1 template, `</s>` trained, images padded to a square.

Source: the training code of LLaVA-1.5 (Liu et al., arXiv 2310.03744): `conv_vicuna_v1`, `preprocess_v1`,
`preprocess_multimodal`, `expand2square`. The processor that is published with the transformers checkpoint differs
(it crops the centre, its chat template has neither the system prompt nor `</s>`), so it is not used here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.model.arrays import on_device
from vig_ray.model.messages import check_question
from vig_ray.model.prompt import (
    ImageInputs,
    Pixels,
    Prompt,
    PromptError,
    PromptImage,
    answer_token_turns,
)

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ROLES = {"user": "USER", "assistant": "ASSISTANT"}
UNTRAINED = "LLaVA's code trains nothing of it"
UNUSED_IMAGE = "its image isn't used: no <image> in the text"
_SPACES = (" ", "\u2581")  # SentencePiece's own sign for a space, which it takes for one in texts, too
_Tokens = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""A text's token ids, and the characters of each."""
MAX_LENGTH = 2048
"""LLaVA-1.5's `model_max_length`, image tokens included."""


class Rendered(NamedTuple):
    """A conversation as LLaVA's text.

    `spans`: what is trained (start, end, assistant turn), from the space before an answer to the end of its `</s>`.
    `answers`: where each assistant turn's own text begins, or would, and how long it is.
    `untrained`: LLaVA's code trains nothing of it, unless its limit cuts it within `rounds`, the spans as LLaVA's code
    finds them.
    """

    text: str
    spans: list[tuple[int, int, int]]
    answers: dict[int, tuple[int, int]]
    untrained: bool
    rounds: list[tuple[int, int, int]]


class _Written(NamedTuple):
    """A conversation as LLaVA's text. `ends`: from the space before an answer to the end of its `</s>`, by assistant
    turn; `answers`: as `Rendered` has them; `own_system`: whether a system turn replaces the system prompt."""

    text: str
    ends: dict[int, tuple[int, int]]
    answers: dict[int, tuple[int, int]]
    own_system: bool


def _write(conversation: Sequence[Turn], images: int) -> _Written:
    """See `render`. Raises PromptError where turns don't alternate."""
    turns = list(conversation)
    system, own_system = SYSTEM, False
    if turns and turns[0].role == "system":
        system, own_system = turns.pop(0).text, True
    skipped = 0
    if turns and turns[0].role == "assistant":
        turns.pop(0)
        skipped = 1
    as_many = sum(turn.text.count(IMAGE_MARK) for turn in turns) == images
    text = f"{system} "
    ends: dict[int, tuple[int, int]] = {}
    answers: dict[int, tuple[int, int]] = {}
    for index, turn in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if turn.role != expected:
            raise PromptError(
                "Template", f"turn {index + skipped} is by {turn.role}, but LLaVA's template needs {expected} there"
            )
        message, moved = _images_first(turn.text, as_many=as_many) if images else (turn.text, 0)
        text += f"{ROLES[expected]}:"
        before = len(text)
        if message:
            text += f" {message}" + ("</s>" if expected == "assistant" else " ")
        if expected == "assistant":
            number = index // 2 + skipped
            answers[number] = (before + 1 + (moved or 0), 0 if moved is None else len(turn.text))
            if message:
                ends[number] = (before, len(text))
    return _Written(text, ends, answers, own_system)


def render(conversation: Sequence[Turn], images: int) -> Rendered:
    """The conversation as one vicuna_v1 string: `USER: {q} ASSISTANT: {a}</s>USER: ...`.

    `<image>` moves to the front of its turn, followed by a newline, and the whole turn is stripped; several in one turn
    become one, unless there are as many `images`. An empty turn is its role and a colon alone. A leading assistant turn
    is skipped; a system turn, which LLaVA doesn't know, replaces the system prompt.

    LLaVA's code takes the text apart again at `</s>` and ` ASSISTANT: `, and trains what lies between them; where that
    doesn't add up, it trains nothing. Raises PromptError where turns don't alternate or there is no answer.
    """
    text, ends, answers, untrained = _write(conversation, images)
    if not ends:
        raise PromptError("NoAnswer", "no assistant turn with an answer after the first user turn")
    found = _rounds(text)
    rounds = [(a, b, next((turn for turn, (_, last) in ends.items() if b <= last), max(ends))) for a, b in found]
    if untrained or "<unk>" in text or not text.endswith("</s>") or len(found) < text.count("</s>"):
        # What follows the last answer can't change its log-probs: the model is causal.
        end = max(last for _, last in ends.values())
        spans = [(a, b, turn) for turn, (a, b) in ends.items()]
        return Rendered(text[:end], spans, answers, True, [] if untrained or "<unk>" in text else rounds)
    return Rendered(text, rounds, answers, False, rounds)


def _rounds(text: str) -> list[tuple[int, int]]:
    """What LLaVA's code takes for answers of a text, (start, end), up to the first piece that isn't a round."""
    separator = f" {ROLES['assistant']}: "
    spans, start = [], 0
    for each in text.split("</s>"):
        if each.count(separator) != 1:
            break
        end = start + len(each) + len("</s>")
        spans.append((start + each.index(separator) + len(separator) - 1, min(end, len(text))))
        start = end
    return spans


def _images_first(text: str, *, as_many: bool) -> tuple[str, int | None]:
    """A turn's text with its images in front, and how much further right its own characters are then.

    None where they don't move alike, since a mark stands in their midst.
    """
    count = text.count(IMAGE_MARK)
    if not count:
        return text, 0
    rest = text.replace(IMAGE_MARK, "").strip()
    message = (f"{IMAGE_MARK}\n" * (count if as_many else 1) + rest).strip()
    place = text.find(rest) if rest else -1
    return message, len(message) - len(rest) - place if place >= 0 else None


def pad_to_square(pixels: Pixels, color: tuple[int, int, int]) -> Pixels:
    """Pad the shorter side with `color`, the image centred: uint8 [H, W, 3] to [S, S, 3], S = max(H, W)."""
    height, width, _ = pixels.shape
    if height == width:
        return pixels
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    bottom, right = side - height - top, side - width - left
    return np.asarray(cv2.copyMakeBorder(pixels, top, bottom, left, right, cv2.BORDER_CONSTANT, value=color))


class LlavaFormatter:
    """Prompts and images for a LLaVA-1.5 checkpoint.

    `tokenizer`: the checkpoint's, with offsets. `image_processor`: for its side, mean, std and resampling only.
    `num_image_tokens`: features an image (576 for CLIP-L/336).
    """

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        *,
        image_token_id: int,
        num_image_tokens: int,
        max_length: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.image_token_id = image_token_id
        self.num_image_tokens = num_image_tokens
        self.max_length = max_length or MAX_LENGTH
        crop = image_processor.crop_size
        self.side = int(crop["height"])
        self.mean = tuple(float(x) for x in image_processor.image_mean)
        self.std = tuple(float(x) for x in image_processor.image_std)
        self.resample = Image.Resampling(int(image_processor.resample))
        self.stop_ids: tuple[int, ...] = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        self._swallows = self._swallowed()
        specials = sorted(map(re.escape, tokenizer.all_special_tokens), key=len, reverse=True)
        self._before_space = re.compile(rf"(?:{'|'.join(specials)})(?=[{''.join(_SPACES)}])")
        self._opening: tuple[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]] | None = None

    def encode(self, piece: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """A piece's token ids, int32 [n], and the characters of each, int64 [n, 2]."""
        places = [0] if self._swallows and piece.startswith(_SPACES) else []
        if self._swallows == "always":
            places += [match.end() for match in self._before_space.finditer(piece)]
        given = piece
        for place in reversed(places):
            given = f"{given[:place]} {given[place:]}"
        encoded = self.tokenizer(given, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.asarray(encoded["input_ids"], dtype=np.int32)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        for place in reversed(places):
            offsets = np.where(offsets > place, offsets - 1, offsets)
        return ids, offsets

    def _swallowed(self) -> Literal["first", "always"] | None:
        """Where the tokenizer takes a text's own first space for the one that SentencePiece puts before it.

        SentencePiece, and so LLaVA, has two tokens' worth then: the image's piece of a question that is nothing but
        `<image>` goes on with " ASSISTANT:".
        """
        end = self.tokenizer.eos_token or ""
        texts = ("a", " a", f"{end}a", f"{end} a")
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        if ids[0] != ids[1]:
            return None
        return "always" if ids[2] == ids[3] else "first"

    def _opening_of(self, piece: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """`encode` of what stands before the first image: in most data it is the same in every sample."""
        opening = self._opening  # once: other threads may put another in its place
        if opening is None or opening[0] != piece:
            self._opening = opening = piece, self.encode(piece)
        return opening[1]

    def before_caption(self, image: PromptImage | None) -> npt.NDArray[np.int32]:
        """What a caption follows (`vig_ray.model.plain`): BOS, and of an image its tokens, int32 [n]."""
        bos = self.tokenizer.bos_token_id
        features = [] if image is None else [self.image_token_id] * self.num_image_tokens
        return np.asarray([*([] if bos is None else [bos]), *features], dtype=np.int32)

    def prompt(self, conversation: Sequence[Turn], images: Sequence[PromptImage]) -> Prompt:
        """Tokenise as `tokenizer_image_token` does: each piece between images by itself, one BOS in front.

        Images of a conversation without `<image>` are left out, as LLaVA does.
        """
        rendered = render(conversation, len(images))
        parts, starts, images, unused = self._parts(rendered.text, images)
        spans, untrained = rendered.spans, rendered.untrained
        if untrained and rendered.rounds:
            # Past its limit LLaVA's code doesn't compare what it counted, an image as one token.
            end = rendered.rounds[-1][1]
            counted = len(starts) + sum(
                int((chars[:, 0] + start < end).sum()) for (_, chars), start in zip(parts, starts, strict=True)
            )
            if counted >= self.max_length:
                spans, untrained = rendered.rounds, False
        return self._joined(
            parts,
            starts,
            images,
            spans,
            rendered.answers,
            note=UNTRAINED if untrained else UNUSED_IMAGE if unused else None,
        )

    def question(self, conversation: Sequence[Turn], images: Sequence[PromptImage]) -> Prompt:
        """See `Formatter.question`: the prompt up to "ASSISTANT:", as LLaVA's own code asks (its conversation's
        `get_prompt` with None for a last answer)."""
        check_question(conversation)
        text = _write(conversation, len(images)).text + f"{ROLES['assistant']}:"
        parts, starts, images, unused = self._parts(text, images)
        return self._joined(parts, starts, images, [], {}, note=UNUSED_IMAGE if unused else None)

    def _parts(
        self, text: str, images: Sequence[PromptImage]
    ) -> tuple[list[_Tokens], list[int], Sequence[PromptImage], bool]:
        """The tokens of each piece of a text between its images, the character where each piece begins, the images that
        are used, and whether some are not. Raises PromptError where the marks aren't the images'."""
        pieces = text.split(IMAGE_MARK)
        unused = bool(images) and len(pieces) == 1
        if unused:
            images = ()
        if len(pieces) - 1 != len(images):
            raise PromptError("ImageCount", f"{len(pieces) - 1} <image> in the text, but {len(images)} images")
        parts = [
            self._opening_of(piece) if number == 0 and images else self.encode(piece)
            for number, piece in enumerate(pieces)
        ]
        starts = np.cumsum([0, *(len(piece) + len(IMAGE_MARK) for piece in pieces[:-1])]).tolist()
        return parts, starts, images, unused

    def _joined(
        self,
        parts: Sequence[_Tokens],
        starts: Sequence[int],
        images: Sequence[PromptImage],
        spans: Sequence[tuple[int, int, int]],
        answers: Mapping[int, tuple[int, int]],
        *,
        note: str | None,
    ) -> Prompt:
        """One BOS, then the pieces with an image's features between each two."""
        bos = self.tokenizer.bos_token_id
        ids: list[npt.NDArray[np.int32]] = [np.asarray([] if bos is None else [bos], dtype=np.int32)]
        turns: list[npt.NDArray[np.int32]] = [np.full(len(ids[0]), -1, dtype=np.int32)]
        offsets: list[npt.NDArray[np.int64]] = [np.zeros((len(ids[0]), 2), dtype=np.int64)]
        image_spans = []
        for number, ((tokens, chars), start) in enumerate(zip(parts, starts, strict=True)):
            if number:
                before = sum(map(len, ids))
                image_spans.append((before, before + self.num_image_tokens))
                ids.append(np.full(self.num_image_tokens, self.image_token_id, dtype=np.int32))
                turns.append(np.full(self.num_image_tokens, -1, dtype=np.int32))
                offsets.append(np.zeros((self.num_image_tokens, 2), dtype=np.int64))
            ids.append(tokens)
            offsets.append(chars + start)
            turns.append(answer_token_turns(chars, [(a - start, b - start, turn) for a, b, turn in spans if b > start]))
        return Prompt.marked(
            np.concatenate(ids),
            np.concatenate(turns),
            image_token_id=self.image_token_id,
            image_spans=image_spans,
            images=images,
            offsets=np.concatenate(offsets),
            answers=answers,
            note=note,
        )

    def preprocess(self, pixels: Pixels) -> ImageInputs:
        """Pad with the mean colour, resize: {"pixel_values": uint8 [3, side, side]}, a quarter of the float bytes."""
        r, g, b = (int(x * 255) for x in self.mean)
        square = Image.fromarray(pad_to_square(pixels, (r, g, b)))
        resized = np.asarray(square.resize((self.side, self.side), self.resample), dtype=np.uint8)
        return {"pixel_values": np.ascontiguousarray(resized.transpose(2, 0, 1))}

    def normalised(self, inputs: ImageInputs) -> ImageInputs:
        """{"pixel_values": float32 [3, side, side]}, scaled to [0, 1] and normalised."""
        mean, std = (np.asarray(each, dtype=np.float32)[:, None, None] for each in (self.mean, self.std))
        return {
            name: (array.astype(np.float32) / np.float32(255.0) - mean) / std if array.dtype == np.uint8 else array
            for name, array in inputs.items()
        }

    def collate(self, inputs: Sequence[ImageInputs], device: Any, dtype: Any) -> dict[str, Any]:
        """Scale to [0, 1] and normalise on the device: {"pixel_values": [images, 3, side, side]}.

        Pixels that aren't uint8 are normalised already.
        """
        if any(image["pixel_values"].dtype != np.uint8 for image in inputs):
            ready = np.stack([self.normalised(image)["pixel_values"] for image in inputs])
            return {"pixel_values": on_device(ready, device).to(dtype)}
        pixels = on_device(np.stack([image["pixel_values"] for image in inputs]), device)
        mean, std = (on_device(np.array(each, np.float32)[:, None, None], device) for each in (self.mean, self.std))
        return {"pixel_values": ((pixels.float() / 255.0 - mean) / std).to(dtype)}

    def identity(self) -> dict[str, Any]:
        """Template, tokenizer and image geometry."""
        return {
            "template": "llava_v1",
            "rules": 2,  # of which conversations are trained, and which tokens: raised where they change
            "system": SYSTEM,
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "bos": self.tokenizer.bos_token_id,
            "image_token_id": self.image_token_id,
            "num_image_tokens": self.num_image_tokens,
            "side": self.side,
            "mean": self.mean,
            "std": self.std,
            "resample": int(self.resample),
        }
