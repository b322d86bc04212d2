"""VideoLLaMA 3: patches as many as an image has, merged before the projector, one position a token."""

from transformers import (
    VideoLlama3Config,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

from tests.model.families.base import chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image>", "<video>"], image_token="<image>", video_token="<video>")
    config = VideoLlama3Config(
        text_config={**text_with(tokenizer), "model_type": "qwen2"},
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "patch_size": 14,
        },
        image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
    )  # fmt: skip
    images = VideoLlama3ImageProcessor(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 24)
    processor = VideoLlama3Processor(images, tokenizer, VideoLlama3VideoProcessor(), chat_template=chatml("<image>\n"))
    write(folder, config, processor)
