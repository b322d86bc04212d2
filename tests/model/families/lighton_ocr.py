"""LightOnOCR: Pixtral's tower with patches merged, no token after a row."""

from transformers import LightOnOcrConfig, LightOnOcrProcessor, PixtralImageProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write

NAMED = {
    "image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>",
}  # fmt: skip


def make(folder: str) -> None:
    tokenizer = tokenizer_of(list(NAMED.values()), **NAMED)
    config = LightOnOcrConfig(
        text_config={**text_with(tokenizer), "model_type": "qwen3", "head_dim": 16},
        vision_config={
            "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 168, "patch_size": 14, "head_dim": 16,
        },
        image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    images = PixtralImageProcessor(size={"longest_edge": 168}, patch_size={"height": 28, "width": 28})
    processor = LightOnOcrProcessor(images, tokenizer, patch_size=14, chat_template=chatml("<|image_pad|>"))
    write(folder, config, processor, std=0.2)
