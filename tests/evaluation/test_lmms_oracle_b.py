"""Tasks held against lmms-eval 0.7.3's own functions: prompts, reading and marks of 200 made answers a task.

It runs where lmms-eval can be imported: `make test-lmms`.
"""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.evaluation import published_b as published
from tests.evaluation.asking import read
from tests.evaluation.judge_server import JudgeServer, judge_server
from vig_ray.evaluation.question import Answer, Question

pytestmark = pytest.mark.lmms

ANSWERS = 200


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval 0.7.3 isn't in this environment; make test-lmms has one")


def lmms(module: str) -> Any:
    return importlib.import_module(f"lmms_eval.tasks.{module}")


class _Loader(yaml.SafeLoader):
    """YAML without lmms-eval's tags."""


_Loader.add_constructor("!function", lambda loader, node: None)


def defaults(module: str, file: str) -> dict[str, Any]:
    """What lmms-eval adds to a task's prompts, as its YAML has it."""
    folder = Path(lmms(module).__file__).parent  # type: ignore[arg-type]
    config = yaml.load((folder / file).read_text(encoding="utf-8"), _Loader)
    of: dict[str, Any] = config["lmms_eval_specific_kwargs"]["default"]
    return of


def text_of(question: Question) -> str:
    """The prompt without the marks of its images, which lmms-eval hands over beside it."""
    return question.prompt.removeprefix("<image>\n" * len(question.images))


def variants(expected: str, rng: random.Random) -> str:
    """An answer that has something to do with the expected one."""
    makes: list[Callable[[], str]] = [
        lambda: expected,
        lambda: expected.upper(),
        lambda: expected + ".",
        lambda: f" {expected}\n",
        lambda: f"the {expected}!",
        lambda: f"It is {expected}, I think",
        lambda: expected.replace(" ", "  ").replace("'", ""),
        lambda: expected.replace(",", "").replace("-", " "),
        lambda: expected[:-1] + "x" if expected else "x",
        lambda: published.phrase(rng),
        lambda: f"{published.phrase(rng)}; {expected}",
        lambda: "",
        lambda: rng.choice(
            ["0", "0.13", "12.0%", "13%", "nan", "1e1", "-3", "50", "3.6", "Two", "TEN", "a.b.c", "1,,2"]
        ),
        lambda: "couldnt " + expected + " yall'd've, what?/who",
    ]
    return rng.choice(makes)()


def pairs(questions: list[Question], expected: Callable[[Question], str], seed: int = 1) -> list[tuple[int, str]]:
    """200 answers, each with the number of its question."""
    rng = random.Random(seed)
    numbers = [rng.randrange(len(questions)) for _ in range(ANSWERS)]
    return [(number, variants(expected(questions[number]), rng)) for number in numbers]


def test_docvqa(tmp_path: Path) -> None:
    metrics = pytest.importorskip("lmms_eval.api.metrics")
    rows = published.docvqa(tmp_path, 40)
    made, questions = read("docvqa", tmp_path)
    kwargs = defaults("docvqa.utils", "_default_template_docvqa_yaml")
    assert [text_of(each) for each in questions] == [
        lmms("docvqa.utils").docvqa_doc_to_text(row, kwargs) for row in rows
    ]
    assert [each.expected for each in questions] == [row["answers"] for row in rows]
    ours, theirs = [], []
    for number, text in pairs(questions, lambda question: question.expected[-1]):
        ours.append(made.mark(questions[number], Answer(text))["score"])
        # lmms-eval's task strips answers before it hands them to its metric.
        theirs.append(metrics.anls(references=rows[number]["answers"], predictions=[text.strip()])["anls"])
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert len(set(ours)) > 10


def test_textvqa(tmp_path: Path) -> None:
    rows = published.textvqa(tmp_path, 40)
    made, questions = read("textvqa", tmp_path)
    module, kwargs = lmms("textvqa.utils"), defaults("textvqa.utils", "_default_template_textvqa_yaml")
    assert [text_of(each) for each in questions] == [module.textvqa_doc_to_text(row, kwargs) for row in rows]
    ocr = str(tmp_path / "ocr/TextVQA_Rosetta_OCR_v0.2_val.json")
    _, with_ocr = read("textvqa", tmp_path, ocr=ocr)
    assert [text_of(each) for each in with_ocr] == [
        module.textvqa_doc_to_text(row, kwargs | {"ocr": True}) for row in rows
    ]
    ours, theirs = [], []
    for number, text in pairs(questions, lambda question: question.expected[0]):
        ours.append(made.mark(questions[number], Answer(text))["score"])
        row = rows[number] | {"answers": list(rows[number]["answers"])}  # lmms-eval writes to it
        theirs.append(module.textvqa_process_results(row, [text])["exact_match"])
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert len(set(np.round(ours, 3))) > 4


