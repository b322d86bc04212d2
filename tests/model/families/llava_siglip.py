"""LLaVA's architecture with a SigLIP tower and Qwen2, by its own chat template."""

from transformers import LlavaConfig, LlavaProcessor, SiglipImageProcessor

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image>"], image_token="<image>")
    config = LlavaConfig(
        text_config={**text_with(tokenizer), "model_type": "qwen2"},
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
        vision_feature_select_strategy="full", image_seq_length=16,
    )  # fmt: skip
    processor = LlavaProcessor(
        SiglipImageProcessor(size={"height": 56, "width": 56}), tokenizer, patch_size=14,
        vision_feature_select_strategy="full", chat_template=chatml("<image>\n"),
    )  # fmt: skip
    write(folder, config, processor)
