"""Prompts and answer masks, checked against the text that they cover and against LLaVA's template by hand."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import tiny_models
from vig_ray.dataset.schema import Turn
from vig_ray.model.chat_template import LLAVA_V1
from vig_ray.model.llava import LlavaFormatter, pad_to_square, render
from vig_ray.model.load import load_formatter
from vig_ray.model.prompt import PromptError, PromptImage, truncate

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CLIP = SimpleNamespace(
    crop_size={"height": 56, "width": 56},
    image_mean=[0.48145466, 0.4578275, 0.40821073],
    image_std=[0.26862954, 0.26130258, 0.27577711],
    resample=3,
)
KINDS = ("first", "always", "legacy", "bytes")


def llava(kind: str, **options: int) -> LlavaFormatter:
    tokenizer = tiny_models.sentencepiece_like(kind)
    image = tokenizer.convert_tokens_to_ids("<image>")
    return LlavaFormatter(tokenizer, CLIP, image_token_id=image, num_image_tokens=16, **options)


FORMATTERS = {kind: llava(kind) for kind in KINDS}


def picture(key: str, formatter: object, size: tuple[int, int] = (60, 40)) -> PromptImage:
    return PromptImage(key, lambda: np.full((size[1], size[0], 3), 200, np.uint8), formatter.preprocess)


def covered(prompt, tokenizer) -> dict[int, str]:
    """What the marked tokens of each turn say."""
    said = {}
    for turn in sorted(set(prompt.turns.tolist())):
        ids = [int(i) for i, t in zip(prompt.answer_ids, prompt.turns, strict=True) if t == turn]
        said[turn] = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return said


def test_one_turn_to_the_letter() -> None:
    text, spans, *_ = render([Turn("user", "<image>\nWhat is it?"), Turn("assistant", "A cat.")], 1)
    assert text == SYSTEM + " USER: <image>\nWhat is it? ASSISTANT: A cat.</s>"
    assert [text[a:b] for a, b, _ in spans] == [" A cat.</s>"]


def test_two_turns_have_no_space_after_the_end_of_sequence() -> None:
    turns = [Turn("user", "q1"), Turn("assistant", "a1"), Turn("user", "q2"), Turn("assistant", "a2")]
    text, spans, _, untrained, _ = render(turns, 0)
    assert not untrained
    assert text == SYSTEM + " USER: q1 ASSISTANT: a1</s>USER: q2 ASSISTANT: a2</s>"
    assert [(text[a:b], turn) for a, b, turn in spans] == [(" a1</s>", 0), (" a2</s>", 1)]


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("What?\n<image>", "<image>\nWhat?"),
        ("<image>\nWhat?", "<image>\nWhat?"),
        ("  See <image> here ", "<image>\nSee  here"),
        ("<image><image> Compare.", "<image>\n<image>\nCompare."),
        (" no image ", " no image "),
        (" <image> ", "<image>"),
    ],
)
def test_images_move_to_the_front_of_their_turn(given_text: str, expected: str) -> None:
    text = render([Turn("user", given_text), Turn("assistant", "a")], given_text.count("<image>")).text
    assert text == f"{SYSTEM} USER: {expected} ASSISTANT: a</s>"


def test_leading_assistant_turn_is_skipped_and_turns_keep_their_numbers() -> None:
    text, spans, *_ = render([Turn("assistant", "Hi!"), Turn("user", "q"), Turn("assistant", "a")], 0)
    assert text == SYSTEM + " USER: q ASSISTANT: a</s>"
    assert [turn for _, _, turn in spans] == [1]


def test_system_turn_replaces_the_system_prompt() -> None:
    text, _, _, untrained, _ = render([Turn("system", "Be brief."), Turn("user", "q"), Turn("assistant", "a")], 0)
    assert untrained  # LLaVA's code doesn't know that role
    assert text == "Be brief. USER: q ASSISTANT: a</s>"


def test_a_trailing_question_is_not_in_the_prompt() -> None:
    text, _, _, untrained, _ = render([Turn("user", "q"), Turn("assistant", "a"), Turn("user", "unanswered")], 0)
    assert untrained
    assert text.endswith("a</s>")


@pytest.mark.parametrize(
    "turns",
    [
        [Turn("user", "q"), Turn("user", "q")],
        [Turn("user", "q"), Turn("assistant", "a"), Turn("assistant", "b")],
        [Turn("user", "q")],
        [Turn("assistant", "a")],
        [],
    ],
)
def test_conversations_that_llava_cannot_train_on(turns: list[Turn]) -> None:
    with pytest.raises(PromptError):
        render(turns, 0)


words = st.text(st.characters(codec="utf-8", exclude_characters="<>|\ue0f0\ue0f1"), min_size=1, max_size=30).filter(
    lambda text: text.strip() != ""
)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    exchanges=st.lists(st.tuples(words, words), min_size=1, max_size=3),
    with_image=st.booleans(),
)
def test_mask_covers_answers_and_their_end_and_nothing_else(kind, exchanges, with_image) -> None:
    formatter = FORMATTERS[kind]
    turns = []
    for index, (question, answer) in enumerate(exchanges):
        image = "<image>\n" if with_image and index == 0 else ""
        turns += [Turn("user", image + question), Turn("assistant", answer)]
    prompt = formatter.prompt(turns, [picture("p", formatter)] if with_image else [])
    said = covered(prompt, formatter.tokenizer)
    assert sorted(said) == list(range(len(exchanges)))
    for turn, (_, answer) in enumerate(exchanges):
        # The separator's space belongs to the answer's first token; a decoder drops or keeps it.
        assert said[turn].removeprefix(" ") in (f"{answer}</s>", f"{answer}</s>".removeprefix(" "))
    assert (prompt.answer_ids == formatter.tokenizer.eos_token_id).sum() == len(exchanges)
    assert prompt.image_mask.sum() == (16 if with_image else 0)
    assert (np.diff(prompt.answer_positions) > 0).all()
    assert prompt.answer_positions[0] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_tokenised_by_themselves_after_one_bos(kind: str) -> None:
    """LLaVA's `tokenizer_image_token`: the text before and after an image are separate strings to the tokenizer."""
    formatter = FORMATTERS[kind]
    prompt = formatter.prompt(
        [Turn("user", "<image>\nRed?"), Turn("assistant", "The left.")], [picture("p", formatter)]
    )
    plain = formatter.tokenizer.backend_tokenizer.encode
    before = plain(SYSTEM + " USER: ", add_special_tokens=False).ids
    after = plain("\nRed? ASSISTANT: The left.</s>", add_special_tokens=False).ids
    image = [formatter.image_token_id] * 16
    assert prompt.token_ids.tolist() == [formatter.tokenizer.bos_token_id, *before, *image, *after]


