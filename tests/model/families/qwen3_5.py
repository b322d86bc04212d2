"""Qwen3.5: linear attention, which reads every token in turn, between layers of full attention."""

from transformers import Qwen3_5Config

from tests.model.families.base import text_with, write
from tests.model.families.qwen3_vl import VISION, ids, processor_with, qwen_tokenizer

TEXT = {
    "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1],
                        "partial_rotary_factor": 0.5},
}  # fmt: skip


def make(folder: str) -> None:
    tokenizer = qwen_tokenizer()
    config = Qwen3_5Config(text_config=text_with(tokenizer, **TEXT), vision_config=VISION, **ids(tokenizer))
    write(folder, config, processor_with(tokenizer), std=0.1)
