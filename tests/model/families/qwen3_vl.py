"""Qwen3-VL: features of several layers put into the language model's first ones (DeepStack)."""

from typing import Any

from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write

TEMPLATE = chatml("<|vision_start|><|image_pad|><|vision_end|>")
TEXT = {
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
}
VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
    "num_position_embeddings": 64,
}  # fmt: skip


def qwen_tokenizer() -> Any:
    specials = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    return tokenizer_of(specials, image_token="<|image_pad|>", video_token="<|video_pad|>")


def ids(tokenizer: Any) -> dict[str, int]:
    """The tokens that every Qwen-VL's config names."""
    token = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": token("<|image_pad|>"), "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"), "vision_end_token_id": token("<|vision_end|>"),
    }  # fmt: skip


def processor_with(tokenizer: Any) -> Any:
    """The processor of Qwen3-VL and of its successors."""
    size = {"shortest_edge": 32 * 32 * 4, "longest_edge": 32 * 32 * 24}
    images = Qwen2VLImageProcessor(patch_size=16, size=size)
    return Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(patch_size=16), chat_template=TEMPLATE)


def make(folder: str) -> None:
    tokenizer = qwen_tokenizer()
    config = Qwen3VLConfig(
        text_config=text_with(tokenizer, **TEXT), vision_config=VISION | {"deepstack_visual_indexes": [0, 1]},
        **ids(tokenizer),
    )  # fmt: skip
    write(folder, config, processor_with(tokenizer))
