"""The plain prompt is LLaVA's own, token by token; and Fuyu's is what its processor makes of an image."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from tests.model.llava_rules import BOS, IMAGE, SlowTokens, small_model
from tests.model.own_parts import write_language_model, write_siglip
from tests.model.test_llava_rules import CLIP
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model.assemble import AssembleConfig, run
from vig_ray.model.llava import LlavaFormatter
from vig_ray.model.load import load_formatter, load_model, template_fingerprint
from vig_ray.model.plain import PlainFormatter
from vig_ray.model.prompt import PromptError, PromptImage
from vig_ray.model.sentencepiece import fast_tokenizer
from vig_ray.scoring.engines.check import make_sure
from vig_ray.scoring.engines.torch import TorchEngine

CAPTIONS = (
    "a red circle",
    " a space in front, and one behind ",
    "Two lines\nand a tab\t.",
    "\nit begins with one",
    "ends with a newline\n",
    "Où est le café? 红色的圆 😀",
    "\u2581 SentencePiece's own space",
    "</s> in its midst </s>",
    "x",
)


def picture(size: tuple[int, int] = (40, 30), seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def captioned(formatter: Any, caption: str, question: str = "<image>\nWrite a caption.", **of: Any) -> Any:
    pixels = picture(**of)
    image = PromptImage(f"{of}", lambda: pixels, formatter.preprocess)
    return formatter.prompt([Turn("user", question), Turn("assistant", caption)], [image])


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "not legacy"])
def test_ids_and_labels_are_those_of_llavas_preprocess_plain(legacy: bool, tmp_path: Path) -> None:
    """By SentencePiece alone: `<image>` and the caption and its end as one text, the pieces of which are tokenised by
    themselves; no label on as many ids as `<image>` alone has."""
    model = str(small_model(tmp_path))
    slow = SlowTokens(sentencepiece.SentencePieceProcessor(model_file=model), legacy=legacy)
    tokenizer = fast_tokenizer(model, legacy=legacy)
    mark = tokenizer.convert_tokens_to_ids("<image>")
    formatter = PlainFormatter(LlavaFormatter(tokenizer, CLIP, image_token_id=mark, num_image_tokens=5))
    for caption in CAPTIONS:
        ids = slow.around_images(f"<image>{caption}\n")
        unlabelled = len(slow.around_images("<image>"))
        assert unlabelled == 2
        expected = [each for token in ids for each in ([mark] * 5 if token == IMAGE else [token])]
        prompt = captioned(formatter, caption)
        assert prompt.token_ids.tolist() == expected, caption
        assert prompt.answer_positions.tolist() == list(range(unlabelled + 4, len(expected))), caption
        assert prompt.image_spans.tolist() == [[1, 6]]
        assert prompt.turns.tolist() == [0] * len(prompt.turns)
        question = formatter.question([Turn("user", "What is it? <image>")], prompt.images)
        assert question.token_ids.tolist() == expected[:6]
        assert (question.image_spans.tolist(), len(question.answer_positions)) == ([[1, 6]], 0)
        assert tokenizer.decode(ids[-1]) == "\n"
        assert ids[-1] in formatter.stop_ids
        assert captioned(formatter, caption, "What is it? <image>").token_ids.tolist() == expected
        alone = formatter.prompt([Turn("assistant", caption)], [])
        assert alone.token_ids.tolist() == slow(caption)
        assert alone.token_ids[0] == BOS
        assert alone.answer_positions.tolist() == list(range(1, len(alone.token_ids)))
        assert formatter.prompt([Turn("user", " \n"), Turn("assistant", caption)], []).answer_ids.tolist() == (
            alone.answer_ids.tolist()
        )


def tokenizer_image_token(text: str, tokenizer: Any) -> list[int]:
    """LLaVA's rule for any tokenizer: the first piece's BOS is the whole's, each other piece's is dropped."""
    pieces = [tokenizer(piece).input_ids for piece in text.split("<image>")]
    begins = int(bool(pieces[0]) and pieces[0][0] == tokenizer.bos_token_id)
    ids = pieces[0][:begins]
    for number, piece in enumerate(pieces):
        ids += [IMAGE] * (number > 0) + piece[begins:]
    return ids


@pytest.mark.parametrize("bos", [None, "<s>"])
def test_any_language_models_tokens_follow_the_same_rule(bos: str | None, tmp_path: Path) -> None:
    write_language_model(tmp_path / "language", "llama" if bos else "qwen2", bos=bos)
    write_siglip(tmp_path / "siglip")
    run(
        AssembleConfig(
            language_model=str(tmp_path / "language"), vision_tower=str(tmp_path / "siglip"), projector="random",
            out=str(tmp_path / "model"), dtype="float32",
        )
    )  # fmt: skip
    formatter = load_formatter(str(tmp_path / "model"), "plain")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "language")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    for caption in CAPTIONS:
        ids = tokenizer_image_token(f"<image>{caption}\n", tokenizer)
        unlabelled = len(tokenizer_image_token("<image>", tokenizer))
        mark = processor.image_token_id
        expected = [each for token in ids for each in ([mark] * 4 if token == IMAGE else [token])]
        prompt = captioned(formatter, caption)
        assert prompt.token_ids.tolist() == expected
        assert prompt.answer_positions.tolist() == list(range(unlabelled + 3, len(expected)))
        alone = formatter.prompt([Turn("assistant", caption)], [])
        assert alone.token_ids.tolist() == tokenizer(caption).input_ids
        assert alone.answer_positions.tolist() == list(range(1, len(alone.token_ids)))
    # Its numbers: by transformers' own processor and forward.
    model = load_model(str(tmp_path / "model"), dtype="float32", device="cpu")
    engine = TorchEngine(model, formatter.collate)
    make_sure(engine, str(tmp_path / "model"), formatter)
    inputs = processor(images=[Image.fromarray(picture())], text="<image>a red circle\n", return_tensors="pt")
    prompt = captioned(formatter, "a red circle")
    assert prompt.token_ids.tolist() == inputs["input_ids"][0].tolist()
    with torch.no_grad():
        logp = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")(**inputs).logits[0].log_softmax(-1)
    places = prompt.answer_positions.tolist()
    expected = [logp[place - 1, inputs["input_ids"][0, place]].item() for place in places]
    assert engine.logprobs([prompt])[0] == pytest.approx(expected, abs=1e-5)


USER, SAYS = Turn("user", "<image>\nWhat?"), Turn("assistant", "A circle.")


@pytest.mark.parametrize(
    ("turns", "images", "told"),
    [
        ([USER, SAYS, Turn("user", "And?"), SAYS], 1, "Template: the plain prompt takes a question and its answer"),
        (
            [Turn("system", "x"), SAYS],
            0,
            "Template: the plain prompt takes a question and its answer, a caption; turns: s",
        ),
        ([USER], 1, "turns: user"),
        ([], 0, "turns: none"),
        ([USER, Turn("assistant", " ")], 1, "EmptyAnswer: assistant turn 0"),
        ([USER, Turn("assistant", "an <image>")], 1, "ImageInAnswer: assistant turn 0"),
        ([Turn("user", "What?"), SAYS], 1, "ImageCount: 0 <image> in the question, and 1 images"),
        ([Turn("user", "<image><image>"), SAYS], 2, "ImageCount: 2 <image> in the question, and 2 images"),
        ([USER, SAYS], 0, "ImageCount: 1 <image> in the question, and 0 images"),
        ([SAYS], 1, "ImageCount: 0 <image> in the question, and 1 images"),
        ([Turn("user", "What?"), SAYS], 0, "Template: a question without an image, which the plain prompt would drop"),
    ],
)
def test_what_is_no_caption_is_its_rows_error(turns: list[Turn], images: int, told: str) -> None:
    formatter = load_formatter(CHECKPOINT, "plain")
    given = [PromptImage(str(number), picture, formatter.preprocess) for number in range(images)]
    with pytest.raises(PromptError) as refused:
        formatter.prompt(turns, given)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("turns", "images", "told"),
    [
        ([USER, SAYS], 1, "Question: the last turn is by assistant; an answer follows a user's turn"),
        ([], 0, "Question: no turn"),
        ([USER, SAYS, USER], 1, "Template: the plain prompt takes one question, not 3 turns"),
        ([USER], 0, "ImageCount: 1 <image> in the question, and 0 images"),
        ([Turn("user", "What?")], 0, "Template: a question without an image"),
    ],
)
def test_what_no_caption_can_follow_is_its_rows_error(turns: list[Turn], images: int, told: str) -> None:
    formatter = load_formatter(CHECKPOINT, "plain")
    given = [PromptImage(str(number), picture, formatter.preprocess) for number in range(images)]
    with pytest.raises(PromptError) as refused:
        formatter.question(turns, given)
    assert told in str(refused.value)
    assert formatter.question([Turn("user", "")], []).token_ids.tolist() == [formatter.tokenizer.bos_token_id]


def test_the_template_is_in_the_fingerprint_and_other_families_are_refused(qwen_checkpoint: str) -> None:
    plain, usual = load_formatter(CHECKPOINT, "plain"), load_formatter(CHECKPOINT)
    assert template_fingerprint(plain) != template_fingerprint(usual)
    pixels = picture()
    ours, theirs = (each.preprocess(pixels)["pixel_values"] for each in (plain, usual))
    assert np.array_equal(ours, theirs)
    assert plain.mean == usual.mean
    with pytest.raises(StageError, match=r"--end-of-turn: a caption of --template plain ends with a newline"):
        load_formatter(CHECKPOINT, "plain", end_of_turn="</s>")
    with pytest.raises(StageError, match=r"--template plain is for .* this is a 'qwen2_5_vl'$"):
        load_formatter(qwen_checkpoint, "plain")


def test_fuyus_caption_follows_what_its_processor_makes_of_an_image(tmp_path: Path) -> None:
    importlib.import_module("tests.model.families.fuyu").make(str(tmp_path))
    formatter = load_formatter(str(tmp_path), "plain")
    processor = AutoProcessor.from_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    engine = TorchEngine(load_model(str(tmp_path), dtype="float32", device="cpu"), formatter.collate)
    make_sure(engine, str(tmp_path), formatter)
    prompts, expected = [], []
    for number, size in enumerate([(60, 60), (31, 59), (200, 90), (20, 20)]):
        given = processor(images=[Image.fromarray(picture(size, number))], text="", return_tensors="pt")
        caption = processor.tokenizer("A red circle.\n", add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat([given["input_ids"], caption], 1)
        prompt = captioned(formatter, "A red circle.", size=size, seed=number)
        assert prompt.token_ids.tolist() == ids[0].tolist()
        assert prompt.answer_positions.tolist() == list(range(given["input_ids"].shape[1], ids.shape[1]))
        asked = formatter.question([Turn("user", "<image>")], prompt.images)
        assert asked.token_ids.tolist() == given["input_ids"][0].tolist()
        assert int(prompt.image_mask.sum()) == given["image_patches"].reshape(-1, 2700).shape[0]
        with torch.no_grad():
            logp = model(input_ids=ids, image_patches=given["image_patches"]).logits[0].log_softmax(-1)
        expected += [logp[place - 1, ids[0, place]].item() for place in prompt.answer_positions]
        prompts.append(prompt)
    alone = formatter.prompt([Turn("assistant", "A text.")], [])
    assert alone.token_ids[0] == processor.tokenizer.bos_token_id
    assert np.concatenate(engine.logprobs(prompts)) == pytest.approx(expected, abs=1e-5)
