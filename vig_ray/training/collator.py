"""A collator for those who train elsewhere: rows of `vig export-data --format messages` to a batch for a Trainer.

    Trainer(model, args, train_dataset=rows, data_collator=ActiveTokensCollator(model_folder))

with `remove_unused_columns=False` and `dataset_kwargs={"skip_prepare_dataset": True}` where the trainer asks for them.
Labels are the answer tokens whose weight is not 0; everything else is -100, which no loss counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vig_ray.dataset.images import load_image
from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.model.chat import ChatFormatter
from vig_ray.model.load import Prompts, load_formatter
from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.options import Template

_IGNORED = -100


class ActiveTokensCollator:
    """Rows with `messages`, `images` and `token_weights` (absent or None: 1 each) to padded tensors.

    `model`: the checkpoint that the weights were computed with, or one of the same tokenizer and template; a row whose
    tokens don't fit its weights raises ValueError. Weights other than 0 and 1 raise ValueError too: labels can't carry
    them. The options are `vig score`'s: the same `end_of_turn`, or the weights are another token's.

    A batch is what the checkpoint's own processor makes of its conversations, and labels (LLaVA-1.5: what LLaVA's code
    makes of them).
    """

    def __init__(
        self,
        model: str,
        *,
        template: Template = "auto",
        max_length: int | None = None,
        end_of_turn: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._prompts = Prompts(model, template, max_length, end_of_turn, trust_remote_code)
        self._formatter = load_formatter(*self._prompts)
        tokenizer = self._formatter.tokenizer
        self._padding = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def __reduce__(self) -> tuple[Any, ...]:
        return _collator, tuple(self._prompts)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """input_ids, attention_mask and labels, int64 [B, L], padded on the right, and whatever else the checkpoint's
        processor gives. Raises ValueError for weights that don't fit, and for samples that the processor doesn't take
        in one batch."""
        conversations = [_turns(row["messages"]) for row in rows]
        images = [[self._image(uri) for uri in row.get("images") or ()] for row in rows]
        prompts = [self._formatter.prompt(*each) for each in zip(conversations, images, strict=True)]
        chosen = [_weights(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
        if isinstance(self._formatter, ChatFormatter):
            batch = self._formatter.batch(conversations, images)
        else:
            batch = self._padded(prompts)
        batch["labels"] = _labels(batch, prompts, chosen)
        return batch

    def _padded(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        import torch

        longest = max(len(prompt.token_ids) for prompt in prompts)
        ids_BL = torch.full((len(prompts), longest), self._padding, dtype=torch.int64)
        mask_BL = torch.zeros_like(ids_BL)
        for index, prompt in enumerate(prompts):
            ids_BL[index, : len(prompt.token_ids)] = torch.from_numpy(prompt.token_ids)
            mask_BL[index, : len(prompt.token_ids)] = 1
        batch = {"input_ids": ids_BL, "attention_mask": mask_BL}
        images = [image.inputs for prompt in prompts for image in prompt.images]
        return batch | (self._formatter.collate(images, "cpu", torch.float32) if images else {})

    def _image(self, image: str) -> PromptImage:
        return PromptImage(image, lambda: load_image({"uri": image}), self._formatter.preprocess)


def _collator(model: str, *options: Any) -> ActiveTokensCollator:
    return ActiveTokensCollator(**Prompts(model, *options)._asdict())


def _weights(row: Mapping[str, Any], prompt: Prompt) -> npt.NDArray[Any]:
    """A row's weights of its first answer tokens. Raises ValueError where they aren't this prompt's."""
    weights = row.get("token_weights")
    weights = np.ones(len(prompt.answer_positions)) if weights is None else np.asarray(weights)
    if len(weights) > len(prompt.answer_positions):
        raise ValueError(f"{row.get('sample_key')}: {len(weights)} weights for other tokens than this model's")
    if not np.isin(weights, (0, 1)).all():
        raise ValueError(f"{row.get('sample_key')}: weights other than 0 and 1 need a weighted loss")
    return weights


def _labels(batch: Mapping[str, Any], prompts: Sequence[Prompt], chosen: Sequence[npt.NDArray[Any]]) -> Any:
    """int64 [B, L]. Raises ValueError where the batch has other tokens than the prompts."""
    import torch

    labels_BL = torch.full_like(batch["input_ids"], _IGNORED)
    for index, (prompt, weights) in enumerate(zip(prompts, chosen, strict=True)):
        length = len(prompt.token_ids)
        given = batch["input_ids"][index, :length].numpy()
        if int(batch["attention_mask"][index].sum()) != length or not np.array_equal(given, prompt.token_ids):
            raise ValueError("the processor gives other tokens for samples together than for each by itself")
        active = prompt.answer_positions[: len(weights)][weights > 0]
        labels_BL[index, active] = torch.from_numpy(prompt.token_ids[active].astype(np.int64))
    return labels_BL


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Messages whose content is text or a list of text and image parts."""
    turns = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(IMAGE_MARK if part["type"] == "image" else part["text"] for part in content)
        turns.append(Turn(message["role"], content))
    return turns
