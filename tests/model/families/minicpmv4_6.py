"""MiniCPM-V 4.6: slices, and before each image its number in the sample; Qwen3.5's linear attention."""

from transformers import (
    MiniCPMV4_6Config,
    MiniCPMV4_6ImageProcessor,
    MiniCPMV4_6Processor,
    MiniCPMV4_6VideoProcessor,
)

from tests.model.families.base import chatml, text_with, tokenizer_of, write
from tests.model.families.qwen3_5 import TEXT

NAMED = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
    "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
}  # fmt: skip


def make(folder: str) -> None:
    tokenizer = tokenizer_of(list(NAMED.values()), **NAMED)
    config = MiniCPMV4_6Config(
        text_config={**text_with(tokenizer, **TEXT), "model_type": "qwen3_5_text"},
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 112, "patch_size": 14,
        },
        image_size=112, insert_layer_id=0, image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )  # fmt: skip
    slices = {"max_slice_nums": 4, "scale_resolution": 112, "patch_size": 14}
    images, videos = MiniCPMV4_6ImageProcessor(**slices), MiniCPMV4_6VideoProcessor(**slices)
    processor = MiniCPMV4_6Processor(images, videos, tokenizer, chat_template=chatml("<|image_pad|>\n"))
    write(folder, config, processor, std=0.1)