def test_number_of_images_must_match() -> None:
    formatter = FORMATTERS["first"]
    turns = [Turn("user", "<image>\nWhat?"), Turn("assistant", "a")]
    with pytest.raises(PromptError, match="1 <image> in the text, but 0 images"):
        formatter.prompt(turns, [])
    with pytest.raises(PromptError, match="1 <image> in the text, but 2 images"):
        formatter.prompt(turns, [picture("a", formatter), picture("b", formatter)])


def test_truncation_keeps_a_prefix_and_tells_what_it_cut() -> None:
    formatter = FORMATTERS["first"]
    turns = [
        Turn("user", "<image>\nWhat?"),
        Turn("assistant", "The circle is red."),
        Turn("user", "q"),
        Turn("assistant", "left"),
    ]
    whole = formatter.prompt(turns, [picture("p", formatter)])
    limit = int(whole.answer_positions[3])
    cut = truncate(whole, limit)
    assert cut.token_ids.tolist() == whole.token_ids[:limit].tolist()
    assert cut.answer_positions.tolist() == whole.answer_positions[:3].tolist()
    assert cut.truncated == len(whole.answer_positions) - 3
    assert truncate(whole, len(whole.token_ids)) is whole
    with pytest.raises(PromptError, match="leaves no answer"):
        truncate(whole, int(whole.answer_positions[0]))


