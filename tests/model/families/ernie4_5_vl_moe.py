"""ERNIE 4.5 VL: experts for text and others for images, which the processor tells apart token by token."""

from transformers import (
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeImageProcessor,
    Ernie4_5_VLMoeProcessor,
    Ernie4_5_VLMoeVideoProcessor,
)

from tests.model.families.base import chatml, text_with, tokenizer_of, write

NAMED = {
    "image_token": "<|IMAGE_PLACEHOLDER|>", "image_start_token": "<|IMAGE_START|>", "image_end_token": "<|IMAGE_END|>",
    "video_token": "<|VIDEO_PLACEHOLDER|>", "video_start_token": "<|VIDEO_START|>", "video_end_token": "<|VIDEO_END|>",
}  # fmt: skip


def make(folder: str) -> None:
    tokenizer = tokenizer_of(list(NAMED.values()), **NAMED)
    config = Ernie4_5_VLMoeConfig(
        text_config=text_with(
            tokenizer, moe_intermediate_size=[32, 32], moe_k=2, moe_num_experts=4, moe_num_shared_experts=1,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]},
        ),
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2},
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in NAMED.items()},
    )  # fmt: skip
    images = Ernie4_5_VLMoeImageProcessor(size={"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 24})
    videos = Ernie4_5_VLMoeVideoProcessor(draw_on_frames=False)
    template = chatml("Picture:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>")
    write(folder, config, Ernie4_5_VLMoeProcessor(images, tokenizer, videos, chat_template=template))