def test_vqav2(tmp_path: Path) -> None:
    rows = published.vqav2(tmp_path, 60)
    made, questions = read("vqav2", tmp_path)
    module, kwargs = lmms("vqav2.utils"), defaults("vqav2.utils", "_default_template_vqav2_yaml")
    assert [text_of(each) for each in questions] == [module.vqav2_doc_to_text(row, kwargs) for row in rows]
    ours, theirs = [], []
    for number, text in pairs(questions, lambda question: question.expected[0]):
        ours.append(made.mark(questions[number], Answer(text))["score"])
        row = rows[number] | {"answers": [dict(each) for each in rows[number]["answers"]]}
        theirs.append(module.vqav2_process_results_val(row, [text])["exact_match"])
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert len(set(np.round(ours, 3))) > 4


def test_gqa(tmp_path: Path) -> None:
    metrics = pytest.importorskip("lmms_eval.api.metrics")
    rows = published.gqa(tmp_path, 40)
    made, questions = read("gqa", tmp_path / "questions1.2")
    kwargs = defaults("gqa.utils", "gqa.yaml")
    assert [text_of(each) for each in questions] == [lmms("gqa.utils").gqa_doc_to_text(row, kwargs) for row in rows]
    ours, theirs = [], []
    for number, text in pairs(questions, lambda question: question.expected):
        ours.append(made.mark(questions[number], Answer(text))["score"])
        found = metrics.exact_match_fn(
            references=[rows[number]["answer"]], predictions=[text.strip()], ignore_case=True, ignore_punctuation=True
        )
        theirs.append(found["exact_match"])
    assert ours == theirs
    assert 20 < sum(ours) < 180


def test_chartqa(tmp_path: Path) -> None:
    rows = published.chartqa(tmp_path, 60)
    made, questions = read("chartqa", tmp_path / "test")
    module, kwargs = lmms("chartqa.utils"), defaults("chartqa.utils", "chartqa.yaml")
    assert [text_of(each) for each in questions] == [module.chartqa_doc_to_text(row, kwargs) for row in rows]
    marks, theirs = [], []
    for number, text in pairs(questions, lambda question: question.expected):
        marks.append(made.mark(questions[number], Answer(text)))
        theirs.append(module.chartqa_process_results(rows[number], [text.strip()]))
    assert [each["score"] for each in marks] == [each["relaxed_overall"] for each in theirs]
    metrics = made.metrics(columns(marks), np.ones(ANSWERS))
    for kind in ("human", "augmented"):
        of = [each[f"relaxed_{kind}_split"] for each in theirs if f"relaxed_{kind}_split" in each]
        assert metrics[kind] == pytest.approx(np.mean(of), abs=1e-12)
    assert 20 < sum(each["score"] for each in marks) < 180


def test_scienceqa(tmp_path: Path) -> None:
    rows = published.scienceqa(tmp_path, 60)
    made, questions = read("scienceqa", tmp_path)
    module, kwargs = lmms("scienceqa.utils"), defaults("scienceqa.utils", "scienceqa_img.yaml")
    assert [text_of(each) for each in questions] == [module.sqa_doc_to_text(row, kwargs) for row in rows]
    assert [each.expected for each in questions] == [module.sqa_doc_to_target(row) for row in rows]
    assert [len(each.images) for each in questions] == [int(row["image"] is not None) for row in rows]
    forms = ["{}", "{}.", "{}. text", " {}\n", "({})", "The answer is {}.", "{}:", "x{}", ""]
    rng = random.Random(3)
    ours, theirs = [], []
    for _ in range(ANSWERS):
        number = rng.randrange(len(rows))
        letter = rng.choice([questions[number].expected, rng.choice("ABCDEab")])
        text = rng.choice(forms).format(rng.choice([letter, letter.lower()]))
        ours.append(made.mark(questions[number], Answer(text))["score"])
        theirs.append(module.sqa_process_results(rows[number], [text])["exact_match"])
    assert ours == theirs
    assert 20 < sum(ours) < 180


