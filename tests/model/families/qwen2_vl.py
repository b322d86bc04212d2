"""Qwen2-VL: patches as many as an image has, positions in time, height and width."""

from transformers import Qwen2VLConfig, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

from tests.model.families.base import text_with, write
from tests.model.families.qwen3_vl import TEMPLATE, ids, qwen_tokenizer


def make(folder: str) -> None:
    tokenizer = qwen_tokenizer()
    positions = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    config = Qwen2VLConfig(
        text_config=text_with(tokenizer, rope_parameters=positions),
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64},
        **ids(tokenizer),
    )
    images = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 24})
    write(folder, config, Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=TEMPLATE))
