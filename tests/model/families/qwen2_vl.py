"""Qwen2-VL: patches as many as an image has, positions in time, height and width."""

from transformers import Qwen2VLConfig, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write

SPECIALS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
PIXELS = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 24}


def make(folder: str) -> None:
    tokenizer = tokenizer_of(SPECIALS, image_token="<|image_pad|>", video_token="<|video_pad|>")
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            **text_with(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        },
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64},
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
    )  # fmt: skip
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(size=PIXELS), tokenizer, Qwen2VLVideoProcessor(),
        chat_template=chatml("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    write(folder, config, processor)
