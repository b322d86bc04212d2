"""PaddleOCR-VL: Qwen2-VL's positions with a projector that merges patches."""

from transformers import PaddleOCRVLConfig, PaddleOCRVLImageProcessor, PaddleOCRVLProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write

SPECIALS = ["<|IMAGE_START|>", "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_END|>"]


def make(folder: str) -> None:
    tokenizer = tokenizer_of(SPECIALS, bos="<s>", image_token="<|IMAGE_PLACEHOLDER|>")
    token = tokenizer.convert_tokens_to_ids
    config = PaddleOCRVLConfig(
        text_config=text_with(
            tokenizer,
            head_dim=16,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        ),
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 112, "patch_size": 14,
        },
        image_token_id=tokenizer.image_token_id, vision_start_token_id=token("<|IMAGE_START|>"),
        vision_end_token_id=token("<|IMAGE_END|>"),
    )  # fmt: skip
    images = PaddleOCRVLImageProcessor(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 24)
    template = chatml("".join(SPECIALS), begin="{{ bos_token }}")
    write(folder, config, PaddleOCRVLProcessor(images, tokenizer, chat_template=template))
