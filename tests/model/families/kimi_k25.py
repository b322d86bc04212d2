"""Kimi K2.5: DeepSeek-V3's attention and experts, patches as many as an image has."""

from transformers import Kimi_K25Config, Kimi_K25ImageProcessor, Kimi_K25Processor, Kimi_K25VideoProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write

SPECIALS = ["<|media_begin|>", "<|media_content|>", "<|media_pad|>", "<|media_end|>", "<|kimi_k25_video_placeholder|>"]


def make(folder: str) -> None:
    tokenizer = tokenizer_of(SPECIALS, image_token="<|media_pad|>", video_token="<|kimi_k25_video_placeholder|>")
    token = tokenizer.convert_tokens_to_ids
    config = Kimi_K25Config(
        text_config={
            **text_with(tokenizer), "model_type": "deepseek_v3", "num_key_value_heads": 4, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
            "moe_intermediate_size": 32, "kv_lora_rank": 16, "q_lora_rank": 32, "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8, "v_head_dim": 16, "routed_scaling_factor": 1.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "pos_emb_height": 8, "pos_emb_width": 8,
        },
        projection_hidden_size=32, image_token_id=token("<|media_pad|>"),
        video_token_id=token("<|kimi_k25_video_placeholder|>"),
        vision_start_token_id=token("<|media_begin|>"), vision_end_token_id=token("<|media_end|>"),
    )  # fmt: skip
    template = chatml("<|media_begin|>image<|media_content|><|media_pad|><|media_end|>")
    processor = Kimi_K25Processor(Kimi_K25ImageProcessor(), tokenizer, Kimi_K25VideoProcessor(), chat_template=template)
    write(folder, config, processor)
