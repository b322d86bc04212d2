"""KOSMOS-2: captions with places in the image; a mask of places instead of an image token, no chat template."""

from transformers import CLIPImageProcessor, Kosmos2Config, Kosmos2Processor

from tests.model.families.base import tokenizer_of, write


def make(folder: str) -> None:
    tokenizer = tokenizer_of(["<image>", "</image>"], bos="<s>")
    config = Kosmos2Config(
        text_config={
            "vocab_size": len(tokenizer), "embed_dim": 64, "layers": 2, "ffn_dim": 96, "attention_heads": 4,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 56, "patch_size": 14,
        },
        latent_query_num=8,
    )  # fmt: skip
    images = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    write(folder, config, Kosmos2Processor(images, tokenizer, num_patch_index_tokens=16))
