"""DeepSeek-VL: SigLIP features as they are."""

from transformers import DeepseekVLConfig, DeepseekVLImageProcessor, DeepseekVLProcessor

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image_placeholder>"], bos="<s>", image_token="<image_placeholder>")
    config = DeepseekVLConfig(
        text_config={**text_with(tokenizer), "model_type": "llama"},
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
    )  # fmt: skip
    processor = DeepseekVLProcessor(
        DeepseekVLImageProcessor(size={"height": 56, "width": 56}, min_size=14), tokenizer,
        chat_template=chatml("<image_placeholder>", begin="{{ bos_token }}"), num_image_tokens=16,
    )  # fmt: skip
    write(folder, config, processor)
