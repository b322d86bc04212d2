"""PaliGemma, given a chat template: images at the front, a newline at the end, a prefix that sees both ways."""

from transformers import PaliGemmaConfig, PaliGemmaProcessor, SiglipImageProcessor

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image>", "\n"], bos="<bos>", image_token="<image>")
    images = SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, tokenizer, chat_template=chatml("<image>"))
    config = PaliGemmaConfig(
        text_config={**text_with(tokenizer), "model_type": "gemma", "head_dim": 16},
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "projection_dim": 64, "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), projection_dim=64,
    )  # fmt: skip
    write(folder, config, processor)
