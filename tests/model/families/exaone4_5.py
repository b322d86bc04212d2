"""EXAONE 4.5: Qwen2.5-VL's windowed tower, sliding windows in the text, one position a token."""

from transformers import Exaone4_5_Config, Exaone4_5_Processor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(
        ["<vision>", "</vision>", "<|image_pad|>", "<|video_pad|>"],
        image_token="<|image_pad|>", video_token="<|video_pad|>",
    )  # fmt: skip
    config = Exaone4_5_Config(
        text_config={
            **text_with(tokenizer), "model_type": "exaone4", "sliding_window": 16, "sliding_window_pattern": 2,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_key_value_heads": 2,
            "out_hidden_size": 64, "window_size": 56, "fullatt_block_indexes": [1],
        },
        image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
    )  # fmt: skip
    images = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 24})
    processor = Exaone4_5_Processor(
        images, tokenizer, Qwen2VLVideoProcessor(), chat_template=chatml("<vision><|image_pad|></vision>\n")
    )
    write(folder, config, processor)
