"""GLM-4.1V: patches as many as an image has, positions in time, height and width."""

from typing import Any

from transformers import Glm4vConfig, Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

from tests.model.families.base import chatml, tokenizer_of, write

TEMPLATE = chatml("<|begin_of_image|><|image|><|end_of_image|>")
SIZE = {"shortest_edge": 28 * 28 * 8, "longest_edge": 28 * 28 * 48}


def glm_tokenizer() -> Any:
    marks = [f"<|{end}_of_{kind}|>" for kind in ("image", "video") for end in ("begin", "end")]
    return tokenizer_of([*marks, "<|image|>", "<|video|>"], image_token="<|image|>", video_token="<|video|>")


def parts(tokenizer: Any) -> dict[str, Any]:
    """What a config of either GLM-V is made with; its text model refuses what it doesn't know."""
    token = tokenizer.convert_tokens_to_ids
    return {
        "text_config": {
            "model_type": "glm4v_text", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1],
                                "partial_rotary_factor": 0.5},
        },
        "vision_config": {
            "model_type": "glm4v_vision", "depth": 2, "hidden_size": 32, "num_heads": 2, "image_size": 56,
            "patch_size": 14, "out_hidden_size": 64, "intermediate_size": 48,
        },
        "image_token_id": token("<|image|>"), "video_token_id": token("<|video|>"),
        "image_start_token_id": token("<|begin_of_image|>"), "image_end_token_id": token("<|end_of_image|>"),
        "video_start_token_id": token("<|begin_of_video|>"), "video_end_token_id": token("<|end_of_video|>"),
    }  # fmt: skip


def make(folder: str) -> None:
    tokenizer = glm_tokenizer()
    images = Glm4vImageProcessor(size=SIZE)
    processor = Glm4vProcessor(images, tokenizer, Glm4vVideoProcessor(), chat_template=TEMPLATE)
    write(folder, Glm4vConfig(**parts(tokenizer)), processor)
