"""What the families' files share: a tokenizer, sizes, a template, and how a checkpoint is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from tests.tiny_models import byte_level_tokenizer

TURNS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip
SIGLIP: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 56, "patch_size": 14,
}  # fmt: skip


def chatml(image: str, *, begin: str = "") -> str:
    """ChatML with `image` where an image is."""
    return (
        begin + "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
        "{% if p.type == 'image' %}" + image + "{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def tokenizer_of(specials: Sequence[str], *, bos: str | None = None, **named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML's tokens and these; `named`: tokens that the processor asks for by name."""
    every = [*TURNS, *([bos] if bos else []), *specials]
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(list(dict.fromkeys(every)), vocab_size=400),
        bos_token=bos, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=named,
        model_max_length=8192,
    )  # fmt: skip


def write(folder: str, config: Any, processor: Any, *, std: float = 0.3) -> None:
    """Random weights, large enough for the image to matter, and so small that float32 loses less than 1e-5 nats."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=std if parameter.shape[-1] < 100 else std / 3)
            elif "norm" not in name and parameter.ndim == 1 and "gate" in name:
                parameter.fill_(0.7)  # a gate of zero would shut the image out
    if model.can_generate():  # most real ones stop at several tokens
        stops = [processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id]
        model.generation_config.eos_token_id = stops
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def text_with(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """`TEXT` for this tokenizer's vocabulary."""
    ids: Mapping[str, Any] = {
        "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    return {**TEXT, **ids, **more}
