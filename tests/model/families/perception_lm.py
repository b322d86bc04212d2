"""Perception LM: a tower of timm's, tiles and a thumbnail, neighbouring features averaged."""

import pytest
from transformers import (
    PerceptionLMConfig,
    PerceptionLMImageProcessor,
    PerceptionLMProcessor,
    PerceptionLMVideoProcessor,
)

from tests.model.families.base import chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    pytest.importorskip("timm")
    tokenizer = tokenizer_of(["<|image|>", "<|video|>"], image_token="<|image|>", video_token="<|video|>")
    config = PerceptionLMConfig(
        text_config={**text_with(tokenizer), "model_type": "llama"},
        vision_config={
            "architecture": "vit_pe_core_large_patch14_336",
            "model_args": {
                "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 56, "ref_feat_shape": [4, 4],
                "global_pool": "", "use_post_transformer_norm": False,
            },
        },
        projector_pooling_ratio=2, image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
    )  # fmt: skip
    processor = PerceptionLMProcessor(
        PerceptionLMVideoProcessor(), PerceptionLMImageProcessor(tile_size=56, max_num_tiles=4), tokenizer,
        patch_size=14, chat_template=chatml("<|image|>"),
    )  # fmt: skip
    write(folder, config, processor)
