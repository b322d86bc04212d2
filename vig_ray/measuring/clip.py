"""Answers and images in CLIP's space (Radford et al., arXiv 2103.00020): whole answers, and their tokens.

CLIPScore (Hessel et al., arXiv 2104.08718) is of whole answers: 2.5 max(cosine, 0).

PRIOR weighs tokens by "cross-attention scores" of a CLIP, which has none. What is nearest to them are CLIP's own logits
of an image with each token of a text: the token's last state, projected like that of a whole text, times the image's
embedding and CLIP's scale. Their softmax over an answer is what an attention of the image to the text would be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from vig_ray.errors import StageError
from vig_ray.model.checkpoint import local_folder, unusable
from vig_ray.model.prompt import Pixels

SCORE_SCALE = 2.5
_AT_ONCE = 64  # images, or texts, of one forward
Floats = npt.NDArray[np.float32]


class Text(NamedTuple):
    """A text's embedding, a unit vector, float32 [P], and how many of its tokens CLIP's limit cut off."""

    embedding: Floats
    cut: int


class Clip:
    """A CLIP checkpoint, a folder or a hub id, on a device, in float32. Raises StageError where it isn't one."""

    def __init__(self, name: str, device: str) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        folder = local_folder(name, weights=True, option="--clip-model")
        try:
            model, report = CLIPModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._images: Any = AutoImageProcessor.from_pretrained(folder)
        except Exception as error:  # whatever a checkpoint of another kind leads to
            raise unusable(name, "--clip-model: can't be loaded as a CLIP", error) from error
        missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        if missing:
            raise StageError(f"--clip-model {name}: weights missing or of another shape, {missing[0]} among them")
        self._model: Any = model.eval().to(device)
        self._device = device
        self._limit = int(self._model.config.text_config.max_position_embeddings)
        self.scale = float(self._model.logit_scale.detach().exp())

    @torch.inference_mode()
    def images(self, pixels: Sequence[Pixels]) -> Floats:
        """The embeddings of N images, each uint8 [H, W, 3]: unit vectors, float32 [N, P]."""
        embeddings = [np.zeros((0, self._model.projection_dim), dtype=np.float32)]
        for first in range(0, len(pixels), _AT_ONCE):
            given = [Image.fromarray(image) for image in pixels[first : first + _AT_ONCE]]
            pixel_values = self._images(images=given, return_tensors="pt")["pixel_values"].to(self._device)
            pooled = self._model.vision_model(pixel_values=pixel_values).pooler_output
            embeddings.append(_unit(self._model.visual_projection(pooled)))
        return np.concatenate(embeddings)

    def texts(self, texts: Sequence[str]) -> list[Text]:
        """Whole texts, each cut at CLIP's limit."""
        whole = [self._tokenizer(text, verbose=False)["input_ids"] for text in texts]
        cut = [self._tokenizer(text, truncation=True, max_length=self._limit)["input_ids"] for text in texts]
        states = self._run(cut, lambda output: output.pooler_output[:, None])
        pairs = zip(states, whole, cut, strict=True)
        return [Text(embedding[0], len(ids) - len(within)) for embedding, ids, within in pairs]

    def tokens(self, texts: Sequence[str]) -> list[tuple[Floats, npt.NDArray[np.int64]]]:
        """The N tokens of each text: unit vectors, float32 [N, P], and the characters of each, int64 [N, 2].

        A text of more tokens than CLIP takes is read in pieces, one after the other.
        """
        begin, end, most = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id, self._limit - 2
        encoded = [
            self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            for text in texts
        ]
        pieces = [
            (number, [begin, *each["input_ids"][first : first + most], end])
            for number, each in enumerate(encoded)
            for first in range(0, len(each["input_ids"]), most)
        ]
        states = self._run([ids for _, ids in pieces], lambda output: output.last_hidden_state)
        vectors: list[list[Floats]] = [[np.zeros((0, self._model.projection_dim), dtype=np.float32)] for _ in texts]
        for (number, ids), of_piece in zip(pieces, states, strict=True):
            vectors[number].append(of_piece[1 : len(ids) - 1])
        chars = [np.asarray(each["offset_mapping"], dtype=np.int64).reshape(-1, 2) for each in encoded]
        return [(np.concatenate(of_text), at) for of_text, at in zip(vectors, chars, strict=True)]

    @torch.inference_mode()
    def _run(self, ids: Sequence[Sequence[int]], states_of: Callable[[Any], torch.Tensor]) -> list[Floats]:
        """Of each text, `states_of` the text model's output [B, ...], projected, unit vectors, float32 [..., P].

        Texts of about a length go together. They are padded on the right with ends of text: none sees what is behind
        it, and the first end is the one that CLIP looks for.
        """
        order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        found: dict[int, Floats] = {}
        for first in range(0, len(order), _AT_ONCE):
            members = order[first : first + _AT_ONCE]
            width = len(ids[members[-1]])
            padding = self._tokenizer.eos_token_id
            padded = [[*ids[number], *[padding] * (width - len(ids[number]))] for number in members]
            output = self._model.text_model(input_ids=torch.tensor(padded, device=self._device))
            found |= zip(members, _unit(self._model.text_projection(states_of(output))), strict=True)
        return [found[number] for number in range(len(ids))]


def _unit(vectors: torch.Tensor) -> Floats:
    return np.asarray(torch.nn.functional.normalize(vectors.float(), dim=-1).cpu())


def clip_score(image: Floats, text: Floats) -> float:
    """2.5 max(cosine, 0) of two unit vectors: equation 1 of CLIPScore, without its prefix "A photo depicts", since
    answers are no captions. Between 0 and 2.5."""
    return SCORE_SCALE * max(float(np.dot(image, text)), 0.0)
