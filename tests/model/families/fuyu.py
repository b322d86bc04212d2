"""Fuyu: patches go into the language model without a tower; no chat template."""

import string

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import FuyuConfig, FuyuImageProcessor, FuyuProcessor, PreTrainedTokenizerFast

from tests.model.families.base import text_with, write

SYMBOLS = ("<unk>", "<s>", "</s>", "|SPEAKER|", "|NEWLINE|", "<0x04>")
WORDS = ("▁A", "▁red", "▁circle", "▁text", "▁of", "▁is", "ing")


def tokenizer() -> PreTrainedTokenizerFast:
    """Unigram, with the image's tokens among its pieces: a text that begins with one gets a space before it, which the
    processor takes away."""
    pieces = [(symbol, 0.0) for symbol in SYMBOLS] + [("▁", -3.0)] + [(word, -4.0) for word in WORDS]
    pieces += [(character, -6.0) for character in string.ascii_letters + string.digits + string.punctuation + "\n"]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    made.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


def make(folder: str) -> None:
    made = tokenizer()
    text = text_with(made)
    config = FuyuConfig(
        **{name: value for name, value in text.items() if name != "num_key_value_heads"},
        text_config={**text, "model_type": "persimmon"},
        image_size=60, patch_size=30, image_token_id=made.convert_tokens_to_ids("|SPEAKER|"),
    )  # fmt: skip
    write(folder, config, FuyuProcessor(FuyuImageProcessor(size={"height": 60, "width": 60}), made))
