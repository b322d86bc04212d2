"""Janus, its understanding half."""

from transformers import JanusConfig, JanusImageProcessor, JanusProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    specials = ["<image_placeholder>", "<begin_of_image>", "<end_of_image>"]
    tokenizer = tokenizer_of(
        specials, bos="<s>", image_token="<image_placeholder>", boi_token="<begin_of_image>",
        eoi_token="<end_of_image>",
    )  # fmt: skip
    config = JanusConfig(
        text_config={**text_with(tokenizer), "model_type": "llama"},
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
            "projection_dim": 64, "num_image_tokens": 16, "depth": 2, "mlp_ratio": 2.0,
        },
        vq_config={
            "embed_dim": 8, "num_embeddings": 16, "base_channels": 32, "channel_multiplier": [1, 1],
            "projection_dim": 64, "num_patches": 4, "image_token_embed_dim": 64, "num_res_blocks": 1,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
    )  # fmt: skip
    processor = JanusProcessor(
        JanusImageProcessor(size={"height": 56, "width": 56}, min_size=14), tokenizer,
        chat_template=chatml("<image_placeholder>", begin="{{ bos_token }}"),
    )  # fmt: skip
    processor.num_image_tokens = 16
    write(folder, config, processor)
