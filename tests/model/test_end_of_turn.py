"""What is trained after an answer, for chat templates in the ways of many families.

Two oracles: the family's tokenizer on the text that its template must write, spelled out here, and transformers' own
`return_assistant_tokens_mask` on a template that says by itself what a model generates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from transformers import LlavaConfig, LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessor

from tests import tiny_models
from tests.command import call, refused
from tests.end_to_end.conftest import read_scores
from tests.model.families.base import SIGLIP, TEXT
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.model.load import load_formatter, load_model, template_fingerprint
from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.training import plan
from vig_ray.training.config import TrainConfig
from vig_ray.training.export import write_model

CONTENT = "{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}"
TRIMMED = CONTENT.replace("p.text", "p.text | trim")
LOOP, END = "{% for m in messages %}", "{% endfor %}"
ANSWER, ELSE, FI = "{% if m.role == 'assistant' %}", "{% else %}", "{% endif %}"

CHATML = LOOP + "<|im_start|>{{ m.role }}\n" + CONTENT + "<|im_end|>\n" + END
LLAMA = (
    "<|begin_of_text|>" + LOOP + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n" + TRIMMED + "<|eot_id|>" + END
)
GEMMA = (
    "<bos>" + LOOP + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n" + TRIMMED
    + "<end_of_turn>\n" + END
)  # fmt: skip
COHERE = (
    "<BOS_TOKEN>" + LOOP + "<|START_OF_TURN_TOKEN|>" + ANSWER + "<|CHATBOT_TOKEN|><|START_RESPONSE|>" + CONTENT
    + "<|END_RESPONSE|>" + ELSE + "<|USER_TOKEN|>" + CONTENT + FI + "<|END_OF_TURN_TOKEN|>" + END
)  # fmt: skip
GLM = "[gMASK]<sop>" + LOOP + "<|{{ m.role }}|>\n" + CONTENT + END
PLAIN = LOOP + "{{ m.role | upper }}: " + CONTENT + ANSWER + "{{ '\\n\\n' }}" + ELSE + "{{ '\\n' }}" + FI + END
AT_THE_END = LOOP + "<|{{ m.role }}|>" + CONTENT + END + "<|endoftext|>"
THINKING = (
    LOOP + "<|im_start|>{{ m.role }}\n" + ANSWER + "<think>\n\n</think>\n\n" + FI + CONTENT + "<|im_end|>\n" + END
)  # fmt: skip
ASKED = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
SPACED = LOOP + ANSWER + "ASSISTANT: " + CONTENT + " </s>" + ELSE + "USER: " + CONTENT + " " + FI + END

SPECIALS = {
    CHATML: ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    LLAMA: ("<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|start_header_id|>",
            "<|end_header_id|>"),
    GEMMA: ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    COHERE: ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
             "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    GLM: ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"),
    PLAIN: ("<eos>",),
    AT_THE_END: ("<|endoftext|>", "<|user|>", "<|assistant|>"),
    THINKING: ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    THINKING + ASKED: ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    SPACED: ("<s>", "</s>"),
}  # fmt: skip

TURNS = ("What is red?", "The circle, 红色 😀.", "And blue?", "A square.")


def write(
    folder: Path,
    template: str,
    *,
    eos: str,
    stops: Sequence[str] | str | None = None,
    special: bool = True,
    mark: Any = None,
) -> str:
    """All of a LLaVA but its weights; `stops`: the eos_token_id of its generation_config.json, by their texts.

    `special`: whether the tokens of the template are special ones, or ordinary words of the vocabulary.
    """
    words = SPECIALS[template]
    made = tiny_models.byte_level_tokenizer(["<image>", "<pad>", *(words if special else ())])
    if not special:
        made.add_tokens(list(words))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", extra_special_tokens={"image_token": "<image>"},
        model_max_length=4096, **({"eos_token": eos} if special else {}),
    )  # fmt: skip
    token = tokenizer.convert_tokens_to_ids
    LlavaConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        vision_config={**SIGLIP, "model_type": "siglip_vision_model"}, image_token_index=token("<image>"),
    ).save_pretrained(folder)  # fmt: skip
    LlavaProcessor(
        SiglipImageProcessor(size={"height": 56, "width": 56}), tokenizer, patch_size=14,
        vision_feature_select_strategy="full", chat_template=mark or template,
    ).save_pretrained(folder)  # fmt: skip
    if stops is not None:
        ids = token(stops) if isinstance(stops, str) else [token(stop) for stop in stops]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return str(folder)


def prompts(formatter: Any, *turns: str, images: int = 0) -> list[Prompt]:
    """A conversation's prompt in both ways."""
    conversation = [Turn(("user", "assistant")[number % 2], text) for number, text in enumerate(turns)]
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    given = [PromptImage(str(number), lambda: pixels, formatter.arrays_of) for number in range(images)]
    return [formatter.from_parts(conversation, given), formatter.as_a_whole(conversation, given)]


