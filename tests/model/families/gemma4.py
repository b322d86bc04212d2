"""Gemma 4: images of as many soft tokens as their shape asks for, sliding windows, embeddings a layer."""

from transformers import (
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
)

from tests.model.families.base import chatml, text_with, tokenizer_of, write

SPECIALS = ["<|image>", "<image|>", "<|image|>", "<|video|>", "<|audio>", "<audio|>", "<|audio|>"]


def make(folder: str) -> None:
    tokenizer = tokenizer_of(
        SPECIALS, bos="<bos>", image_token="<|image|>", boi_token="<|image>", eoi_token="<image|>",
        audio_token="<|audio|>", boa_token="<|audio>", eoa_token="<audio|>",
    )  # fmt: skip
    token = tokenizer.convert_tokens_to_ids
    config = Gemma4Config(
        text_config={
            **text_with(tokenizer), "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": len(tokenizer),
            "use_bidirectional_attention": "vision",
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 512,
        },
        image_token_id=token("<|image|>"), boi_token_id=token("<|image>"), eoi_token_id=token("<image|>"),
        video_token_id=token("<|video|>"), audio_token_id=token("<|audio|>"),
    )  # fmt: skip
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(), Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70), tokenizer,
        Gemma4VideoProcessor(patch_size=4), chat_template=chatml("<|image|>", begin="{{ bos_token }}"),
        image_seq_length=70,
    )  # fmt: skip
    write(folder, config, processor)
