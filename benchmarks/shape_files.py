"""Files of LLaVA-665K's shape: a checkpoint that any stage loads and a LLaVA JSON with images; a module, no command.

The tokenizer has each of its words as one token, so that a text has as many tokens as its plan says.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlavaImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from benchmarks.llava_shape import Family, picture, plans
from vig_ray.model.chat_template import LLAVA_V1
from vig_ray.model.export import save_checkpoint
from vig_ray.model.llava import SYSTEM

_QUESTION, _ANSWER = 5, 1  # tokens of a turn that are no words: USER: and ASSISTANT: with their spaces, and </s>


def processor_of(family: Family) -> LlavaProcessor:
    """The processor that goes with a LLaVA `family`: padding on, vicuna_v1 as its chat template."""
    side = family.size[0]
    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_pad=True
        ),
        tokenizer=_tokenizer(family.config.text_config.vocab_size),
        patch_size=family.config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_V1,
    )


def write_checkpoint(family: Family, folder: Path, seed: int = 0) -> str:
    """The model of a LLaVA `family` at random weights, with tokenizer and processor, in the hub's layout."""
    save_checkpoint(family.model(seed=seed), processor_of(family), str(folder))
    return str(folder)


def write_dataset(family: Family, folder: Path, count: int, *, text_only: float = 0.0, seed: int = 0) -> str:
    """`count` samples as a LLaVA JSON, their images beside it; returns the JSON's path."""
    _, rest, answers = family.lengths
    rng = np.random.default_rng(seed)
    words = _words(family.config.text_config.vocab_size)
    (folder / "images").mkdir(parents=True)

    def text(tokens: int) -> str:
        return " ".join(rng.choice(words, max(1, tokens)))

    rows, drawn = [], set()
    for number, plan in enumerate(plans(count, rest=rest, answers=answers, text_only=text_only, seed=seed)):
        row: dict[str, object] = {"id": f"{number:06}"}
        if plan.image is not None:
            row["image"] = f"images/{plan.image:06}.jpg"
            if plan.image not in drawn:
                drawn.add(plan.image)
                pixels = picture(family.size, seed=1000 * seed + plan.image)
                Image.fromarray(pixels).save(folder / str(row["image"]), quality=90)
        turns = []
        for place, (question, answer) in enumerate(plan.turns):
            mark = "<image>\n" if plan.image is not None and not place else ""
            turns.append({"from": "human", "value": mark + text(question - _QUESTION)})
            turns.append({"from": "gpt", "value": text(answer - _ANSWER)})
        rows.append(row | {"conversations": turns})
    path = folder / "data.json"
    path.write_text(json.dumps(rows))
    return str(path)


def words_of(family: Family) -> list[str]:
    """The words of its tokenizer, each one token."""
    return _words(family.config.text_config.vocab_size)


_SPECIALS = ("<unk>", "<s>", "</s>", "<image>")


@cache
def _words(vocabulary: int) -> list[str]:
    """As many words as fit into a vocabulary beside its special tokens, its bytes and what the prompt needs."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    count = vocabulary - len(_SPECIALS) - 256 - len(_of_prompts())
    return ["".join(syllables[number // len(syllables) ** place % len(syllables)] for place in range(3))
            for number in range(count)]  # fmt: skip


def _of_prompts() -> list[str]:
    pieces = [f"▁{word}" for word in dict.fromkeys(SYSTEM.replace(".", " ").replace(",", " ").split())]
    return [*pieces, "▁", "▁USER", "USER", "▁ASSISTANT", ":", ".", ",", "\n", "'", "s"]


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Unigram over whole words; the fewest pieces are the likeliest."""
    pieces = [*_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*_of_prompts(), *(f"▁{word}" for word in _words(vocabulary))]
    pieces = list(dict.fromkeys(pieces))
    assert len(pieces) == vocabulary, (len(pieces), vocabulary)
    tokenizer = Tokenizer(models.Unigram([(piece, -10.0) for piece in pieces], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in _SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>",
        model_max_length=2048, extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
