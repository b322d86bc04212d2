"""Aria: experts, and as many queries to an image as its size asks for."""

from transformers import AriaConfig, AriaImageProcessor, AriaProcessor

from tests.model.families.base import chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image>"], bos="<s>", image_token="<image>")
    config = AriaConfig(
        text_config={**text_with(tokenizer), "model_type": "aria_text", "moe_num_experts": 4, "moe_topk": 2,
                     "moe_num_shared_experts": 1},
        vision_config={
            "model_type": "idefics3_vision", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 490, "patch_size": 70,
        },
        projector_patch_to_query_dict={49: 8, 196: 16}, vision_feature_layer=-1,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    processor = AriaProcessor(
        AriaImageProcessor(max_image_size=490, min_image_size=336), tokenizer,
        chat_template=chatml("<image>", begin="{{ bos_token }}"), size_conversion={490: 8, 980: 16},
    )  # fmt: skip
    write(folder, config, processor)
