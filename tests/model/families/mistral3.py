"""Mistral 3: Pixtral's tower, images at their own size, a token after each row."""

from transformers import Mistral3Config, PixtralImageProcessor, PixtralProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["[IMG]", "[IMG_BREAK]", "[IMG_END]"], bos="<s>")
    config = Mistral3Config(
        text_config={**text_with(tokenizer), "model_type": "mistral", "head_dim": 16},
        vision_config={
            "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 112, "patch_size": 14, "head_dim": 16,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2, vision_feature_layer=-1,
    )  # fmt: skip
    processor = PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": 112}, patch_size={"height": 14, "width": 14}), tokenizer,
        patch_size=14, spatial_merge_size=2, chat_template=chatml("[IMG]", begin="{{ bos_token }}"),
    )  # fmt: skip
    write(folder, config, processor, std=0.2)
