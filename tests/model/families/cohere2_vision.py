"""Command A Vision: tiles by the image's shape, on Cohere 2 with its sliding windows."""

from transformers import Cohere2VisionConfig, Cohere2VisionImageProcessor, Cohere2VisionProcessor

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write

SPECIALS = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>"]


def make(folder: str) -> None:
    tokenizer = tokenizer_of(
        SPECIALS, bos="<BOS_TOKEN>", boi_token=SPECIALS[0], eoi_token=SPECIALS[1], image_token=SPECIALS[2],
        img_line_break_token=SPECIALS[3],
    )  # fmt: skip
    config = Cohere2VisionConfig(
        text_config={
            **text_with(tokenizer), "model_type": "cohere2", "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_id=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"), downsample_factor=2,
        alignment_intermediate_size=64,
    )  # fmt: skip
    images = Cohere2VisionImageProcessor(
        size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4, patch_size=2,
        downsample_factor=2,
    )  # fmt: skip
    template = chatml("<|IMG_PATCH|>", begin="{{ bos_token }}")
    write(folder, config, Cohere2VisionProcessor(images, tokenizer, chat_template=template))
