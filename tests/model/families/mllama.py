"""Llama 3.2 Vision: images beside the text, read by cross-attention layers."""

from transformers import MllamaConfig, MllamaImageProcessor, MllamaProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<|python_tag|>", "<|image|>"], bos="<|begin_of_text|>")
    config = MllamaConfig(
        text_config={
            **text_with(tokenizer), "vocab_size": len(tokenizer) - 1, "num_hidden_layers": 3,
            "cross_attention_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_global_layers": 1,
            "attention_heads": 2, "image_size": 56, "patch_size": 14, "max_num_tiles": 4,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
            "intermediate_layers_indices": [0, 1], "vision_output_dim": 96,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )  # fmt: skip
    images = MllamaImageProcessor(size={"height": 56, "width": 56}, max_image_tiles=4)
    write(folder, config, MllamaProcessor(images, tokenizer, chatml("<|image|>", begin="{{ bos_token }}")))
