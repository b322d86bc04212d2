"""InstructBLIP: BLIP-2 whose queries read the question too, by a tokenizer of their own; no chat template."""

from transformers import BlipImageProcessor, InstructBlipConfig, InstructBlipProcessor

from tests.model.families.base import text_with, tokenizer_of, write
from tests.model.families.blip_2 import QUERIES, VISION


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image>"], image_token="<image>")
    config = InstructBlipConfig(
        text_config={**text_with(tokenizer), "model_type": "llama"},
        vision_config=VISION, qformer_config=QUERIES | {"vocab_size": len(tokenizer)}, num_query_tokens=8,
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    images = BlipImageProcessor(size={"height": 56, "width": 56})
    write(folder, config, InstructBlipProcessor(images, tokenizer, tokenizer_of([]), num_query_tokens=8))
