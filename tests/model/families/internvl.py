"""InternVL: tiles by the image's shape and a thumbnail."""

from transformers import GotOcr2ImageProcessor, InternVLConfig, InternVLProcessor, InternVLVideoProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(
        ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    config = InternVLConfig(
        text_config={**text_with(tokenizer), "model_type": "qwen2"},
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": [56, 56], "patch_size": [14, 14],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4,
    )  # fmt: skip
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer, InternVLVideoProcessor(size={"height": 56, "width": 56}), image_seq_length=4,
        chat_template=chatml("<IMG_CONTEXT>\n"),
    )  # fmt: skip
    write(folder, config, processor)
