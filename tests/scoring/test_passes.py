"""Rows of several passes: what each gives, what is left where one fails, and the table's columns."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.scoring.prompts import ask, picture
from vig_ray.dataset.schema import Turn
from vig_ray.errors import StageError
from vig_ray.model.prompt import Prompt, PromptError
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.prepare import make_passes, prepare
from vig_ray.scoring.schema import prepared_schema, scores_schema
from vig_ray.scoring.score import run_passes, score_rows
from vig_ray.tables.passes import View, references_of

IDS = np.array([1, 7, 8], dtype=np.int32)
PROMPT = Prompt(IDS, np.array([1, 2]), np.array([0, 0]), IDS == 0, np.zeros((0, 2), np.int32), ())


class Told:
    """An engine that gives the next of these outcomes for each prompt."""

    description = "told"

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes, self.calls = list(outcomes), 0

    def logprobs(self, prompts: Any) -> Any:
        self.calls += 1
        given, self.outcomes = self.outcomes[: len(prompts)], self.outcomes[len(prompts) :]
        return [np.full(2, one, np.float32) if isinstance(one, float) else one for one in given]


def row(prompts: Any, **more: Any) -> dict[str, Any]:
    fields = {"sample_key": "made/0", "token_ids": [7, 8], "turn": [0, 0], "prompts": prompts}
    return dict.fromkeys(prepared_schema().names) | fields | more


def scored(engine: Told, *prompts: Any, names: Any = ("clean", "blur", "no-image")) -> dict[str, Any]:
    (found,) = score_rows(engine, [row(prompts)], names)
    (stored,) = pa.Table.from_pylist([found], schema=scores_schema(names[1:])).to_pylist()
    return stored  # type: ignore[no-any-return]


def test_every_pass_has_its_columns_and_vig_is_of_the_first_reference() -> None:
    engine = Told(-1.0, -1.5, -4.0)
    found = scored(engine, PROMPT, PROMPT, PROMPT)
    assert engine.calls == 1
    assert (found["clean_loss"], found["blur_loss"], found["no_image_loss"], found["vig"]) == (1.0, 1.5, 4.0, 0.5)
    assert found["no_image_logprobs"] == [-4.0, -4.0]
    assert (found["num_answer_tokens"], found["error"]) == (2, None)


@pytest.mark.parametrize(
    ("outcomes", "error", "valid"),
    [
        ((-1.0, -2.0, PromptError("Hidden", "can't")), "No-image: Hidden: can't", {"clean", "blur", "vig"}),
        ((-1.0, PromptError("Blur", "can't"), -2.0), "Blur: can't", {"clean", "no_image"}),
        ((PromptError("Odd", "it is"), -1.0, -2.0), "Odd: it is", {"blur", "no_image"}),
        ((-1.0, float("-inf"), -2.0), "Blur: NotFinite: ", {"clean", "no_image"}),
        ((float("nan"),) * 3, "NotFinite: log-probs overflow; --dtype bfloat16 or float32 has the range", set()),
        ((-1.0, PromptError("A", "x"), PromptError("B", "y")), "Blur: A: x; No-image: B: y", {"clean"}),
    ],
)
def test_a_pass_that_fails_leaves_what_the_others_gave(outcomes: Any, error: str, valid: set[str]) -> None:
    found = scored(Told(*outcomes), PROMPT, PROMPT, PROMPT)
    assert found["error"].startswith(error)
    for name in ("clean", "blur", "no_image"):
        for column in ("loss", "logprobs"):
            assert (found[f"{name}_{column}"] is not None) == (name in valid)
    assert (found["vig"] is not None) == ("vig" in valid)


def test_a_pass_without_a_prompt_is_not_run() -> None:
    engine = Told(-1.0, -3.0)
    found = scored(engine, PROMPT, PromptError("Small", "it is"), PROMPT)
    assert (found["clean_loss"], found["blur_loss"], found["no_image_loss"]) == (1.0, None, 3.0)
    assert found["error"] == "Blur: Small: it is"


def test_several_references_at_once_are_those_of_single_runs(demo_model: Any, demo_formatter: Any) -> None:
    engine = TorchEngine(demo_model, demo_formatter.collate)
    prompts = [ask(demo_formatter, "A red circle.", picture(number, demo_formatter)) for number in range(3)]
    passes = make_passes(("clean", "blur", "blind"), demo_formatter)
    at_once = run_passes(engine, [[one(prompt) for one in passes] for prompt in prompts])
    for number, prompt in enumerate(prompts):
        for place, one in enumerate(passes):
            ((alone,),) = run_passes(engine, [[one(prompt)]])
            np.testing.assert_allclose(at_once[number][place], alone, atol=1e-5)


def test_a_reference_that_cannot_be_made_leaves_the_other_prompts(demo_formatter: Any) -> None:
    def refuse(prompt: Prompt) -> Prompt:
        raise PromptError("Tiny", "no pixel to blur")

    def break_down(prompt: Prompt) -> Prompt:
        raise ValueError("odd size")

    clean, blind = make_passes(("clean", "blind"), demo_formatter)
    turns = [Turn("user", "<image>\nWhat?"), Turn("assistant", "A circle.")]
    image = picture(1, demo_formatter)
    made = prepare(demo_formatter, (clean, refuse, blind, break_down), turns, [image]).prompts
    assert made is not None
    assert [type(one).__name__ for one in made] == ["Prompt", "PromptError", "Prompt", "PromptError"]
    assert [str(made[1]), str(made[3])] == ["Tiny: no pixel to blur", "ValueError: odd size"]
    assert [str(one) for one in pickle.loads(pickle.dumps(made))[1:4:2]] == [str(made[1]), str(made[3])]


RECORD = {
    "identity": {"model": "m", "references": [{"name": "blur", "parameters": {}}, {"name": "no-image"}]},
    "counts": {"read": 3},
}
TABLE = pa.table(
    {
        "vig": [0.5, None, None, 0.25],
        "clean_loss": [1.0, 1.0, None, 1.0],
        "blur_loss": [1.5, None, None, 1.25],
        "no_image_loss": [3.0, 2.0, None, None],
        "error": [None, "Blur: NotFinite: x", None, "No-image: Odd: y"],
    }
)


def test_a_view_of_each_reference_has_its_gain_and_its_errors() -> None:
    columns = ["error", "vig", "reference_loss"]
    first, other = View.of(RECORD, "s"), View.of(RECORD, "s", "no-image")
    assert references_of(RECORD) == ("blur", "no-image")
    assert first.stored(columns) == ["blur_loss", "error", "vig"]
    assert first.table(TABLE, columns).to_pydict() == {
        "error": [None, "Blur: NotFinite: x", None, None],
        "vig": [0.5, None, None, 0.25],
        "reference_loss": [1.5, None, None, 1.25],
    }
    assert other.stored(columns) == ["clean_loss", "error", "no_image_loss"]
    assert other.table(TABLE, columns).to_pydict() == {
        "error": [None, None, None, "No-image: Odd: y"],
        "vig": [2.0, 1.0, None, None],
        "reference_loss": [3.0, 2.0, None, None],
    }
    assert other.stored(["no_image_logprobs", "reference_logprobs"]) == ["no_image_logprobs"]


def test_what_scores_are_under_a_reference_does_not_depend_on_the_others() -> None:
    alone = {**RECORD, "identity": {**RECORD["identity"], "references": RECORD["identity"]["references"][:1]}}  # type: ignore[dict-item, index]
    assert View.of(alone, "s").scored == View.of(RECORD, "s").scored != View.of(RECORD, "s", "no-image").scored


def test_a_reference_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(StageError, match=r"^--reference fog: out/scores hold blur, no-image$"):
        View.of(RECORD, "out/scores", "fog")
    old = {"identity": {"reference": "blind"}, "config": {"reference": "blind"}}
    assert View.of(old, "s").logprobs == View.of(old, "s", "blind").logprobs == "reference_logprobs"
    with pytest.raises(StageError, match=r"^--reference blur: s hold blind$"):
        View.of(old, "s", "blur")
