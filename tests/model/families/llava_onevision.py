"""LLaVA-OneVision: tiles of one image, none where a sample has several."""

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write

GRID = [[56, 112], [112, 56], [112, 112], [56, 168], [168, 56]]


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image>", "<video>"], image_token="<image>", video_token="<video>")
    token = tokenizer.convert_tokens_to_ids
    config = LlavaOnevisionConfig(
        text_config={**text_with(tokenizer), "model_type": "qwen2"},
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=token("<image>"), video_token_index=token("<video>"),
        image_grid_pinpoints=GRID, vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size={"height": 56, "width": 56}, image_grid_pinpoints=GRID),
        tokenizer, LlavaOnevisionVideoProcessor(size={"height": 56, "width": 56}),
        num_image_tokens=16, vision_feature_select_strategy="full", chat_template=chatml("<image>\n"),
    )  # fmt: skip
    write(folder, config, processor)
