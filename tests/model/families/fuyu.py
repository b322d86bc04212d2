"""Fuyu: patches go into the language model without a tower; no chat template."""

from transformers import FuyuConfig, FuyuImageProcessor, FuyuProcessor

from tests.model.families.base import text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["|SPEAKER|", "|NEWLINE|"], bos="<s>")
    text = text_with(tokenizer)
    config = FuyuConfig(
        **{name: value for name, value in text.items() if name != "num_key_value_heads"},
        text_config={**text, "model_type": "persimmon"},
        image_size=60, patch_size=30, image_token_id=tokenizer.convert_tokens_to_ids("|SPEAKER|"),
    )  # fmt: skip
    write(folder, config, FuyuProcessor(FuyuImageProcessor(size={"height": 60, "width": 60}), tokenizer))
