"""Qwen3-VL with experts."""

from transformers import Qwen3VLMoeConfig

from tests.model.families.base import text_with, write
from tests.model.families.qwen3_vl import TEXT, VISION, ids, processor_with, qwen_tokenizer


def make(folder: str) -> None:
    tokenizer = qwen_tokenizer()
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = Qwen3VLMoeConfig(
        text_config=text_with(tokenizer, **TEXT, **experts),
        vision_config=VISION | {"deepstack_visual_indexes": [0]},
        **ids(tokenizer),
    )
    write(folder, config, processor_with(tokenizer))
