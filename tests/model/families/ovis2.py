"""Ovis 2: an image's patches as mixtures of visual words, with indicator tokens around them."""

from transformers import Ovis2Config, Ovis2ImageProcessor, Ovis2Processor

from tests.model.families.base import chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    indicators = ["<img>", "</img>", "<col>", "<row>", "</pre>"]
    tokenizer = tokenizer_of(["<image>", "<IMG_ATOM>", *indicators], image_token="<image>", image_token_id="<image>")
    token = tokenizer.convert_tokens_to_ids
    config = Ovis2Config(
        text_config={**text_with(tokenizer), "model_type": "qwen2"},
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 56, "patch_size": 14, "vocab_size": 64, "hidden_stride": 2, "num_visual_indicator_tokens": 5,
        },
        image_token_id=token("<IMG_ATOM>"), visual_indicator_token_ids=[token(each) for each in indicators],
        hidden_size=64, vocab_size=len(tokenizer),
    )  # fmt: skip
    processor = Ovis2Processor(
        Ovis2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer, chat_template=chatml("<image>\n"), image_token="<image>", image_seq_length=4,
    )  # fmt: skip
    write(folder, config, processor)
