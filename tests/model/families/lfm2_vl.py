"""LFM2-VL: convolutions between attention layers; tiles with tokens for rows, columns and a thumbnail."""

from transformers import Lfm2VlConfig, Lfm2VlImageProcessor, Lfm2VlProcessor

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write

SPECIALS = ["<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"]
SPECIALS += [f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)]


def make(folder: str) -> None:
    tokenizer = tokenizer_of(SPECIALS, bos="<|startoftext|>", image_token="<image>")
    vision = {name: value for name, value in SIGLIP.items() if name != "image_size"} | {"num_patches": 64}
    config = Lfm2VlConfig(
        text_config={
            **text_with(tokenizer), "model_type": "lfm2", "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        },
        vision_config={**vision, "model_type": "siglip2_vision_model"},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), projector_hidden_size=64, downsample_factor=2,
    )  # fmt: skip
    images = Lfm2VlImageProcessor(
        tile_size=112, min_tiles=2, max_tiles=4, min_image_tokens=4, max_image_tokens=16, max_num_patches=64,
        encoder_patch_size=14, downsample_factor=2, do_image_splitting=True, use_thumbnail=True,
    )  # fmt: skip
    write(folder, config, Lfm2VlProcessor(images, tokenizer, chat_template=chatml("<image>", begin="{{ bos_token }}")))
