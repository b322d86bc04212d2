"""Llama 4: tiles with separators, attention in chunks, experts."""

from transformers import Llama4Config, Llama4ImageProcessor, Llama4Processor

from tests.model.families.base import chatml, text_with, tokenizer_of, write

SPECIALS = [
    "<|image|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|patch|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
]


def make(folder: str) -> None:
    tokenizer = tokenizer_of(SPECIALS, bos="<|begin_of_text|>")
    config = Llama4Config(
        text_config={
            **text_with(tokenizer), "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1,
            "intermediate_size_mlp": 96, "attention_chunk_size": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 56, "patch_size": 14, "vision_output_dim": 64, "projector_input_dim": 64,
            "projector_output_dim": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
    )  # fmt: skip
    processor = Llama4Processor(
        Llama4ImageProcessor(size={"height": 56, "width": 56}, max_patches=4, resize_to_max_canvas=False), tokenizer,
        patch_size=14, chat_template=chatml("<|image|>", begin="{{ bos_token }}"),
    )  # fmt: skip
    write(folder, config, processor)