def test_a_limit_within_an_image_leaves_it_out_with_all_that_follows() -> None:
    formatter = FORMATTERS["legacy"]
    turns = [Turn("user", "<image>q"), Turn("assistant", "red"), Turn("user", "<image>"), Turn("assistant", "left")]
    whole = formatter.prompt(turns, [picture("p", formatter), picture("q", formatter)])
    (first, _), (begin, end) = whole.image_spans
    cut = truncate(whole, int(end) - 1)
    assert cut.token_ids.tolist() == whole.token_ids[:begin].tolist()
    assert [image.key for image in cut.images] == ["p"]
    assert cut.image_spans.tolist() == whole.image_spans[:1].tolist()
    assert set(cut.turns.tolist()) == {0}
    with pytest.raises(PromptError, match="leaves no answer"):
        truncate(whole, int(first) + 3)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (50, 50), (101, 2), (3, 200)])
def test_image_is_padded_with_the_mean_and_resized_as_transformers_does(size: tuple[int, int]) -> None:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    formatter = FORMATTERS["first"]
    theirs = LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_pad=True)(
        images=[Image.fromarray(pixels)], return_tensors="pt"
    )["pixel_values"]
    import torch

    ours = formatter.collate([formatter.preprocess(pixels)], "cpu", torch.float32)["pixel_values"]
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-6)


def test_padding_is_centred_and_has_llavas_color() -> None:
    square = pad_to_square(np.zeros((2, 5, 3), np.uint8), (122, 116, 104))
    assert square.shape == (5, 5, 3)
    assert (square[1:3] == 0).all()
    assert (square[[0, 3, 4]] == (122, 116, 104)).all()
    tall = pad_to_square(np.zeros((5, 2, 3), np.uint8), (122, 116, 104))
    assert (tall[:, 1:3] == 0).all()
    assert (tall[:, [0, 3, 4]] == (122, 116, 104)).all()


def test_pickling_keeps_inputs_and_sharing_but_not_pixels() -> None:
    formatter = FORMATTERS["first"]
    image = picture("p", formatter, size=(2000, 1500))
    prompt = formatter.prompt([Turn("user", "<image>\nq"), Turn("assistant", "a")], [image])
    data = pickle.dumps((prompt, prompt), protocol=5)
    assert len(data) < 20_000
    one, other = pickle.loads(data)
    assert one.images[0] is other.images[0]
    assert one.images[0].key == "p"
    np.testing.assert_array_equal(one.images[0].inputs["pixel_values"], image.inputs["pixel_values"])


def test_chat_template_of_exports_says_what_render_says() -> None:
    formatter = FORMATTERS["legacy"]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ]
    turns = [Turn("user", "What?<image>"), Turn("assistant", "A cat."), Turn("user", "Why?"), Turn("assistant", "So.")]
    expected = render(turns, 1).text
    assert formatter.tokenizer.apply_chat_template(messages, chat_template=LLAVA_V1, tokenize=False) == expected


# A checkpoint's own chat template


@pytest.fixture(scope="module")
def qwen(qwen_checkpoint: str):
    return load_formatter(qwen_checkpoint)


@settings(max_examples=40)
@given(exchanges=st.lists(st.tuples(words, words), min_size=1, max_size=3), images=st.integers(0, 2))
def test_chat_mask_covers_answers_and_their_end(qwen, exchanges, images) -> None:
    turns = []
    for index, (question, answer) in enumerate(exchanges):
        turns += [Turn("user", ("<image>" * images if index == 0 else "") + question), Turn("assistant", answer)]
    shown = [picture(f"p{i}", qwen, size=(60 + 40 * i, 80)) for i in range(images)]
    prompt = qwen.prompt(turns, shown)
    said = covered(prompt, qwen.tokenizer)
    assert said == {turn: f"{answer}<|im_end|>" for turn, (_, answer) in enumerate(exchanges)}


def test_chat_prompt_is_what_the_model_was_made_for(qwen) -> None:
    turns = [Turn("user", "<image>Red?"), Turn("assistant", "Yes.")]
    image = picture("p", qwen, size=(120, 80))
    prompt = qwen.prompt(turns, [image])
    grid = image.inputs["image_grid_thw"][0]
    tokens = int(grid.prod()) // 4
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * tokens
        + "<|vision_end|>Red?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    )
    assert prompt.token_ids.tolist() == qwen.tokenizer(text)["input_ids"]
    assert prompt.image_mask.sum() == tokens


