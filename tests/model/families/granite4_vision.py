"""Granite 4 Vision: LLaVA-NeXT's tiles, read by queries, and put into several layers; divided logits."""

from transformers import Granite4VisionConfig, Granite4VisionProcessor, LlavaNextImageProcessor

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write
from tests.model.families.llava_next import GRID


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image>"], image_token="<image>")
    config = Granite4VisionConfig(
        text_config={
            **text_with(tokenizer), "model_type": "granite4_vision_text", "num_hidden_layers": 5,
            "attention_multiplier": 0.2, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 2.0,
        },
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        qformer_config={
            "model_type": "blip_2_qformer", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 2, "encoder_hidden_size": 32, "cross_attention_frequency": 1,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        },
        image_token_index=tokenizer.image_token_id, image_grid_pinpoints=GRID, downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0]], spatial_vision_layer=-1, spatial_target_layers=[1, 2, 3, 4],
        vision_feature_select_strategy="full", projector_dropout=0.0,
    )  # fmt: skip
    processor = Granite4VisionProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=GRID
        ),
        tokenizer, patch_size=14, vision_feature_select_strategy="full", downsample_rate="1/2",
        chat_template=chatml("<image>\n"),
    )  # fmt: skip
    write(folder, config, processor, std=0.2)
