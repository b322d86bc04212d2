"""Qwen3-VL: features of several layers put into the language model's first ones (DeepStack)."""

from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write

SPECIALS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
PIXELS = {"shortest_edge": 32 * 32 * 4, "longest_edge": 32 * 32 * 24}


def make(folder: str) -> None:
    tokenizer = tokenizer_of(SPECIALS, image_token="<|image_pad|>", video_token="<|video_pad|>")
    token = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            **text_with(tokenizer), "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
            "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64,
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
    )  # fmt: skip
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16, size=PIXELS), tokenizer, Qwen3VLVideoProcessor(patch_size=16),
        chat_template=chatml("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    write(folder, config, processor)
