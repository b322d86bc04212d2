"""LLaVA-1.5's prompt, to the letter: the vicuna_v1 template, `</s>` trained, images padded to a square.

Source: the training code of LLaVA-1.5 (Liu et al., arXiv 2310.03744): `conv_vicuna_v1`, `preprocess_v1`,
`preprocess_multimodal`, `expand2square`. The processor that is published with the transformers checkpoint differs
(it crops the centre, its chat template has neither the system prompt nor `</s>`), so it is not used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from vig_ray.dataset.schema import IMAGE_MARK, Turn
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
MAX_LENGTH = 2048
"""LLaVA-1.5's `model_max_length`, image tokens included."""


def render(conversation: Sequence[Turn]) -> tuple[str, list[tuple[int, int, int]]]:
    """The conversation as one vicuna_v1 string, and its trained spans (start, end, assistant turn).

    `USER: {q} ASSISTANT: {a}</s>USER: ...`; a span covers an answer and the `</s>` after it. `<image>` moves to the
    front of its turn, followed by a newline. A leading assistant turn is skipped, as in LLaVA; a system turn
    replaces the system prompt. Raises PromptError where turns don't alternate or none is left to train on.
    """
    turns = list(conversation)
    system = SYSTEM
    if turns and turns[0].role == "system":
        system = turns.pop(0).text
    skipped = 0
    if turns and turns[0].role == "assistant":
        turns.pop(0)
        skipped = 1
    text, spans = f"{system} ", []
    for index, turn in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if turn.role != expected:
            raise PromptError(
                "Template", f"turn {index + skipped} is by {turn.role}, but LLaVA's template needs {expected} there"
            )
        if expected == "user":
            text += f"{ROLES['user']}: {_images_first(turn.text)} "
            continue
        text += f"{ROLES['assistant']}: "
        start = len(text)
        text += f"{turn.text}</s>"
        spans.append((start, len(text), index // 2 + skipped))
    if not spans:
        raise PromptError("NoAnswer", "no assistant turn after the first user turn")
    # What follows the last answer can't change its log-probs: the model is causal.
    return text[: spans[-1][1]], spans


def _images_first(text: str) -> str:
    count = text.count(IMAGE_MARK)
    if not count:
        return text
    return f"{IMAGE_MARK}\n" * count + text.replace(IMAGE_MARK, "").strip()


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
        self._opening: tuple[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]] | None = None

    def _encode(self, piece: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """A piece's token ids, int32 [n], and the characters of each, int64 [n, 2]."""
        encoded = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.asarray(encoded["input_ids"], dtype=np.int32)
        return ids, np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)

    def _opening_of(self, piece: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """`_encode` of what stands before the first image: in most data it is the same in every sample."""
        if self._opening is None or self._opening[0] != piece:
            self._opening = piece, self._encode(piece)
        return self._opening[1]

    def prompt(self, conversation: Sequence[Turn], images: Sequence[PromptImage]) -> Prompt:
        """Tokenise as `tokenizer_image_token` does: each piece between images by itself, one BOS in front."""
        text, spans = render(conversation)
        pieces = text.split(IMAGE_MARK)
        if len(pieces) - 1 != len(images):
            raise PromptError("ImageCount", f"{len(pieces) - 1} <image> in the text, but {len(images)} images")
        bos = self.tokenizer.bos_token_id
        ids: list[npt.NDArray[np.int32]] = [np.asarray([] if bos is None else [bos], dtype=np.int32)]
        turns: list[npt.NDArray[np.int32]] = [np.full(len(ids[0]), -1, dtype=np.int32)]
        offsets: list[npt.NDArray[np.int64]] = [np.zeros((len(ids[0]), 2), dtype=np.int64)]
        image_spans = []
        start = 0
        for index, piece in enumerate(pieces):
            if index:
                before = sum(map(len, ids))
                image_spans.append((before, before + self.num_image_tokens))
                ids.append(np.full(self.num_image_tokens, self.image_token_id, dtype=np.int32))
                turns.append(np.full(self.num_image_tokens, -1, dtype=np.int32))
                offsets.append(np.zeros((self.num_image_tokens, 2), dtype=np.int64))
            tokens, chars = self._opening_of(piece) if index == 0 and images else self._encode(piece)
            ids.append(tokens)
            offsets.append(chars + start)
            here = [(max(a - start, 0), b - start, turn) for a, b, turn in spans if b > start]
            turns.append(answer_token_turns(chars, here))
            start += len(piece) + len(IMAGE_MARK)
        token_ids, turn_of = np.concatenate(ids), np.concatenate(turns)
        return Prompt.marked(
            token_ids,
            turn_of,
            image_token_id=self.image_token_id,
            image_spans=image_spans,
            images=images,
            offsets=np.concatenate(offsets),
            answers={turn: (a, b - a - len("</s>")) for a, b, turn in spans},
        )

    def preprocess(self, pixels: Pixels) -> ImageInputs:
        """Pad with the mean colour, resize: {"pixel_values": uint8 [3, side, side]}, a quarter of the float bytes."""
        r, g, b = (int(x * 255) for x in self.mean)
        square = Image.fromarray(pad_to_square(pixels, (r, g, b)))
        resized = np.asarray(square.resize((self.side, self.side), self.resample), dtype=np.uint8)
        return {"pixel_values": np.ascontiguousarray(resized.transpose(2, 0, 1))}

    def collate(self, inputs: Sequence[ImageInputs], device: Any, dtype: Any) -> dict[str, Any]:
        """Scale to [0, 1] and normalise on the device: {"pixel_values": [images, 3, side, side]}."""
        import torch

        pixels = torch.from_numpy(np.stack([image["pixel_values"] for image in inputs])).to(device)
        mean = torch.tensor(self.mean, device=device).view(3, 1, 1)
        std = torch.tensor(self.std, device=device).view(3, 1, 1)
        return {"pixel_values": ((pixels.float() / 255.0 - mean) / std).to(dtype)}

    def identity(self) -> dict[str, Any]:
        """Template, tokenizer and image geometry."""
        return {
            "template": "llava_v1",
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
