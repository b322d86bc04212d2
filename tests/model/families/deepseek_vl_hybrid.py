"""DeepSeek-VL with a second tower for a larger copy of the image."""

from transformers import DeepseekVLHybridConfig, DeepseekVLHybridImageProcessor, DeepseekVLHybridProcessor

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image_placeholder>"], bos="<s>", image_token="<image_placeholder>")
    config = DeepseekVLHybridConfig(
        text_config={**text_with(tokenizer), "model_type": "llama"},
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False, "image_size": 64,
                       "patch_size": 16},
        high_res_vision_config={
            "model_type": "sam_vision_model", "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 256, "patch_size": 16, "mlp_dim": 48, "global_attn_indexes": [1],
            "window_size": 4,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
    )  # fmt: skip
    processor = DeepseekVLHybridProcessor(
        DeepseekVLHybridImageProcessor(
            size={"height": 64, "width": 64}, high_res_size={"height": 256, "width": 256}, min_size=14
        ),
        tokenizer, chat_template=chatml("<image_placeholder>", begin="{{ bos_token }}"), num_image_tokens=16,
    )  # fmt: skip
    write(folder, config, processor, std=0.2)
