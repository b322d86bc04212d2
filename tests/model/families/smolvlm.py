"""SmolVLM: Idefics 3's tiles, smaller."""

from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write
from tests.model.families.idefics3 import SPECIALS


def make(folder: str) -> None:
    tokenizer = tokenizer_of(SPECIALS, bos="<|begin_of_text|>")
    config = SmolVLMConfig(
        text_config={**text_with(tokenizer), "model_type": "llama"}, vision_config={**SIGLIP},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2,
    )  # fmt: skip
    images = SmolVLMImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = SmolVLMProcessor(
        images, tokenizer, SmolVLMVideoProcessor(max_image_size={"longest_edge": 56}, size={"longest_edge": 56}),
        image_seq_len=4, chat_template=chatml("<image>", begin="{{ bos_token }}"),
    )  # fmt: skip
    write(folder, config, processor)
