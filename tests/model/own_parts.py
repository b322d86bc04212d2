"""Parts of a vision-language model of one's own: tiny language models with a chat template of texts, and a SigLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.model.families.base import TEXT, tokenizer_of
from tests.model.llava_parts import write_clip
from tests.tiny_models import sharpen, write_language_model

# As language models have it: a turn's content is a text, and a list is not looked into.
TEMPLATE = (
    "{{- bos_token or '' }}{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)


def write_own(
    folder: Path, kind: str = "qwen2", *, bos: str | None = None, template: str | None = TEMPLATE, **config: Any
) -> None:
    """A language model of two layers, with more rows than tokens; its tokenizer puts `bos` before a text."""
    tokenizer = tokenizer_of([], bos=bos)
    tokenizer.chat_template = template
    if bos is not None:
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=None, special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    shape = {**TEXT, "vocab_size": len(tokenizer) + 8, "pad_token_id": tokenizer.pad_token_id}
    write_language_model(folder, tokenizer, kind, seed=3, stops=stops, **shape | config)


def write_siglip(folder: Path) -> None:
    """A whole SigLIP, its text half and its pooling too, of 28 pixels a side."""
    torch.manual_seed(4)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"image_size": 28, "patch_size": 14}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    siglip = SiglipModel(SiglipConfig(vision_config=vision, text_config={**text, "projection_size": 32}))
    sharpen(siglip)
    siglip.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)


TOWERS = {"clip": write_clip, "siglip": write_siglip}
