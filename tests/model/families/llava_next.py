"""LLaVA-NeXT: tiles by the image's shape, a learned newline after each row."""

from transformers import LlavaNextConfig, LlavaNextImageProcessor, LlavaNextProcessor

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write

GRID = [[56, 112], [112, 56], [112, 112], [56, 168], [168, 56]]


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image>"], bos="<s>", image_token="<image>")
    config = LlavaNextConfig(
        text_config={**text_with(tokenizer), "model_type": "llama"},
        vision_config={**SIGLIP, "model_type": "clip_vision_model"},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_grid_pinpoints=GRID,
        vision_feature_layer=-2, image_seq_length=16,
    )  # fmt: skip
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=GRID
        ),
        tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chatml("<image>\n", begin="{{ bos_token }}"),
    )  # fmt: skip
    write(folder, config, processor)
