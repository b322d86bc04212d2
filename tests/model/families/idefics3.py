"""Idefics 3: tiles in a grid, each with its place written out, and the whole image after them."""

from transformers import Idefics3Config, Idefics3ImageProcessor, Idefics3Processor

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write

SPECIALS = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
SPECIALS += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]


def make(folder: str) -> None:
    tokenizer = tokenizer_of(SPECIALS, bos="<|begin_of_text|>")
    config = Idefics3Config(
        text_config={**text_with(tokenizer), "model_type": "llama"}, vision_config={**SIGLIP},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2,
    )  # fmt: skip
    images = Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    template = chatml("<image>", begin="{{ bos_token }}")
    write(folder, config, Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template))
