"""Aya Vision: tiles by the image's shape, on Cohere 2 with its sliding windows."""

from transformers import AyaVisionConfig, AyaVisionProcessor, GotOcr2ImageProcessor

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write

SPECIALS = [
    "<image>",
    "<|START_OF_IMG|>",
    "<|END_OF_IMG|>",
    "<|IMG_PATCH|>",
    "<|IMG_LINE_BREAK|>",
    "TILE",
    "TILE_GLOBAL",
]


def make(folder: str) -> None:
    tokenizer = tokenizer_of(SPECIALS, bos="<BOS_TOKEN>")
    config = AyaVisionConfig(
        text_config={
            **text_with(tokenizer), "model_type": "cohere2", "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"), downsample_factor=2,
    )  # fmt: skip
    processor = AyaVisionProcessor(
        GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer, patch_size=14, img_size=56, downsample_factor=2,
        chat_template=chatml("<image>", begin="{{ bos_token }}"),
    )  # fmt: skip
    write(folder, config, processor)
