"""A tokenizer.model alone: the tokenizer made of it, and the token that a language model gives up for images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from tests.model.llava_parts import DEEP, TOKENS, config_of, write_clip, write_parts, write_projector
from tests.model.llava_rules import corpus
from tests.model.random_text import random_strings
from tests.tiny_models import byte_level_tokenizer, write_language_model
from vig_ray.errors import StageError
from vig_ray.model.assemble import run
from vig_ray.model.load import load_formatter

LLAMA = TOKENS | {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Vicuna whose tokenizer is a lone tokenizer.model, a CLIP, a projector."""
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder)
    return folder


@pytest.fixture(scope="module")
def processor(parts: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(parts / "vicuna" / "tokenizer.model"))


Sample = tuple[list[str], list[list[int]]]


@pytest.fixture(scope="module")
def sample(processor: sentencepiece.SentencePieceProcessor) -> Sample:
    """100,000 strings, and their ids by SentencePiece itself.

    All begin with a letter. Before a space, transformers' Metaspace puts none of its own, which SentencePiece does;
    prompts see to that themselves.
    """
    pieces = [processor.id_to_piece(index).replace("▁", " ") for index in range(259, len(processor))]
    strings = [f"a{string}" for string in random_strings(100_000, pieces)]
    return strings, processor.encode(strings)


def differing(tokenizer: Any, sample: Sample) -> list[str]:
    strings, expected = sample
    found = tokenizer(strings, add_special_tokens=False)["input_ids"]
    return [string for string, ids, mine in zip(strings, expected, found, strict=True) if ids != mine]


