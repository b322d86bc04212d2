"""Florence-2: an encoder reads image and task, a decoder answers; no chat template."""

from transformers import CLIPImageProcessor, Florence2Config, Florence2Processor

from tests.model.families.base import tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image>"], bos="<s>", image_token="<image>")
    config = Florence2Config(
        text_config={
            "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 64, "encoder_layers": 2,
            "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
        },
        vision_config={
            "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
            "patch_prenorm": [False, True], "embed_dim": [16, 32], "num_heads": [2, 2], "num_groups": [2, 2],
            "window_size": 4, "projection_dim": 64,
        },
        image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    images = CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 65
    write(folder, config, Florence2Processor(images, tokenizer))
