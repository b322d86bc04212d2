"""GOT-OCR2: text is read off an image without a question, so there is no chat template."""

from transformers import GotOcr2Config, GotOcr2ImageProcessor, GotOcr2Processor

from tests.model.families.base import text_with, tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<img>", "</img>", "<imgpad>"])
    config = GotOcr2Config(
        text_config={**text_with(tokenizer), "model_type": "qwen2"},
        vision_config={
            "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 256, "mlp_dim": 48, "window_size": 4, "global_attn_indexes": [1],
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>"),
    )  # fmt: skip
    write(folder, config, GotOcr2Processor(GotOcr2ImageProcessor(size={"height": 256, "width": 256}), tokenizer))
