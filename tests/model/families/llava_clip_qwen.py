"""LLaVA's architecture with CLIP and Qwen2: not LLaVA-1.5, so by its own chat template."""

from transformers import CLIPImageProcessor, LlavaConfig, LlavaProcessor

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image>"], image_token="<image>")
    config = LlavaConfig(
        text_config={**text_with(tokenizer), "model_type": "qwen2"},
        vision_config={**SIGLIP, "model_type": "clip_vision_model", "projection_dim": 16},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_seq_length=16,
    )  # fmt: skip
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=chatml("<image>\n"),
    )  # fmt: skip
    write(folder, config, processor)
