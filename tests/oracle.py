"""The plain way to score one sample, written without vig_ray's engine: one forward, full logits, log-softmax.

Images go through the checkpoint's own transformers image processor, the blur is spelled out again from its definition.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from PIL import Image


def plain_logprobs(model, image_processor, prompt, pictures, *, blind=False):
    """Log-probs of the answer tokens of `prompt`, its images given as PIL pictures; [T], float32, or float64 of a model
    in float64."""
    ids = torch.tensor(prompt.token_ids.tolist())[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    is_image = ids == model.config.image_token_id
    if pictures:
        inputs.update(image_processor(images=pictures, return_tensors="pt"))
    if model.config.model_type.startswith("qwen"):
        inputs["mm_token_type_ids"] = is_image.int()
    if model.config.model_type.startswith("gemma"):
        inputs["token_type_ids"] = is_image.int()
        inputs.pop("num_crops", None)
    if blind:
        if model.config.model_type.startswith("qwen"):
            inputs["position_ids"] = model.model.get_rope_index(
                ids, mm_token_type_ids=is_image.int(), image_grid_thw=inputs["image_grid_thw"]
            )[0]
        else:
            inputs["position_ids"] = torch.arange(ids.shape[1])[None]
        inputs["attention_mask"] = (~is_image).long()
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[0]
    everything = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    places = prompt.answer_positions
    return everything[places - 1, ids[0, places]].numpy()


def blurred(picture: Image.Image) -> Image.Image:
    """The blur of arXiv 2503.13891 as VIG uses it, sizes written out one by one."""
    array = np.array(picture.convert("RGB"))
    width = array.shape[1]
    if width < 500:
        k = 101
    elif width < 800:
        k = 201
    elif width < 2000:
        k = 301
    else:
        k = 501
    return Image.fromarray(cv2.GaussianBlur(array, (k, k), k - 1, None, k - 1))