def said(formatter: Any, *turns: str, images: int = 0) -> list[str]:
    """What is trained in each answer; the same in both ways."""
    ours, whole = prompts(formatter, *turns, images=images)
    assert ours.token_ids.tolist() == whole.token_ids.tolist()
    assert ours.answer_positions.tolist() == whole.answer_positions.tolist()
    assert ours.turns.tolist() == whole.turns.tolist()
    assert ours.answer_chars.tolist() == whole.answer_chars.tolist()
    texts = [formatter.tokenizer.decode(ours.answer_ids[ours.turns == n].tolist()) for n in range(len(turns) // 2)]
    return [text.removeprefix(" ") for text in texts]  # the template's, in one token with the first word


class Style(NamedTuple):
    """A template, its tokenizer's eos, the stops of its generation config, and what each of two answers ends with."""

    template: str
    eos: str
    stops: Sequence[str] | str | None
    inner: str
    last: str


STYLES = {
    "ChatML": Style(CHATML, "<|im_end|>", ["<|im_end|>", "<|endoftext|>"], "<|im_end|>", "<|im_end|>"),
    "ChatML, a base model's tokenizer": Style(
        CHATML, "<|endoftext|>", ["<|im_end|>", "<|endoftext|>"], "<|im_end|>", "<|im_end|>"
    ),
    "ChatML, one number": Style(CHATML, "<|endoftext|>", "<|im_end|>", "<|im_end|>", "<|im_end|>"),
    "ChatML, no generation config": Style(CHATML, "<|im_end|>", None, "<|im_end|>", "<|im_end|>"),
    "ChatML, another end": Style(CHATML, "<|endoftext|>", None, "<|im_end|>\n", "<|im_end|>\n"),
    "Llama 3": Style(
        LLAMA, "<|end_of_text|>", ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], "<|eot_id|>", "<|eot_id|>"
    ),
    "Gemma": Style(GEMMA, "<eos>", ["<eos>", "<end_of_turn>"], "<end_of_turn>", "<end_of_turn>"),
    "Gemma, no generation config": Style(GEMMA, "<eos>", None, "<end_of_turn>\n", "<end_of_turn>\n"),
    "Cohere": Style(
        COHERE, "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", *["<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"] * 2
    ),
    "GLM": Style(GLM, "<|endoftext|>", ["<|endoftext|>", "<|user|>", "<|observation|>"], "<|user|>", ""),
    "GLM, no generation config": Style(GLM, "<|endoftext|>", None, "", ""),
    "no special token": Style(PLAIN, "<eos>", "<eos>", "\n\n", "\n\n"),
    # What both begin with, "<|", is a part of two tokens, neither of which ends both answers.
    "after the last only": Style(AT_THE_END, "<|endoftext|>", "<|endoftext|>", "", "<|endoftext|>"),
    "after the last only, no stop": Style(AT_THE_END, "<|user|>", [], "<|user|>", ""),
    "thinking": Style(THINKING, "<|im_end|>", "<|im_end|>", "<|im_end|>", "<|im_end|>"),
    "a space before it": Style(SPACED, "</s>", None, " </s>", " </s>"),
}


def test_a_generation_prompt_that_is_not_what_is_trained_is_told(tmp_path: Path) -> None:
    """A template that begins a thought where the trained answers have an empty one; what the processor writes is taken,
    in both ways."""
    formatter: Any = load_formatter(write(tmp_path, THINKING + ASKED, eos="<|im_end|>"))
    assert formatter.before_answers() == (
        "<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    )
    turns = [Turn("user", TURNS[0]), Turn("assistant", TURNS[1]), Turn("user", TURNS[2])]
    question = formatter.question(turns, [])
    formatter.by_parts = False
    assert formatter.question(turns, []).token_ids.tolist() == question.token_ids.tolist()
    said = formatter.tokenizer.decode(question.token_ids.tolist())
    assert said.endswith("And blue?<|im_end|>\n<|im_start|>assistant\n<think>\n")
    for no_question, told in ((turns[:2], "the last turn is by assistant"), ([], "no turn")):
        with pytest.raises(PromptError, match=f"Question: {told}"):
            formatter.question(no_question, [])


# At which tokens an answer ends that neither the tokenizer nor the generation config names.
ENDS = {
    "ChatML, another end": ["<|im_end|>"],
    "Gemma, no generation config": ["<end_of_turn>"],
    "after the last only, no stop": ["<|user|>"],
}


@pytest.mark.parametrize("style", STYLES)
def test_answers_end_where_the_model_stops(style: str, tmp_path: Path) -> None:
    template, eos, stops, inner, last = STYLES[style]
    formatter: Any = load_formatter(write(tmp_path, template, eos=eos, stops=stops))
    assert formatter.by_parts
    assert said(formatter, *TURNS) == [TURNS[1] + inner, TURNS[3] + last]
    assert said(formatter, "<image>" + TURNS[0], TURNS[1], images=1) == [TURNS[1] + last]
    stops_at = {formatter.tokenizer.decode([token]) for token in formatter.stop_ids}
    named = [eos, *([stops] if isinstance(stops, str) else stops or []), *ENDS.get(style, [])]
    assert stops_at == set(named)
    (line,) = formatter.told
    if inner == last:
        told = f"{inner!r} is trained after each answer" if inner else "nothing is trained after an answer"
        assert line == told
    else:
        assert line == (
            f"{repr(inner) if inner else 'nothing'} is trained after an answer, "
            f"{repr(last) if last else 'nothing'} after the last"
        )


@pytest.mark.parametrize("style", STYLES)
def test_ids_are_the_tokenizers_on_the_templates_text(style: str, tmp_path: Path) -> None:
    """Each answer's tokens by the text before and after it, of the rendered conversation."""
    template, eos, stops, inner, last = STYLES[style]
    formatter: Any = load_formatter(write(tmp_path, template, eos=eos, stops=stops))
    tokenizer = formatter.tokenizer
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": [{"type": "text", "text": text}]}
        for number, text in enumerate(TURNS)
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template)
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    expected = np.full(len(encoded["input_ids"]), -1)
    for turn, (answer, end) in enumerate([(TURNS[1], inner), (TURNS[3], last)]):
        assert text.count(answer + end) == 1
        begin = text.index(answer + end)
        for number, (first, past) in enumerate(encoded["offset_mapping"]):
            if first < begin + len(answer + end) and past > begin:
                expected[number] = turn
    for prompt in prompts(formatter, *TURNS):
        assert prompt.token_ids.tolist() == encoded["input_ids"]
        assert prompt.answer_positions.tolist() == np.flatnonzero(expected >= 0).tolist()
        assert prompt.turns.tolist() == expected[expected >= 0].tolist()


GENERATED = ANSWER + "{% generation %}" + CONTENT + "END{% endgeneration %}" + ELSE + CONTENT + "END" + FI
GENERATING = {
    CHATML: (
        LOOP + "<|im_start|>{{ m.role }}\n" + GENERATED.replace("END", "<|im_end|>") + "{{ '\\n' }}" + END,
        "<|im_end|>",
    ),
    LLAMA: (
        "<|begin_of_text|>" + LOOP + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        + GENERATED.replace("END", "<|eot_id|>") + END,
        ["<|eot_id|>", "<|eom_id|>"],
    ),
    GEMMA: (
        "<bos>" + LOOP + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        + GENERATED.replace("END", "<end_of_turn>") + "{{ '\\n' }}" + END,
        ["<eos>", "<end_of_turn>"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("template", GENERATING, ids=["ChatML", "Llama 3", "Gemma"])
def test_answers_are_what_transformers_masks(template: str, tmp_path: Path) -> None:
    """transformers tells a generated token by its first and last character, so here every answer begins one."""
    generating, stops = GENERATING[template]
    formatter: Any = load_formatter(write(tmp_path, template, eos=SPECIALS[template][0], stops=stops, mark=generating))
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": [{"type": "text", "text": text}]}
        for number, text in enumerate(TURNS)
    ]
    theirs = formatter.tokenizer.apply_chat_template(
        messages, chat_template=generating, return_assistant_tokens_mask=True, return_dict=True
    )
    for prompt in prompts(formatter, *TURNS):
        assert prompt.token_ids.tolist() == theirs["input_ids"]
        assert prompt.answer_positions.tolist() == np.flatnonzero(theirs["assistant_masks"]).tolist()


def test_answers_that_are_trimmed_end_as_others_do(tmp_path: Path) -> None:
    stops = ["<|end_of_text|>", "<|eot_id|>"]
    formatter = load_formatter(write(tmp_path, LLAMA, eos="<|end_of_text|>", stops=stops))
    assert said(formatter, "q", "  One.\n", "q", " Two. ") == ["One.<|eot_id|>", "Two.<|eot_id|>"]


@pytest.mark.parametrize("answer", ["It says <|im_end|>", "<|im_end|>", "a<|im_end|>\nb", "a <|im_end|> <|im_end|>"])
def test_answers_may_hold_the_end_themselves(answer: str, tmp_path: Path) -> None:
    formatter = load_formatter(write(tmp_path, CHATML, eos="<|im_end|>"))
    assert said(formatter, "q", answer, "q", answer) == [f"{answer}<|im_end|>"] * 2


@pytest.mark.parametrize("stops", ["<|im_end|>", ["<|endoftext|>", "<|im_end|>"]])
def test_an_end_that_is_no_special_token(stops: Any, tmp_path: Path) -> None:
    formatter = load_formatter(write(tmp_path, CHATML, eos="<|im_end|>", stops=stops, special=False))
    assert said(formatter, *TURNS) == [f"{TURNS[1]}<|im_end|>", f"{TURNS[3]}<|im_end|>"]


def test_an_end_that_is_a_word_of_the_vocabulary(tmp_path: Path) -> None:
    """It is spelled otherwise in a byte-level vocabulary than in a text: a line feed as Ċ."""
    formatter = load_formatter(write(tmp_path, PLAIN, eos="<eos>", stops=["Ċ"]))
    assert said(formatter, *TURNS) == [f"{TURNS[1]}\n", f"{TURNS[3]}\n"]


@pytest.mark.parametrize("ids", [None, -1, [-1, None], 10**6, True])
def test_a_generation_config_that_names_no_token(ids: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, CHATML, eos="<|im_end|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert said(load_formatter(folder), "q", "a") == ["a<|im_end|>"]


def test_a_template_that_takes_one_question_only(tmp_path: Path) -> None:
    once = "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}" + CHATML
    folder = write(tmp_path, CHATML, eos="<|im_end|>", mark=once)
    formatter: Any = load_formatter(folder)
    assert said(formatter, "q", "a") == ["a<|im_end|>"]
    assert formatter.told == ["'<|im_end|>' is trained after each answer"]
    with pytest.raises(PromptError, match="one question"):
        prompts(formatter, *TURNS)
    assert said(load_formatter(folder, end_of_turn="<|im_end|>\n"), "q", "a") == ["a<|im_end|>\n"]


@pytest.mark.parametrize(
    ("style", "override", "inner", "last"),
    [
        ("ChatML", "<|im_end|>\n", "<|im_end|>\n", "<|im_end|>\n"),
        ("ChatML", "", "", ""),
        ("Cohere", "<|END_RESPONSE|>", "<|END_RESPONSE|>", "<|END_RESPONSE|>"),
        ("GLM", "", "", ""),
        ("no special token", "\n", "\n", "\n"),
        ("after the last only", "<|user|>", "<|user|>", ""),
        ("a space before it", " </s>", " </s>", " </s>"),
    ],
)
def test_the_users_own(style: str, override: str, inner: str, last: str, tmp_path: Path) -> None:
    template, eos, stops, *_ = STYLES[style]
    folder = write(tmp_path, template, eos=eos, stops=stops)
    formatter = load_formatter(folder, end_of_turn=override)
    if style != "no special token":
        assert said(formatter, *TURNS) == [TURNS[1] + inner, TURNS[3] + last]
    else:  # a token counts whole
        assert [text.rstrip("\n") for text in said(formatter, *TURNS)] == [TURNS[1], TURNS[3]]
        assert all(text.endswith("\n") for text in said(formatter, *TURNS))
    others = [load_formatter(folder), load_formatter(folder, end_of_turn=override), formatter]
    assert len({template_fingerprint(each) for each in others}) == 2


@pytest.mark.parametrize("override", ["</s>", "\n", "im_end", "<|im_end|>\n<|im_start|>assistant", "?"])
def test_a_text_that_follows_no_answer_is_refused(override: str, tmp_path: Path) -> None:
    folder = write(tmp_path, CHATML, eos="<|im_end|>")
    with pytest.raises(StageError, match=r"--end-of-turn '.*': the chat template writes '<\|im_end\|>\\n") as raised:
        load_formatter(folder, end_of_turn=override)
    assert "\n" not in str(raised.value)


def test_stops_decide_the_fingerprint(tmp_path: Path) -> None:
    folder = write(tmp_path, GEMMA, eos="<eos>")
    without = template_fingerprint(load_formatter(folder))
    write(tmp_path, GEMMA, eos="<eos>", stops=["<eos>", "<end_of_turn>"])
    assert template_fingerprint(load_formatter(folder)) != without


def test_the_real_gemmas_end(tmp_path: Path) -> None:
    """Its generation config names <eos> and <end_of_turn>; its template writes a line feed after the latter."""
    tiny_models.write_gemma(str(tmp_path))
    stops = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    formatter: Any = load_formatter(str(tmp_path))
    assert formatter.tokenizer.convert_ids_to_tokens(stops) == ["<eos>", "<end_of_turn>"]
    assert said(formatter, *TURNS) == [f"{TURNS[1]}<end_of_turn>", f"{TURNS[3]}<end_of_turn>"]


def test_a_trained_model_ends_as_the_one_it_was_trained_from(tmp_path: Path) -> None:
    """Its generation config goes with it: what transformers makes of the config alone has fewer ids."""
    base, out = str(tmp_path / "base"), str(tmp_path / "out")
    tiny_models.write_gemma(base)
    write_model(load_model(base, dtype="float32", device="cpu").state_dict(), base, "auto", out, "float32", ())
    formatter = load_formatter(out)
    assert said(formatter, *TURNS) == [f"{TURNS[1]}<end_of_turn>", f"{TURNS[3]}<end_of_turn>"]
    assert template_fingerprint(formatter) == template_fingerprint(load_formatter(base))


@pytest.mark.long
def test_by_the_commands(tmp_path: Path, qwen_checkpoint: str, local_ray: None) -> None:
    """'' is nothing, and not nothing said; training goes by what the scores were made with."""
    out, data = str(tmp_path), world.write(str(tmp_path / "data"), 8, seed=5)
    line = ("--data", data, "--model", qwen_checkpoint, "--out", out, "--dtype", "float32", "--reference", "blind")
    assert "--end-of-turn '</s>'" in refused("score", *line, "--end-of-turn", "</s>")
    call("score", *line, "--workers", "1", "--prepare-workers", "1", "--end-of-turn", "")
    told = call("score", *line, status=2).stderr.strip().splitlines()
    assert told[0].endswith(": '<|im_end|>' is trained after each answer")
    assert told[-1].startswith("vig: ")
    tokenizer = load_formatter(qwen_checkpoint).tokenizer
    rows = read_scores(tmp_path)
    assert [row["error"] for row in rows] == [None] * 8
    assert not any("<|im_end|>" in tokenizer.decode(row["token_ids"]) for row in rows)
    call("select", "--scores", out, "--p", "60", "--out", out)
    given = {"model": qwen_checkpoint, "samples": f"{out}/samples", "selection": f"{out}/selection", "max_steps": 1}
    for option, expected in ((None, ""), ("<|im_end|>", "<|im_end|>")):
        config = TrainConfig(**given, out=f"{out}/trained", end_of_turn=option)
        assert plan.check(config).prompts.end_of_turn == expected


def test_it_is_not_for_llavas_own_prompt() -> None:
    with pytest.raises(StageError, match=r"--end-of-turn: LLaVA-1\.5's is </s>"):
        load_formatter(CHECKPOINT, end_of_turn="</s>")
