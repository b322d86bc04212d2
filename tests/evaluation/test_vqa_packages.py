"""VQA accuracy and ANLS held against packages of PyPI that compute them: salesforce-lavis 1.0.2, which has the
evaluation of visualqa.org, and anls 0.0.2. They run where these are: `make test-lmms`."""

from __future__ import annotations

import importlib.util
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.published_b import phrase, ten
from tests.evaluation.test_lmms_oracle_b import variants
from vig_ray.evaluation.tasks.docvqa import anls, levenshtein
from vig_ray.evaluation.vqa import accuracy, normalised

pytestmark = pytest.mark.lmms


def _lavis() -> Any:
    """The module of VQAEval, without lavis itself, whose imports want models."""
    package = importlib.util.find_spec("lavis")
    if package is None or not package.submodule_search_locations:
        pytest.skip("salesforce-lavis 1.0.2 isn't in this environment; make test-lmms has one")
    file = Path(package.submodule_search_locations[0]) / "common/vqa_tools/vqa_eval.py"
    spec = importlib.util.spec_from_file_location("vqa_eval", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Table:
    """Questions with their answers, as VQAEval takes them."""

    def __init__(self, qa: dict[int, Any]) -> None:
        self.qa = qa

    def getQuesIds(self) -> list[int]:  # noqa: N802
        return list(self.qa)


def test_vqa_accuracy_equals_the_evaluation_of_visualqa_org() -> None:
    rng = random.Random(11)
    people, answers = {}, {}
    for number in range(200):
        # This copy of the evaluation leaves articles and numbers in people's answers; so theirs have the last form.
        given = [normalised(normalised(each)) for each in ten(rng)]
        people[number] = {
            "answers": [{"answer": each, "answer_id": place} for place, each in enumerate(given)],
            "question_type": "x",
            "answer_type": "x",
        }
        # It takes one comma for part of a number, and not "1,,2" as Pythia's (and lmms-eval's) does.
        answers[number] = {"answer": variants(given[0], rng).replace(",,", ",")}
    expected = {number: [each["answer"] for each in row["answers"]] for number, row in people.items()}
    evaluation = _lavis().VQAEval(_Table(people), _Table(answers), n=6)
    evaluation.evaluate()
    ours = {n: accuracy(normalised(row["answer"]), [normalised(x) for x in expected[n]]) for n, row in answers.items()}
    assert evaluation.evalQA == {number: pytest.approx(100 * value, abs=1e-5) for number, value in ours.items()}
    assert len({round(value, 3) for value in ours.values()}) > 4


def test_anls_equals_the_package() -> None:
    package = pytest.importorskip("anls", reason="anls 0.0.2 isn't in this environment; make test-lmms has one")
    rng = random.Random(12)
    compared = 0
    while compared < 200:
        golds = [phrase(rng) for _ in range(rng.randint(1, 3))]
        text = " ".join(variants(golds[-1], rng).split())
        halves = [Fraction(levenshtein(gold.lower(), text.lower()), max(len(gold), len(text), 1)) for gold in golds]
        if (
            Fraction(1, 2) not in halves
        ):  # of these the paper's text and the challenge's evaluation say different things
            assert anls(text, golds) == pytest.approx(package.anls_score(text, golds), abs=1e-12), (text, golds)
            compared += 1
