"""VipLLaVA: LLaVA with the states of several of the tower's layers."""

from transformers import CLIPImageProcessor, LlavaProcessor, VipLlavaConfig

from tests.model.families.base import SIGLIP, chatml, text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image>"], bos="<s>", image_token="<image>")
    config = VipLlavaConfig(
        text_config={**text_with(tokenizer), "model_type": "llama"},
        vision_config={**SIGLIP, "model_type": "clip_vision_model"},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layers=[-1, -2],
        image_seq_length=16,
    )  # fmt: skip
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}), tokenizer,
        patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chatml("<image>\n", begin="{{ bos_token }}"),
    )  # fmt: skip
    write(folder, config, processor)
