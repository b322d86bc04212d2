"""What may be asked and how it is said: options, names, data of one's own; every fault in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.evaluation.made import config_of
from tests.selection.made import selected
from vig_ray.cli import main
from vig_ray.dataset.schema import Image, Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.evaluation import job, plan
from vig_ray.evaluation.asked import Model, asked_for, model_of
from vig_ray.evaluation.config import EvalConfig
from vig_ray.evaluation.likelihood import Choice, likeliest
from vig_ray.evaluation.question import Answer, Question
from vig_ray.evaluation.questions import from_row, to_sample
from vig_ray.evaluation.task import Given
from vig_ray.evaluation.tasks import task
from vig_ray.evaluation.text import same, says
from vig_ray.submission import config_of as submitted
from vig_ray.submission import stage_options


@pytest.mark.parametrize(
    ("text", "name", "checkpoint"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
        ("mine=llava-hf/llava-1.5-7b-hf", "mine", "llava-hf/llava-1.5-7b-hf"),
        ("runs/vig/model", "vig-model", "runs/vig/model"),
        ("/a/full run/checkpoint-500/", "full-run-checkpoint-500", "/a/full run/checkpoint-500/"),
        ("model", "model", "model"),
    ],
)  # fmt: skip
def test_a_model_has_a_name_of_its_own(text: str, name: str, checkpoint: str) -> None:
    model = model_of(text)
    assert (model.name, model.checkpoint) == (name, checkpoint)


def test_options_come_from_everywhere(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIG_EVAL_MODEL", "a=x/y 'b=/with space'")
    (tmp_path / "eval.yaml").write_text("tasks: [choices, exact]\ntask-options: {choices.by: sum}\nlimit: 3\n")
    seen: list[EvalConfig] = []
    monkeypatch.setattr("vig_ray.evaluation.job.run", lambda config: seen.append(config) or 0)
    with pytest.raises(SystemExit):
        main(["eval", "--config", str(tmp_path / "eval.yaml"), "--out", "o", "--data", "choices=c.jsonl", "exact=e"])
    (config,) = seen
    assert config.model == ("a=x/y", "b=/with space")
    assert (config.tasks, config.data) == (("choices", "exact"), {"choices": "c.jsonl", "exact": "e"})
    assert [asked.given.options for asked in asked_for(config)] == [{"by": "sum"}, {}]
    capsys.readouterr()
    sent = submitted(EvalConfig)(
        address="http://head:8265", model=(f"m={CHECKPOINT}", "org/name"), tasks="choices", out="s3://b/o",
        data=str(data / "asked/choices.jsonl"), task_options=("choices.by=sum",),
    )  # fmt: skip
    monkeypatch.chdir(data)
    told = stage_options(sent)
    assert told["model"] == [f"m={CHECKPOINT}", "org/name"]
    assert EvalConfig(**told).of_task("data", "choices") == str(data / "asked/choices.jsonl")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tasks": "nothing"}, "--tasks nothing: no such task"),
        ({"data": {}}, "--tasks choices: --data choices=PATH says where its files are"),
        ({"data": {"choices": "/nowhere"}}, "/nowhere: no such file or folder"),
        ({"model": ("/nowhere/model",)}, "/nowhere/model: no such folder"),
        ({"model": (CHECKPOINT, CHECKPOINT)}, "is called demo-checkpoint, too; name it"),
        ({"task_options": {"choices.way": "x"}}, "the task has no such option; it has choices.by"),
        ({"task_options": {"choices.by": "x"}}, "choices.by=x: expected one of token, sum, character, letter"),
        ({"baseline": "other"}, "--baseline other: takes one of the models' names"),
        ({"engine": "no_such:engine"}, "--engine no_such:engine"),
        ({"decoding": "vdc"}, "--decoding vdc: no such method"),
        ({"decoding": "vcd"}, "--decoding vcd: no task of these lets a model write"),
        ({"decoding": "vcd", "engine": "tests.engines.one_by_one:engine"}, "--decoding vcd: is for --engine torch"),
    ],
)
def test_a_wrong_command_is_one_line_before_any_model(
    options: dict[str, Any], told: str, data: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "model": (CHECKPOINT,), "tasks": "choices", "data": {"choices": str(data / "asked/choices.jsonl")},
        "out": str(tmp_path / "out"),
    }  # fmt: skip
    if options.get("tasks"):
        given["data"] = {}
    with pytest.raises(StageError) as failed:
        job.run(EvalConfig(**(given | options)))
    assert told in str(failed.value)
    assert "\n" not in str(failed.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"data": "x"}, "several tasks; say whose"),
        ({"data": ("pope=x",)}, "--data pope: not one of --tasks"),
        ({"task_options": ("choices=1",)}, "takes TASK.NAME=VALUE"),
        ({"tasks": "exact,exact"}, "names a task twice"),
        ({"judge": "http://host"}, "--judge and --judge-model go together"),
        ({"temperature": 2.5}, "less than or equal to 2"),
    ],
)
def test_options_that_dont_go_together_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        EvalConfig(**({"model": "m", "tasks": "choices,exact", "out": "o"} | options))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"choices": ["a"]}, "1 choices; there must be 2 to 26"),
        ({"choices": ["a", "a"]}, "two choices are the same"),
        ({"answer": 2}, "'answer' is 2; the choices have the numbers 0 to 1"),
        ({"answer": "C"}, "'answer' is 'C', which is no choice, and no letter from A to B"),
        ({"question": "<image> <image>"}, "2 <image> marks in 'question', and 1 images"),
        ({"question": None}, "no 'question'"),
        ({"image": "../away.png"}, "lies outside the images folder"),
    ],
)
def test_a_row_that_is_no_question_is_named(row: dict[str, Any], told: str, tmp_path: Path) -> None:
    good = {"question": "Which?", "image": "a.png", "choices": ["a", "b"], "answer": "B"}
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(each) for each in (good, good | row)))
    made: Any = task("choices")
    with pytest.raises(StageError) as failed:
        list(made.read(Given(str(file))))
    assert str(failed.value).startswith(f"{file}, line 2: ")
    assert told in str(failed.value)


def test_letters_are_listed_and_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"question": "Which?", "choices": ["red", "blue"], "answer": "blue"}]))
    given = Given(str(file), options={"by": "letter"})
    made: Any = task("choices")
    made.begin(given)
    (question,) = made.read(given)
    assert question.prompt == (
        "Which?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    )
    assert (question.answer, question.choices, question.images) == ("B", (), ())
    assert made.mark(question, Answer("B"))["score"] == made.mark(question, Answer("(B) blue"))["score"] == 1
    assert made.mark(question, Answer("A"))["score"] == made.mark(question, Answer("no idea"))["score"] == 0


def test_choices_are_compared_in_four_ways() -> None:
    choices = [Choice("a long one", -4.0, -3.0, 4), Choice("b", -2.0, -1.5, 1), Choice("cc", -3.0, -0.5, 1)]
    assert [likeliest(choices, by) for by in ("sum", "token", "character", "first")] == [1, 0, 0, 2]


def test_texts_are_compared_as_people_do() -> None:
    assert same(" The  Red circle. ", "the red circle")
    assert same("\uff12", "2")
    assert not same("red", "reddish")
    assert says("It is a red, round thing.", "Red")
    assert not says("It is reddish.", "red")
    assert not says("anything", " . ")


def test_a_question_goes_to_a_row_and_back() -> None:
    question = Question(
        id="7", prompt="<image>\nWhich?", images=(Image(uri="/a.png"), Image(bytes=b"png")), expected={"a": [1, None]},
        choices=("x", "y"), answer="x", group="g", unit="u", more={"n": 1}, passes=("clean", "blur"), writes=False,
        before=(Turn("system", "Be brief."), Turn("user", "<image>"), Turn("assistant", "So.")),
    )  # fmt: skip
    for each in (question, Question("1", "Why?", (), None), Question("1", "Why?", (), False)):
        sample, kept = to_sample(each, "t")
        row = {
            "id": sample.id,
            "conversation": [turn._asdict() for turn in sample.conversation],
            "images": [{"uri": image.uri, "bytes": image.bytes} for image in sample.images],
            "kept": [{"name": name, "value": value} for name, value in kept.items()] or None,
        }
        assert from_row(row) == each
    with pytest.raises(StageError, match=r"t, question '1': expected: .*JSON"):
        to_sample(Question("1", "Why?", (), float("nan")), "t")


def test_held_out_samples_of_a_selection(chosen: Path) -> None:
    """Of the selection's end, with its active tokens; worked out again from its rows."""
    made: Any = task("held-out")
    options = {"selection": str(chosen), "tail": "10"}
    questions = list(made.read(Given(str(chosen / "samples"), options=options)))
    last = {row["sample_key"]: row for row in selected(chosen)[-10:]}
    assert {question.unit for question in questions} == set(last)
    over = under = 0.0
    marks = []
    rng = np.random.default_rng(0)
    at: dict[str, int] = {}
    for question in questions:
        row = last[question.unit]
        first = at.get(question.unit, 0)
        # As the worker finds them: as many tokens as the turn has, the end of turn among them.
        count = next(n for n in range(first + 1, len(row["token_ids"]) + 1) if row["token_ids"][n - 1] == 2) - first
        at[question.unit] = first + count
        ids = np.asarray(row["token_ids"][first : first + count], np.int32)
        clean, blur = -rng.random(count).astype(np.float32), -rng.random(count).astype(np.float32)
        passes = {"clean": clean, "blur": blur} if question.images else {"clean": clean}
        marks.append(made.mark(question, Answer(question.answer, token_ids=ids, passes=passes, tokens_before=first)))
        weights = np.ones(count) if row["token_weights"] is None else row["token_weights"][first : first + count]
        over, under = over - float(np.dot(weights, clean)), under + float(np.sum(weights))
        assert marks[-1]["exact"] == marks[-1]["contains"] == 1
    columns = {name: np.asarray([mark[name] for mark in marks]) for name in marks[0]}
    assert made.metrics(columns, np.ones(len(marks)))["active loss"] == pytest.approx(over / under)
    with pytest.raises(ValueError, match="OtherTokens"):
        made.mark(
            questions[0], Answer("", token_ids=np.array([5], np.int32), passes={"clean": np.zeros(1, np.float32)})
        )
    with pytest.raises(StageError, match=r"held-out.tail=3: of which order"):
        list(made.read(Given(str(chosen / "samples"), options={"tail": "3"})))


