"""The parts of a demo model before they know each other: a tower that sees, and a language model that is new.

`vig assemble` puts them together with a projector. The tower is the packaged model's; the language model is like that
model's, with random weights, and learns to read by `vig train-text --context conversation`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoTokenizer, LlamaForCausalLM, LlavaForConditionalGeneration, LlavaImageProcessorPil

from vig_ray.demo import CHECKPOINT

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ ' ' + message.content }}"
    "{% if message.role == 'user' %}{{ '\n' }}{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""A line for each question, its answer and an end: token for token a document of `--context conversation`."""


def write_tower(folder: str, checkpoint: str = CHECKPOINT) -> None:
    """The vision tower of a packaged model, as CLIP's are published, with its image processor."""
    model: Any = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    model.model.vision_tower.save_pretrained(folder)
    LlavaImageProcessorPil.from_pretrained(checkpoint).save_pretrained(folder)


def write_language_model(folder: str, seed: int = 0, checkpoint: str = CHECKPOINT) -> None:
    """A Llama of a packaged model's shape with random weights, and its tokenizer with `TEMPLATE`."""
    packaged: Any = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(copy.deepcopy(packaged.config.text_config))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.05)  # as in build.py
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = TEMPLATE
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair=None, special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
