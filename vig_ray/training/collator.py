"""A collator for those who train elsewhere: rows of `vig export-data --format messages` to a batch for a Trainer.

    Trainer(model, args, train_dataset=rows, data_collator=ActiveTokensCollator(model_folder))

with `remove_unused_columns=False`. Labels are the answer tokens whose weight is not 0; everything else is -100, which
no loss counts. With `token_weights=True` a batch has the weights themselves, for the trainers of
`vig_ray.integrations`, whose loss takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from vig_ray.dataset.images import load_image, pixels_of
from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.model.chat import ChatFormatter
from vig_ray.model.load import Prompts, load_formatter
from vig_ray.model.prompt import Pixels, Prompt, PromptImage
from vig_ray.options import Template

_IGNORED = -100


class ActiveTokensCollator:
    """Rows with `messages`, `images`, `token_ids` and `token_weights` (the last two absent or None: all answer tokens,
    1 each) to padded tensors. An image is a path or URI, what `datasets.Image` makes of one, or a Pillow image.

    `model`: the checkpoint that the weights were computed with, or one of the same tokenizer and template; a row whose
    tokens aren't those that its weights were made for raises ValueError. The options are `vig score`'s: the same
    `end_of_turn`, or the weights are another token's.

    `token_weights`: put the weights into the batch, for a trainer of `vig_ray.integrations`. Without it, weights other
    than 0 and 1 raise ValueError: labels can't carry them.

    A batch is what the checkpoint's own processor makes of its conversations, and labels (LLaVA-1.5: what LLaVA's code
    makes of them).
    """

    def __init__(
        self,
        model: str,
        *,
        token_weights: bool = False,
        template: Template = "auto",
        max_length: int | None = None,
        end_of_turn: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._token_weights = token_weights
        self._prompts = Prompts(model, template, max_length, end_of_turn, trust_remote_code)
        self._formatter = load_formatter(*self._prompts)
        tokenizer = self._formatter.tokenizer
        self._padding = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def __reduce__(self) -> tuple[Any, ...]:
        return _collator, (self._token_weights, *self._prompts)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """input_ids, attention_mask and labels, int64 [B, L], padded on the right, and whatever else the checkpoint's
        processor gives; with `token_weights` these, float32 [B, L], 0 wherever the label is -100.

        Raises ValueError for weights that don't fit, and for samples that the processor doesn't take in one batch.
        """
        conversations = [_turns(row["messages"]) for row in rows]
        images = [[self._image(image) for image in row.get("images") or ()] for row in rows]
        prompts = [self._formatter.prompt(*each) for each in zip(conversations, images, strict=True)]
        chosen = [_weights(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
        if not self._token_weights:
            _refuse_real(rows, chosen)
        if isinstance(self._formatter, ChatFormatter):
            batch = self._formatter.batch(conversations, images)
        else:
            batch = self._padded(prompts)
        batch["labels"], weights_BL = _placed(batch, prompts, chosen)
        if self._token_weights:
            batch["token_weights"] = weights_BL
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

    def _image(self, image: Any) -> PromptImage:
        return PromptImage(image if isinstance(image, str) else "", lambda: _pixels(image), self._formatter.preprocess)


def _collator(token_weights: bool, model: str, *options: Any) -> ActiveTokensCollator:
    return ActiveTokensCollator(token_weights=token_weights, **Prompts(model, *options)._asdict())


def _pixels(image: Any) -> Pixels:
    if isinstance(image, PIL.Image.Image):
        return pixels_of(image)
    if isinstance(image, str):
        return load_image({"uri": image})
    data = image.get("bytes")  # datasets.Image(decode=False), which may tell a name beside the bytes
    return load_image({"bytes": data} if data is not None else {"uri": image.get("path")})


def _weights(row: Mapping[str, Any], prompt: Prompt) -> npt.NDArray[np.float32]:
    """A row's weights of its first answer tokens. Raises ValueError where they aren't this prompt's."""
    key, ids, weights = row.get("sample_key"), row.get("token_ids"), row.get("token_weights")
    answer_ids = prompt.answer_ids
    chosen = np.ones(len(answer_ids), np.float32) if weights is None else np.asarray(weights, dtype=np.float32)
    if ids is not None and answer_ids[: len(ids)].tolist() != list(ids):
        raise ValueError(f"{key}: weights for other tokens than this model's, or with another template or end of turn")
    if len(chosen) > len(answer_ids) or (ids is not None and weights is not None and len(ids) != len(chosen)):
        raise ValueError(f"{key}: {len(chosen)} weights for other tokens than this model's {len(answer_ids)}")
    if not (np.isfinite(chosen) & (chosen >= 0)).all():
        raise ValueError(f"{key}: a weight is negative or no number")
    return chosen


def _refuse_real(rows: Sequence[Mapping[str, Any]], chosen: Sequence[npt.NDArray[np.float32]]) -> None:
    for row, weights in zip(rows, chosen, strict=True):
        if not np.isin(weights, (0, 1)).all():
            raise ValueError(
                f"{row.get('sample_key')}: weights other than 0 and 1 need a weighted loss: token_weights=True, and a "
                "trainer of vig_ray.integrations"
            )


def _placed(
    batch: Mapping[str, Any], prompts: Sequence[Prompt], chosen: Sequence[npt.NDArray[np.float32]]
) -> tuple[Any, Any]:
    """Labels, int64 [B, L], and weights, float32 [B, L]. Raises ValueError where the batch has other tokens than the
    prompts."""
    import torch

    labels_BL = torch.full_like(batch["input_ids"], _IGNORED)
    weights_BL = torch.zeros(labels_BL.shape)
    for index, (prompt, weights) in enumerate(zip(prompts, chosen, strict=True)):
        length = len(prompt.token_ids)
        given = batch["input_ids"][index, :length].numpy()
        if int(batch["attention_mask"][index].sum()) != length or not np.array_equal(given, prompt.token_ids):
            raise ValueError("the processor gives other tokens for samples together than for each by itself")
        active = weights > 0
        positions = prompt.answer_positions[: len(weights)][active]
        labels_BL[index, positions] = torch.from_numpy(prompt.token_ids[positions].astype(np.int64))
        weights_BL[index, positions] = torch.from_numpy(weights[active])
    return labels_BL, weights_BL


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Messages whose content is text or a list of text and image parts."""
    turns = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(IMAGE_MARK if part["type"] == "image" else part["text"] for part in content)
        turns.append(Turn(message["role"], content))
    return turns
