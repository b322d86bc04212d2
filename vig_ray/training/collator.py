"""A collator for those who train elsewhere: rows of `vig export-data --format messages` to a batch for a Trainer.

    Trainer(model, args, train_dataset=rows, data_collator=ActiveTokensCollator(model_folder))

with `remove_unused_columns=False` and `dataset_kwargs={"skip_prepare_dataset": True}` where the trainer asks for them.
Labels are the answer tokens whose weight is not 0; everything else is -100, which no loss counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vig_ray.dataset.images import load_image
from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.errors import StageError
from vig_ray.model.load import load_formatter
from vig_ray.model.prompt import PromptImage
from vig_ray.options import Template

_IGNORED = -100


class ActiveTokensCollator:
    """Rows with `messages`, `images` and `token_weights` (absent or None: 1 each) to padded tensors.

    `model`: the checkpoint that the weights were computed with, or one of the same tokenizer and template; a row whose
    tokens don't fit its weights raises ValueError. Weights other than 0 and 1 raise ValueError too: labels can't carry
    them. Raises StageError for a model whose samples go through its processor as a whole.
    """

    def __init__(self, model: str, *, template: Template = "auto", max_length: int | None = None) -> None:
        self._arguments = (model, template, max_length)
        self._formatter = load_formatter(model, template, max_length)
        if not getattr(self._formatter, "by_parts", True):
            raise StageError(f"{model}: its processor makes each sample as a whole, which this collator can't do yet")
        self._processor = getattr(self._formatter, "processor", None)
        self._token_types = _token_types_name(self._processor)
        tokenizer = self._formatter.tokenizer
        self._padding = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def __reduce__(self) -> tuple[Any, ...]:
        return _collator, self._arguments

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """input_ids, attention_mask and labels, int64 [B, L], padded on the right, and whatever else the checkpoint's
        processor gives: the image arguments, and which tokens are an image's (`mm_token_type_ids`, `token_type_ids`),
        int64 [B, L]."""
        import torch

        prompts, images = [], []
        for row in rows:
            row_images = [self._image(uri) for uri in row.get("images") or ()]
            prompt = self._formatter.prompt(_turns(row["messages"]), row_images)
            weights = row.get("token_weights")
            weights = np.ones(len(prompt.answer_positions)) if weights is None else np.asarray(weights)
            if len(weights) > len(prompt.answer_positions):
                raise ValueError(f"{row.get('sample_key')}: {len(weights)} weights for other tokens than this model's")
            if not np.isin(weights, (0, 1)).all():
                raise ValueError(f"{row.get('sample_key')}: weights other than 0 and 1 need a weighted loss")
            prompts.append((prompt, weights))
            images += row_images
        longest = max(len(prompt.token_ids) for prompt, _ in prompts)
        ids_BL = np.full((len(prompts), longest), self._padding, dtype=np.int64)
        mask_BL = np.zeros_like(ids_BL)
        labels_BL = np.full_like(ids_BL, _IGNORED)
        for index, (prompt, weights) in enumerate(prompts):
            ids_BL[index, : len(prompt.token_ids)] = prompt.token_ids
            mask_BL[index, : len(prompt.token_ids)] = 1
            active = prompt.answer_positions[: len(weights)][weights > 0]
            labels_BL[index, active] = prompt.token_ids[active]
        batch = {"input_ids": ids_BL, "attention_mask": mask_BL, "labels": labels_BL}
        if self._token_types and self._processor is not None:
            types = self._processor.create_mm_token_type_ids(ids_BL.tolist())
            batch[self._token_types] = np.asarray(types, dtype=np.int64)
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in batch.items()}
        if images:
            tensors |= self._formatter.collate([image.inputs for image in images], "cpu", torch.float32)
        return tensors

    def _image(self, image: str) -> PromptImage:
        return PromptImage(image, lambda: load_image({"uri": image}), self._formatter.preprocess)


def _collator(model: str, template: Template, max_length: int | None) -> ActiveTokensCollator:
    return ActiveTokensCollator(model, template=template, max_length=max_length)


def _token_types_name(processor: Any) -> str | None:
    """What the checkpoint's processor calls the kind of each token; None where it tells none. Models that are not told
    take an image for text, silently: Qwen2.5-VL loses its positions in two dimensions, Gemma 3 makes images causal."""
    if processor is None:  # LLaVA-1.5: all tokens alike
        return None
    given = processor(text=["?"])
    return next((name for name in ("mm_token_type_ids", "token_type_ids") if name in given), None)


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Messages whose content is text or a list of text and image parts."""
    turns = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(IMAGE_MARK if part["type"] == "image" else part["text"] for part in content)
        turns.append(Turn(message["role"], content))
    return turns
