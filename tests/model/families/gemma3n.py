"""Gemma 3n: a tower of timm's, embeddings a layer, several predictions of each state, capped logits; audio unused."""

import pytest
from transformers import Gemma3nAudioFeatureExtractor, Gemma3nConfig, Gemma3nProcessor, SiglipImageProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write

SPECIALS = ["<start_of_image>", "<start_of_audio>", "<end_of_image>", "<image_soft_token>"]
SPECIALS += ["<end_of_audio>", "<audio_soft_token>"]


def make(folder: str) -> None:
    pytest.importorskip("timm")
    tokenizer = tokenizer_of(
        SPECIALS, bos="<bos>", image_token="<image_soft_token>", boi_token="<start_of_image>",
        eoi_token="<end_of_image>", audio_token="<audio_soft_token>", boa_token="<start_of_audio>",
        eoa_token="<end_of_audio>",
    )  # fmt: skip
    token = tokenizer.convert_tokens_to_ids
    first = token("<end_of_image>")  # from here on, ids are of the vision's and the audio's own embeddings
    config = Gemma3nConfig(
        text_config={
            **text_with(tokenizer), "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 4, "sliding_window": 16, "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": first, "num_kv_shared_layers": 2, "laurel_rank": 8, "altup_num_inputs": 2,
            "final_logit_softcapping": 5.0,
        },
        vision_config={"architecture": "test_efficientnet", "hidden_size": 256, "vocab_offset": first, "vocab_size": 2},
        audio_config={
            "hidden_size": 32, "conf_num_hidden_layers": 1, "conf_num_attention_heads": 2, "vocab_offset": first + 2,
            "vocab_size": 2, "sscp_conv_channel_size": [8, 4],
        },
        vision_soft_tokens_per_image=4, image_token_id=token("<image_soft_token>"),
        boi_token_id=token("<start_of_image>"), eoi_token_id=first, audio_token_id=token("<audio_soft_token>"),
        boa_token_id=token("<start_of_audio>"), eoa_token_id=token("<end_of_audio>"),
    )  # fmt: skip
    processor = Gemma3nProcessor(
        Gemma3nAudioFeatureExtractor(), SiglipImageProcessor(size={"height": 64, "width": 64}), tokenizer,
        chat_template=chatml("<image_soft_token>", begin="{{ bos_token }}"), image_seq_length=4,
    )  # fmt: skip
    write(folder, config, processor)