def lone(folder: Path, legacy: bool) -> None:
    """Leave of a folder's tokenizer the tokenizer.model and a few words on it."""
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(LLAMA | {"legacy": legacy}))


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "not legacy"])
def legacy(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def assembled(legacy: bool, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("assembled") / "out"
    lone(parts / "vicuna", legacy)
    run(config_of(parts, out))
    return out


def test_the_strings_are_of_all_kinds(sample: Sample, processor: sentencepiece.SentencePieceProcessor) -> None:
    strings, ids = sample
    assert len(set(strings)) > 95_000
    assert len({token for each in ids for token in each}) > 0.85 * len(processor)
    assert len({character for string in strings for character in string}) > 60_000


def test_what_assemble_writes_tokenises_as_sentencepiece(legacy: bool, assembled: Path, sample: Sample) -> None:
    assert (assembled / "tokenizer.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(assembled)
    assert differing(tokenizer, sample) == []
    assert (tokenizer.tokenize("</s>the") == ["</s>", "▁the"]) == legacy


def test_what_the_formatter_loads_tokenises_as_sentencepiece(
    legacy: bool, assembled: Path, sample: Sample, processor: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    folder = shutil.copytree(assembled, tmp_path / "lone")
    lone(folder, legacy)
    tokenizer = load_formatter(str(folder)).tokenizer
    assert differing(tokenizer, sample) == []
    assert (tokenizer.tokenize("</s>the") == ["</s>", "▁the"]) == legacy
    string = "the dog  and 狗 é"
    assert tokenizer.decode(processor.encode(string)) == string


def test_the_image_is_a_byte_that_no_text_has(parts: Path, assembled: Path, processor: Any, sample: Sample) -> None:
    tokenizer = AutoTokenizer.from_pretrained(assembled)
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert processor.id_to_piece(image) == "<0xFF>"
    assert len(tokenizer) == len(processor)
    assert image not in {token for ids in sample[1] for token in ids}
    same_text(parts / "vicuna", assembled, TEXTS)


def trained(folder: Path, **changes: Any) -> None:
    """A SentencePiece model of other settings than LLaMA's, over that of `folder`."""
    settings = {
        "model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True, "add_dummy_prefix": True,
    } | changes  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(), model_prefix=str(folder / "tokenizer"), vocab_size=1000, byte_fallback=True,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, minloglevel=2, **settings,
    )  # fmt: skip


def rescored(folder: Path, score: Callable[[int, Any], float]) -> None:
    trained(folder)
    file = folder / "tokenizer.model"
    proto = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    for index, piece in enumerate(proto.pieces):
        if len(piece.piece) > 1:
            piece.score = score(index, piece)
    file.write_bytes(proto.SerializeToString())


OTHERS: dict[str, Callable[[Path], None]] = {
    "unigram": lambda folder: trained(folder, model_type="unigram"),
    "a normaliser": lambda folder: trained(folder, normalization_rule_name="nmt_nfkc"),
    "no runs of spaces": lambda folder: trained(folder, remove_extra_whitespaces=True),
    "no space in front": lambda folder: trained(folder, add_dummy_prefix=False),
    "pieces of its user": lambda folder: trained(folder, user_defined_symbols=["question", "<tag>"]),
    "all scores alike": lambda folder: rescored(folder, lambda *_: -1.0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_no_merges_reproduce_is_refused(name: str, tmp_path: Path) -> None:
    write_parts(tmp_path)
    OTHERS[name](tmp_path / "vicuna")
    with pytest.raises(StageError) as error:
        run(config_of(tmp_path, tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert "tokenizer.model: no merges give the tokens that SentencePiece makes of" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_scores_in_another_order_are_followed(tmp_path: Path) -> None:
    """Not the order of the vocabulary: long pieces first."""
    write_parts(tmp_path)
    rescored(tmp_path / "vicuna", lambda index, piece: 10.0 * len(piece.piece) - index / 1000)
    run(config_of(tmp_path, tmp_path / "out"))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "vicuna" / "tokenizer.model"))
    pieces = [processor.id_to_piece(index).replace("▁", " ") for index in range(259, len(processor))]
    strings = [f"a{string}" for string in random_strings(20_000, pieces)]
    assert differing(AutoTokenizer.from_pretrained(tmp_path / "out"), (strings, processor.encode(strings))) == []


def test_a_tokenizer_that_is_another_models_is_refused(parts: Path, tmp_path: Path) -> None:
    write_parts(tmp_path)
    AutoTokenizer.from_pretrained(parts / "vicuna").save_pretrained(tmp_path / "vicuna")
    trained(tmp_path / "vicuna", max_sentencepiece_length=4)
    with pytest.raises(StageError, match=r"its tokenizer\.model isn't the model of its tokenizer"):
        run(config_of(tmp_path, tmp_path / "out"))


def same_text(language_model: Path, assembled: Path, texts: list[str]) -> None:
    """Text has the log-probs that it has in the language model alone, and no row is added."""
    alone = AutoModelForCausalLM.from_pretrained(language_model)
    whole = AutoModelForImageTextToText.from_pretrained(assembled)
    after = AutoTokenizer.from_pretrained(assembled)
    assert whole.get_input_embeddings().weight.shape == alone.get_input_embeddings().weight.shape
    assert whole.get_output_embeddings().weight.shape == alone.get_output_embeddings().weight.shape
    for text in texts:
        ids = after(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            ours, theirs = (model(input_ids=ids).logits.log_softmax(-1) for model in (whole, alone))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    image = after.convert_tokens_to_ids("<image>")
    assert image == whole.config.image_token_id < whole.get_output_embeddings().weight.shape[0]
    assert after("<image>", add_special_tokens=False)["input_ids"][-1] == image


TEXTS = ["The dog is red.", "a  b\n\n\tc 狗 é 😀 12,345", "\u0000 \x7f \u0800 \U0010ffff"]


def test_a_free_row_is_taken_first(tmp_path: Path) -> None:
    write_parts(tmp_path, rows=1008)
    run(config_of(tmp_path, tmp_path / "out"))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<image>") == 1000
    same_text(tmp_path / "vicuna", tmp_path / "out", TEXTS)


def other_language_model(folder: Path, tokenizer: Tokenizer, *, rows: int | None = None) -> None:
    """Parts with a language model that has `tokenizer`."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    shape = {"hidden_size": DEEP, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    write_language_model(folder / "vicuna", fast, **shape, vocab_size=rows or len(fast))
    write_clip(folder / "clip")
    write_projector(folder / "mm_projector.bin")


def test_a_language_model_without_a_spare_token_is_refused(tmp_path: Path) -> None:
    """All bytes that text may have, and none besides."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spare = {chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(c for c in letters if c not in spare)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("<s>", "</s>")])
    other_language_model(tmp_path, tokenizer)
    with pytest.raises(StageError, match=r"all of its 245 tokens are in use, so none can stand for an image") as error:
        run(config_of(tmp_path, tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_letters_are_no_bytes(tmp_path: Path) -> None:
    """Where tokens are letters, "ÿ" is one."""
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate("abcÿ ")}, []))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("<s>", "</s>")])
    other_language_model(tmp_path, tokenizer)
    with pytest.raises(StageError, match="all of its 7 tokens are in use"):
        run(config_of(tmp_path, tmp_path / "out"))


@pytest.mark.parametrize("free", [0, 3])
def test_a_byte_level_language_model_gives_up_a_byte_or_a_free_row(free: int, tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(["<s>", "</s>"])
    other_language_model(tmp_path, tokenizer, rows=tokenizer.get_vocab_size() + free)
    run(config_of(tmp_path, tmp_path / "out"))
    image = AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<image>")
    assert image == (tokenizer.get_vocab_size() if free else tokenizer.token_to_id("ÿ"))
    same_text(tmp_path / "vicuna", tmp_path / "out", TEXTS)
    before, after = (AutoTokenizer.from_pretrained(tmp_path / folder) for folder in ("vicuna", "out"))
    for text in [*TEXTS, "ÿ þ À Á õ", *random_strings(2_000, ["the", "."])]:
        assert before(text)["input_ids"] == after(text)["input_ids"]
    formatter = load_formatter(str(tmp_path / "out"))
    assert formatter.image_token_id == image


def test_llama_3s_kind_of_byte_level(tmp_path: Path) -> None:
    """Split by a pattern first, the bytes within a sequence of pre-tokenizers."""
    tokenizer = byte_level_tokenizer(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ?[a-z]+|[0-9]{1,3}|.", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    other_language_model(tmp_path, tokenizer)
    run(config_of(tmp_path, tmp_path / "out"))
    same_text(tmp_path / "vicuna", tmp_path / "out", [*TEXTS, "ÿ"])
    before, after = (AutoTokenizer.from_pretrained(tmp_path / folder) for folder in ("vicuna", "out"))
    assert before("ÿ 12,345 dog")["input_ids"] == after("ÿ 12,345 dog")["input_ids"]