def test_an_answer_that_repeats_the_question_is_told_apart(qwen) -> None:
    turns = [Turn("user", "The circle is red."), Turn("assistant", "The circle is red.")]
    prompt = qwen.prompt(turns, [])
    text = qwen.tokenizer.decode(prompt.token_ids[: prompt.answer_positions[0]])
    assert text.endswith("<|im_start|>assistant\n")
    assert covered(prompt, qwen.tokenizer) == {0: "The circle is red.<|im_end|>"}


def test_a_template_that_trims_answers_is_followed(qwen, monkeypatch: pytest.MonkeyPatch) -> None:
    trimming = qwen.processor.chat_template.replace("{{ p.text }}", "{{ p.text | trim }}")
    monkeypatch.setattr(qwen.processor, "chat_template", trimming)
    prompt = qwen.prompt([Turn("user", "q"), Turn("assistant", "  yes \n")], [])
    assert covered(prompt, qwen.tokenizer) == {0: "yes<|im_end|>"}


def test_a_template_that_rewrites_answers_is_refused(qwen, monkeypatch: pytest.MonkeyPatch) -> None:
    upper = qwen.processor.chat_template.replace("{{ p.text }}", "{{ p.text | upper }}")
    monkeypatch.setattr(qwen.processor, "chat_template", upper)
    with pytest.raises(PromptError, match="rewrites"):
        qwen.prompt([Turn("user", "q"), Turn("assistant", "yes")], [])


ANSWERS = st.text(alphabet="ab é😀红.\n", min_size=1, max_size=12).filter(lambda text: text.strip())


@pytest.mark.parametrize("kind", KINDS)
@given(answers=st.lists(ANSWERS, min_size=1, max_size=3), image=st.booleans())
@settings(max_examples=60)
def test_characters_of_answer_tokens_in_their_turns(kind: str, answers: list[str], image: bool) -> None:
    """Each turn's tokens cover its text from end to end, in order, and the end-of-turn token nothing, at its end."""
    formatter = FORMATTERS[kind]
    turns = []
    for index, answer in enumerate(answers):
        turns += [Turn("user", "<image>Why?" if image and not index else "Why?"), Turn("assistant", answer)]
    prompt = formatter.prompt(turns, [picture("p", formatter)] if image else [])
    assert prompt.answer_chars.shape == (len(prompt.answer_positions), 2)
    for turn, answer in enumerate(answers):
        own = prompt.answer_chars[prompt.turns == turn]
        assert own[-1].tolist() == [len(answer)] * 2
        covered_ = set()
        for first, past in own[:-1].tolist():
            assert 0 <= first <= past <= len(answer)
            covered_ |= set(range(first, past))
        assert covered_ >= {place for place, letter in enumerate(answer) if letter != " "}
        assert (np.diff(own[:, 0]) >= 0).all()


def test_characters_under_a_template_that_trims(gemma_checkpoint: str) -> None:
    formatter = load_formatter(gemma_checkpoint)
    turns = [Turn("user", "Why?"), Turn("assistant", "  The circle is red. ")]
    prompt = formatter.prompt(turns, [])
    text = turns[1].text
    words = [text[a:b] for a, b in prompt.answer_chars.tolist()]
    assert "".join(words).strip() == text.strip()
    assert prompt.answer_chars[0, 0] == 2


def test_characters_under_a_chat_template(qwen_checkpoint: str) -> None:
    formatter = load_formatter(qwen_checkpoint)
    turns = [Turn("user", "<image>Why?"), Turn("assistant", "Où? 😀 Red.")]
    prompt = formatter.prompt(turns, [picture("p", formatter)])
    first, *_, last = prompt.answer_chars.tolist()
    assert first[0] == 0
    assert last == [len(turns[1].text)] * 2
    assert truncate(prompt, len(prompt.token_ids) - 4).answer_chars.tolist() == prompt.answer_chars.tolist()[: -(4 - 1)]