def test_a_benchmark_becomes_samples_with_its_right_answers(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import", "--task", "choices", "--data", str(data / "asked/choices.jsonl"), "--out", str(tmp_path)]
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--limit", "5"])
        assert not ended.value.code
        assert "read 5 = with images 5" in capsys.readouterr().out
    (file,) = (tmp_path / "samples").glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    given = [json.loads(line) for line in (data / "asked/choices.jsonl").read_text().splitlines()][:5]
    for number, (row, question) in enumerate(zip(rows, given, strict=True)):
        assert row["sample_key"] == f"choices/{number:010d}"
        answer = row["conversation"][1]
        assert row["conversation"][0] == {"role": "user", "text": f"<image>\n{question['question']}"}
        place = question["choices"].index(answer["text"])
        assert question["answer"] in (place, "ABCD"[place], answer["text"])
        assert row["images"][0]["uri"] == str(data / "asked" / question["image"])
    for wrong in (["--columns", "question=q"], ["--keep", "a"], ["--sample", "5%"]):
        with pytest.raises(SystemExit) as ended:
            main([*words, *wrong])
        assert ended.value.code == 2
        assert "has no effect with --task choices" in capsys.readouterr().err
    with pytest.raises(StageError, match="no such task"):
        asked_for(config_of(data, tmp_path, (CHECKPOINT,), "choices").model_copy(update={"tasks": ("x",)}))


def test_answers_are_of_a_method_however_it_is_spelled(data: Path, tmp_path: Path) -> None:
    """And of vLLM's options that change numbers, not of those that are about speed."""

    def identity(**options: Any) -> dict[str, Any]:
        given: dict[str, Any] = {"model": (CHECKPOINT,), "tasks": "exact", "out": str(tmp_path)}
        config = EvalConfig(**given, data={"exact": str(data / "asked/exact.jsonl")}, **options)
        return plan._model_plan(config, Model("demo", CHECKPOINT)).identity

    assert identity(decoding="vcd") == identity(decoding="vcd,alpha=1")
    assert identity(decoding="vcd") != identity(decoding="vcd,alpha=2")
    assert identity(decoding="plain") == identity()
    assert identity(vllm={"max_num_seqs": 8}) == identity()
    assert identity(vllm={"quantization": "fp8"}) != identity()
    assert identity()["stops"] == [2]
