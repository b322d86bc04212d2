"""Qwen3.5: linear attention, which reads every token in turn, between layers of full attention."""

from transformers import Qwen2VLImageProcessor, Qwen3_5Config, Qwen3VLProcessor, Qwen3VLVideoProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write
from tests.model.families.qwen3_vl import PIXELS, SPECIALS


def make(folder: str) -> None:
    tokenizer = tokenizer_of(SPECIALS, image_token="<|image_pad|>", video_token="<|video_pad|>")
    token = tokenizer.convert_tokens_to_ids
    config = Qwen3_5Config(
        text_config={
            **text_with(tokenizer), "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1],
                                "partial_rotary_factor": 0.5},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
            "num_position_embeddings": 64,
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
    )  # fmt: skip
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16, size=PIXELS), tokenizer, Qwen3VLVideoProcessor(patch_size=16),
        chat_template=chatml("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    write(folder, config, processor, std=0.1)
