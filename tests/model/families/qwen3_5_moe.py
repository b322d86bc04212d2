"""Qwen3.5-MoE: Qwen3.5's layers with experts, one of them for every token."""

from transformers import Qwen3_5MoeConfig

from tests.model.families.base import text_with, write
from tests.model.families.qwen3_5 import TEXT
from tests.model.families.qwen3_vl import VISION, ids, processor_with, qwen_tokenizer

EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
}  # fmt: skip


def make(folder: str) -> None:
    tokenizer = qwen_tokenizer()
    text = {
        name: value for name, value in text_with(tokenizer, **TEXT, **EXPERTS).items() if name != "intermediate_size"
    }
    config = Qwen3_5MoeConfig(text_config=text, vision_config=VISION, **ids(tokenizer))
    write(folder, config, processor_with(tokenizer), std=0.1)
