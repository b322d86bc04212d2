"""BLIP-2: queries read the image; captions and single questions, no chat template."""

from transformers import Blip2Config, Blip2Processor, BlipImageProcessor

from tests.model.families.base import text_with, tokenizer_of, write

VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
QUERIES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "encoder_hidden_size": 32,
}  # fmt: skip


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image>"], image_token="<image>")
    config = Blip2Config(
        text_config={**text_with(tokenizer), "model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 64},
        vision_config=VISION, qformer_config=QUERIES, num_query_tokens=8,
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    images = BlipImageProcessor(size={"height": 56, "width": 56})
    write(folder, config, Blip2Processor(images, tokenizer, num_query_tokens=8))