def test_mmbench(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    rows = published.mmbench(tmp_path, 80)
    made, questions = read("mmbench", tmp_path)
    module, kwargs = lmms("mmbench.en_utils"), defaults("mmbench.en_utils", "_default_template_mmbench_en_yaml")
    extract = lmms("_task_utils.mcq_extract").extract_mcq_answer
    by_index = {str(row["index"]): {key: value if value != "" else None for key, value in row.items()} for row in rows}
    docs = [by_index[question.id] | {"L2-category": "x"} for question in questions]
    assert len(docs) == len(rows) > ANSWERS
    assert [text_of(each) for each in questions] == [module.mmbench_doc_to_text(doc, kwargs) for doc in docs]

    rng = random.Random(5)
    marks, results = [], []
    for question, doc in zip(questions, docs, strict=True):
        text = option_answer(question, rng)
        marks.append(made.mark(question, Answer(text)))
        results.append(module.mmbench_process_results(doc, [text])["gpt_eval_score"])
    evaluator = module.mmbench_evaluator
    for question, mark, result in zip(questions, marks, results, strict=True):
        item = importlib.import_module("pandas").Series(result)
        letters = sorted(evaluator.build_choices(item))
        found = evaluator.prefetch_answer(item) or extract(item["prediction"], choices=letters)
        assert mark["score"] == float(found == question.expected), (result["prediction"], found)
    overall, _, _ = evaluator.eval_result(results, eval_method="static")
    metrics = made.metrics(columns(marks), np.ones(len(marks)))
    assert metrics["circular"] == pytest.approx(overall, abs=1e-12)
    assert 0.1 < overall < metrics["vanilla"] < 1


def option_answer(question: Question, rng: random.Random) -> str:
    letter = question.expected if rng.random() < 0.9 else rng.choice("ABCDE")
    words = question.more["options"].get(letter, "none")
    makes = ["{0}", "{0}.", "({0})", "{0}. {1}", "{1}", "The answer is {0}.", "{0}) {1}", "I pick {0}, a cat is on it"]
    rare = ["A bus and a {1} in it", "{0} or B", "neither", "", ":{0}.", "It says {1} here", "answer:{0}", "{0}:{1}"]
    return rng.choice(makes * 3 + rare).format(letter, words)


def columns(marks: list[Any]) -> dict[str, np.ndarray]:
    return {name: np.array([mark[name] for mark in marks], dtype=np.float64) for name in marks[0]}


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A judge that lmms-eval and the tasks ask alike; the same prompt gets the same reply."""
    with judge_server() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("OPENAI_API_URL", server.url)
        yield server


def judged(name: str, data: Path, server: JudgeServer, **options: str) -> tuple[Any, list[Question]]:
    judge = {"judge": server.url, "judge_model": "m", "judge_cache": str(data / "cache")}
    return read(name, data, **judge, **options)


def test_llava_bench(tmp_path: Path, judge: JudgeServer) -> None:
    module = lmms("llava-in-the-wild.utils")
    rows = published.llava_bench(tmp_path, 60)
    rules = str(Path(module.__file__).parent / "rule.json")
    made, questions = judged("llava-bench", tmp_path, judge, rules=rules)
    assert [text_of(each) for each in questions] == [module.llava_doc_to_text(row) for row in rows]
    judge.reply = lambda body: _ratings(body["messages"][-1]["content"])
    marks, theirs = [], []
    for number, text in pairs(questions, lambda question: question.expected):
        marks.append(made.mark(questions[number], Answer(text)))
        theirs.append(module.llava_process_results(rows[number], [text.strip()]))
        assert judge.prompts[-1] == marks[-1].asked == theirs[-1]["gpt_eval_llava_all"]["content"]
    assert [[mark["reference"], mark["rating"]] for mark in marks] == [
        each["gpt_eval_llava_all"]["scores"] for each in theirs
    ]
    metrics = made.metrics(columns(marks), np.ones(ANSWERS))
    names = {"score": "all", "conv": "conv", "detail": "detail", "complex": "complex"}
    for ours, of in names.items():
        expected = getattr(module, f"llava_{of}_aggregation")([each[f"gpt_eval_llava_{of}"] for each in theirs])
        assert metrics[ours] * 100 == pytest.approx(expected, abs=0.06)  # lmms-eval rounds to a tenth


def _ratings(prompt: str) -> str:
    rng = random.Random(prompt)
    return f"{rng.randint(7, 10)}{rng.choice([' ', ', '])}{rng.choice(['6', '7.5', '9', '1'])}\nBecause of 1 and 2."


def test_mm_vet(tmp_path: Path, judge: JudgeServer) -> None:
    module = lmms("mmvet.utils")
    rows = published.mm_vet(tmp_path, 60)
    made, questions = judged("mm-vet", tmp_path, judge, prompt=module.__file__)
    assert [text_of(each) for each in questions] == [module.doc_to_text(row) for row in rows]
    judge.reply = lambda body: random.Random(body["messages"][-1]["content"].strip()).choice(
        ["0.0", "0.3", "1.0", "0.5 x"]
    )
    marks, theirs = [], []
    for number, text in pairs(questions, lambda question: question.expected):
        marks.append(made.mark(questions[number], Answer(text)))
        row = rows[number] | {"capability": ",".join(rows[number]["capability"])}
        theirs.append(module.mmvet_process_results(row, [text.strip()])["gpt_eval_score"])
        assert judge.prompts[-1].strip() == marks[-1].asked.strip()  # lmms-eval drops the authors' last space
    assert [mark["score"] for mark in marks] == [each["score"] for each in theirs]
    metrics = made.metrics(columns(marks), np.ones(ANSWERS))
    assert metrics["score"] * 100 == pytest.approx(module.mmvet_aggregate_results(theirs), abs=1e-9)
    for ability in ("rec", "ocr", "know", "gen", "spat", "math"):
        of = [each["score"] for each in theirs if ability in re.split(",", each["capabilities"])]
        assert metrics[ability] == pytest.approx(np.mean(of), abs=1e-12)
