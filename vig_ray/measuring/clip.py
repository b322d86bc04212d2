"""Answers and images in CLIP's space (Radford et al., arXiv 2103.00020): whole answers, and their tokens.

CLIPScore (Hessel et al., arXiv 2104.08718) is of whole answers: 2.5 max(cosine, 0).

PRIOR weighs tokens by "cross-attention scores" of a CLIP, which has none. What is nearest to them are CLIP's own logits
of an image with each token of a text: the token's last state, projected like that of a whole text, times the image's
embedding and CLIP's scale. Their softmax over an answer is what an attention of the image to the text would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from vig_ray.errors import StageError
from vig_ray.model.checkpoint import local_folder, unusable
from vig_ray.model.prompt import Pixels

SCORE_SCALE = 2.5
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
    def image(self, pixels: Pixels) -> Floats:
        """The embedding of an image, uint8 [H, W, 3], a unit vector, float32 [P]."""
        given = self._images(images=Image.fromarray(pixels), return_tensors="pt")
        pooled = self._model.vision_model(pixel_values=given["pixel_values"].to(self._device)).pooler_output
        embedding: Floats = _unit(self._model.visual_projection(pooled))[0]
        return embedding

    @torch.inference_mode()
    def text(self, text: str) -> Text:
        """A whole text, cut at CLIP's limit."""
        whole = len(self._tokenizer(text)["input_ids"])
        ids = self._tokenizer(text, truncation=True, max_length=self._limit)["input_ids"]
        pooled = self._model.text_model(input_ids=self._put(ids)).pooler_output
        return Text(_unit(self._model.text_projection(pooled))[0], whole - len(ids))

    @torch.inference_mode()
    def tokens(self, text: str) -> tuple[Floats, npt.NDArray[np.int64]]:
        """The N tokens of a text: unit vectors, float32 [N, P], and the characters of each, int64 [N, 2].

        A text of more tokens than CLIP takes is read in pieces, one after the other.
        """
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, chars = encoded["input_ids"], np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        begin, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        most = self._limit - 2
        pieces = [np.zeros((0, self._model.projection_dim), dtype=np.float32)]
        for first in range(0, len(ids), most):
            piece = self._put([begin, *ids[first : first + most], end])
            states = self._model.text_model(input_ids=piece).last_hidden_state[0, 1:-1]
            pieces.append(_unit(self._model.text_projection(states)))
        return np.concatenate(pieces), chars

    def _put(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(ids)], device=self._device)


def _unit(vectors: torch.Tensor) -> Floats:
    return np.asarray(torch.nn.functional.normalize(vectors.float(), dim=-1).cpu())


def clip_score(image: Floats, text: Floats) -> float:
    """2.5 max(cosine, 0) of two unit vectors: equation 1 of CLIPScore, without its prefix "A photo depicts", since
    answers are no captions. Between 0 and 2.5."""
    return SCORE_SCALE * max(float(np.dot(image, text)), 0.0)
