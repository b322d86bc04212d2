"""Idefics 2: images at their own size with a mask of pixels, a perceiver of few latents."""

from transformers import Idefics2Config, Idefics2ImageProcessor, Idefics2Processor

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    specials = ["<image>", "<fake_token_around_image>", "<end_of_utterance>"]
    tokenizer = tokenizer_of(specials, bos="<s>")
    config = Idefics2Config(
        text_config={**text_with(tokenizer), "model_type": "mistral"}, vision_config={**SIGLIP, "image_size": 112},
        perceiver_config={
            "hidden_size": 64, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4,
            "resampler_head_dim": 16, "num_key_value_heads": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = Idefics2ImageProcessor(size={"shortest_edge": 56, "longest_edge": 112}, do_image_splitting=False)
    template = chatml("<image>", begin="{{ bos_token }}")
    write(folder, config, Idefics2Processor(images, tokenizer, image_seq_len=4, chat_template=template), std=0.15)
