"""Which token of the text-only prompt is each answer token's, where templates and tokenizers put ends together."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from tests import tiny_models
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.model.messages import placed
from vig_ray.model.prompt import Prompt
from vig_ray.model.text_only import TextOnly
from vig_ray.scoring import text_pass
from vig_ray.scoring.text_prepare import _as_placed


class Rendered:
    """A prompt's answer tokens, as a formatter tells them."""

    def __init__(self, tokenizer: Any, text: str, answer: str) -> None:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, chars = np.array(encoded["input_ids"], np.int32), np.array(encoded["offset_mapping"]).reshape(-1, 2)
        self.prompt = Prompt.marked(
            np.concatenate([[0], ids]).astype(np.int32),
            np.concatenate([[-1], np.zeros(len(ids))]).astype(np.int32),
            image_token_id=-1, image_spans=[], images=[], answers={0: (0, len(answer))},
            offsets=np.concatenate([np.zeros((1, 2), np.int64), chars]),
        )  # fmt: skip


def test_a_newline_that_is_one_token_with_the_captions_last_characters() -> None:
    """It takes the log-probs of these characters and of the end of the text."""
    tokenizer = tiny_models.byte_level(["<|end|>"], eos="<|end|>")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    dot, newline = ".", tokenizer.convert_ids_to_tokens(tokenizer("\n")["input_ids"])[0]
    state["model"]["vocab"][dot + newline] = max(state["model"]["vocab"].values(), default=0) + 100
    state["model"]["merges"].insert(0, [dot, newline])
    tokenizer.backend_tokenizer.model = Tokenizer.from_str(json.dumps(state)).model
    # As Llama 3's and Qwen's: what ends a line goes with the signs before it.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?[^\sA-Za-z]+[\r\n]*|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    for caption, joined in (("A red circle.", 2), ("A red circle", 1)):
        prompt = Rendered(tokenizer, caption + "\n", caption).prompt
        text = TextOnly(tokenizer, max_length=99).prompt([Turn("user", ""), Turn("assistant", caption)])
        turns = [Turn("user", ""), Turn("assistant", caption)]
        if joined == 1:
            assert text_pass.counterparts(text, prompt, turns) is not None
            continue
        assert text_pass.counterparts(text, prompt, turns) is None
        found = text_pass.joined_ends(text, prompt, turns)
        assert found is not None
        logp_U = -np.arange(1.0, len(text.answer_ids) + 1, dtype=np.float32)
        row = {"onto_chars": found[1].reshape(-1), "turn": prompt.turns}
        values, exact = text_pass.carried(logp_U, found[0], row)
        assert values.tolist() == [*logp_U[:-2].tolist(), float(logp_U[-2:].sum())]
        assert exact == len(values) == len(logp_U) - 1


@pytest.mark.parametrize("trims", [False, True])
def test_spaces_at_the_end_of_an_answer_that_a_template_trims(trims: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    said = "A red circle. \n"
    kept = said.strip() if trims else said
    rendered = f"{kept}{tokenizer.eos_token}"
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    prompt = Prompt.marked(
        np.array([0, *encoded["input_ids"]], np.int32), np.array([-1, *[0] * len(encoded["input_ids"])], np.int32),
        image_token_id=-1, image_spans=[], images=[], answers={0: placed(rendered, 0, said)},
        offsets=np.array([(0, 0), *encoded["offset_mapping"]]),
    )  # fmt: skip
    assert prompt.answer_chars[-1].tolist() == [len(kept)] * 2
    turns = _as_placed([Turn("user", "?"), Turn("assistant", said)], prompt)
    assert turns[1].text == kept
    text = TextOnly(tokenizer, max_length=99).prompt(turns)
    assert text_pass.counterparts(text, prompt, turns) is not None
