"""GLM-4.6V: GLM-4.1V's model with a processor of its own."""

from transformers import Glm46VConfig, Glm46VImageProcessor, Glm46VProcessor, Glm46VVideoProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write
from tests.model.families.glm4v import SPECIALS


def make(folder: str) -> None:
    tokenizer = tokenizer_of(SPECIALS, image_token="<|image|>", video_token="<|video|>")
    token = tokenizer.convert_tokens_to_ids
    text = {name: value for name, value in text_with(tokenizer).items() if name in ("vocab_size", "pad_token_id")}
    config = Glm46VConfig(
        text_config={
            **text, "model_type": "glm4v_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1],
                                "partial_rotary_factor": 0.5},
        },
        vision_config={"model_type": "glm4v_vision", "depth": 2, "hidden_size": 32, "num_heads": 2, "image_size": 56,
                       "patch_size": 14, "out_hidden_size": 64, "intermediate_size": 48},
        image_token_id=token("<|image|>"), video_token_id=token("<|video|>"),
        image_start_token_id=token("<|begin_of_image|>"), image_end_token_id=token("<|end_of_image|>"),
        video_start_token_id=token("<|begin_of_video|>"), video_end_token_id=token("<|end_of_video|>"),
    )  # fmt: skip
    processor = Glm46VProcessor(
        Glm46VImageProcessor(size={"shortest_edge": 28 * 28 * 8, "longest_edge": 28 * 28 * 48}), tokenizer,
        Glm46VVideoProcessor(), chat_template=chatml("<|begin_of_image|><|image|><|end_of_image|>"),
    )  # fmt: skip
    write(folder, config, processor)
