"""False texts by rule, template and file; base, corrupted, norm and followed against answers counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.asking import begun, read
from vig_ray.errors import StageError
from vig_ray.evaluation.corruption import bare_question, stated
from vig_ray.evaluation.question import Answer, Question
from vig_ray.evaluation.task import Given, Task
from vig_ray.evaluation.tasks import task

SHORT = "\nAnswer the question using a single word or phrase."


@pytest.mark.parametrize(
    ("question", "answer", "says"),
    [
        ("What color is the cup?", "red", "The cup is red."),
        ("What colour are the man's shoes ?", "Black", "The man's shoes are Black."),
        ("Where is the red circle?", "on the left", "The red circle is on the left."),
        ("How many dogs are there in the picture?", "3", "There are 3 dogs."),
        ("Is there a red circle in the image?", "Yes", "There is a red circle."),
        ("Is there a red circle in the image?", "no", "There is no red circle."),
        ("Are there any dogs?", "Yes.", "There are some dogs."),
        ("Are there any dogs?", "No", "There are no dogs."),
        ("Is the man smiling?", "yes", 'The answer to "Is the man smiling?" is "yes".'),
        ("What is he doing?", "skating", 'The answer to "What is he doing?" is "skating".'),
        ("Is there a dog?", "maybe", 'The answer to "Is there a dog?" is "maybe".'),
    ],
)
def test_answers_are_stated_in_the_questions_words(question: str, answer: str, says: str) -> None:
    assert stated(question, answer) == says


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        (f"<image>\nWhat is it?{SHORT}", "What is it?"),
        ("<image>\nA hint. Which one is it? There are several options:\nA. x\nB. y", "Which one is it?"),
        ("Context: it rains\nIs it wet?\nA. yes\nB. no", "Is it wet?"),
        ("<image>\nName the animal", "Name the animal"),
    ],
)
def test_the_question_of_a_prompt(prompt: str, question: str) -> None:
    assert bare_question(prompt) == question


def rows(folder: Path, rows: list[dict[str, Any]], name: str = "data.json") -> Path:
    """A file of questions of one's own, each with an image of its own content."""
    for number, row in enumerate(rows):
        if "image" not in row:
            row["image"] = f"{number}.png"
            Image.new("RGB", (8, 8), (number, 2 * number, 9)).save(folder / row["image"])
    file = folder / name
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


OPEN = [
    {"question": "What color is the cup?", "answer": "red", "group": "color"},
    {"question": "What color is the door?", "answer": "green", "group": "color"},
    {"question": "What color is the sky?", "answer": ["blue", "light blue"], "group": "color"},
    {"question": "What number is it?", "answer": "3", "group": "count"},
    {"question": "What number is it now?", "answer": "five", "group": "count"},
    {"question": "Is it wet?", "answer": "yes"},
    {"question": "Is it dry?", "answer": "No."},
    {"question": "Is it solid or patterned?", "answer": "patterned"},
]


def by_way(questions: list[Question]) -> list[tuple[Question, Question]]:
    assert [each.more["wrapped"]["way"] for each in questions] == [0, 1] * (len(questions) // 2)
    return list(zip(questions[::2], questions[1::2], strict=True))


def numbers(made: Task, questions: list[Question], answers: list[Answer], weights: Any = None) -> dict[str, float]:
    marks = [made.mark(*each) for each in zip(questions, answers, strict=True)]
    columns = {name: np.array([each[name] for each in marks], dtype=np.float64) for name in marks[0]}
    found = made.metrics(columns, np.ones(len(marks)) if weights is None else np.asarray(weights, dtype=np.float64))
    assert list(found) == [metric.name for metric in made.metrics_of]
    assert not any(metric.main for metric in made.metrics_of)
    return found


def test_open_questions_get_another_answer_of_their_kind(tmp_path: Path) -> None:
    made, questions = read("blind-faith:exact", rows(tmp_path, OPEN))
    _, plain = read("exact", tmp_path / "data.json")
    same_kind = [{"green", "blue"}, {"red", "blue"}, {"red", "green"}, {"five"}, {"3"}, {"No"}, {"Yes"}, {"solid"}]
    for (base, corrupted), inner, kind in zip(by_way(questions), plain, same_kind, strict=True):
        assert (base.prompt, base.images, base.expected) == (inner.prompt, inner.images, inner.expected)
        assert base.unit == corrupted.unit == inner.id
        false = corrupted.more["wrapped"]["false"]
        assert false in kind
        question = inner.prompt.removeprefix("<image>\n")
        said = "A description of the image says: " + stated(question, false)
        assert corrupted.prompt == f"<image>\n{said}\n{question}"
    assert questions == read("blind-faith:exact", tmp_path / "data.json")[1]  # the same at every reading
    others = [read("blind-faith:exact", tmp_path / "data.json", faith_seed=f"{seed}")[1] for seed in range(1, 9)]
    assert any([each.more for each in other] != [each.more for each in questions] for other in others)
    # Right where asked plainly but for the last three; with the text the first is right, the second is neither, and all
    # others say what it says.
    answers = []
    for number, (base, corrupted) in enumerate(by_way(questions)):
        right = base.expected[0]
        answers.append(Answer(right if number < 5 else "mauve"))
        false = corrupted.more["wrapped"]["false"]
        answers.append(Answer([right, "mauve"][number] if number < 2 else f"{false.upper()}, as the text says"))
    found = numbers(made, questions, answers)
    assert found == pytest.approx({"base": 5 / 8, "corrupted": 1 / 8, "norm": 1 / 5, "followed": 6 / 8})
    weights = np.repeat([2, 1, 0, 0, 0, 0, 1, 0], 2)
    found = numbers(made, questions, answers, weights)
    assert found == pytest.approx({"base": 3 / 4, "corrupted": 2 / 4, "norm": 2 / 3, "followed": 1 / 4})


def test_choices_letters_and_likelihood(tmp_path: Path) -> None:
    data = [
        {"question": "What is it?", "choices": ["a cat", "a dog", "a cow"], "answer": "a dog", "id": "x"},
        {"question": "What is that?", "choices": ["sun", "moon"], "answer": 0, "id": "y"},
    ]
    file = rows(tmp_path, data)
    _, questions = read("blind-faith:choices", file)
    for base, corrupted in by_way(questions):
        assert base.choices == corrupted.choices
        false = corrupted.more["wrapped"]["false"]
        assert false in set(base.choices) - {base.answer}
        assert f'is "{false}".' in corrupted.prompt
    made, lettered = read("blind-faith:choices", file, by="letter")
    for (_, corrupted), row in zip(by_way(lettered), data, strict=True):
        letter = corrupted.more["wrapped"]["false"]
        assert letter != corrupted.answer
        assert f'is "{row["choices"]["ABC".index(letter)]}".' in corrupted.prompt  # its text is stated
    texts = ["B", lettered[1].more["wrapped"]["false"] + ". so", "A. sun", "A"]
    found = numbers(made, lettered, [Answer(text) for text in texts])
    assert found == pytest.approx({"base": 1, "corrupted": 0.5, "norm": 0.5, "followed": 0.5})
    # What the model would write is compared with the false answer instead; the choice is marked as if it were written.
    made, paired = read("blind-faith:exact", rows(tmp_path, OPEN, "open.json"), likelihood="yes")
    answers = []
    for base, corrupted in by_way(paired):
        false = corrupted.more["wrapped"]["false"]
        assert base.choices == corrupted.choices == tuple(sorted((base.answer, false)))
        answers += [Answer(base.answer or "", (0.0, -1.0), (1, 1)), Answer(false, (0.0, -1.0), (1, 1))]
    assert made.by == "token"
    assert numbers(made, paired, answers) == pytest.approx({"base": 1, "corrupted": 0, "norm": 0, "followed": 1})


def test_texts_of_a_file_as_its_authors_publish_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = rows(tmp_path, [{**row, "id": 10 + number} for number, row in enumerate(OPEN[:3])])
    texts = tmp_path / "contradict_stat.jsonl"
    told = [
        {"question_id": 12, "response": ["The sky is green."], "changed_ans": ["green"], "original_ans": ["blue"]},
        {"question_id": 10, "response": ["A {cup} that is blue."]},
        {"question_id": 99, "response": ["nothing of ours"], "changed_ans": ["x"]},
    ]
    texts.write_text("".join(f"{json.dumps(row)}\n" for row in told), encoding="utf-8")
    made, questions = read("blind-faith:exact", data, texts=str(texts), template="{prompt}\\nA hint: {text}")
    assert [each.id for each in questions] == ["10/base", "10/corrupted", "12/base", "12/corrupted"]
    assert questions[1].prompt == "<image>\nWhat color is the cup?\nA hint: A {cup} that is blue."
    assert questions[3].prompt == "<image>\nWhat color is the sky?\nA hint: The sky is green."
    assert "1 questions left out: the file has no text for them" in caplog.text
    answers = [Answer(text) for text in ("red", "blue", "light blue", "green")]
    found = numbers(made, questions, answers)
    assert found == pytest.approx({"base": 1, "corrupted": 0, "norm": 0, "followed": 1})  # of the one that is known


def test_what_cannot_be_corrupted_is_told(tmp_path: Path) -> None:
    data = str(rows(tmp_path, [dict(row) for row in OPEN[:1]]))

    def fails(name: str, **options: str) -> str:
        with pytest.raises(StageError) as told:
            list(begun(name, Given(data, options=options)).read(Given(data, options=options)))
        (line,) = str(told.value).splitlines()
        return line

    assert "no false answer is there, in any of 1 questions" in fails("blind-faith:exact")
    assert "template='so': neither {text} nor {answer} is in it" in fails("blind-faith:exact", template="so")
    assert "{image} is none of its places" in fails("blind-faith:exact", template="{text}{image}")
    assert "likelihood=maybe" in fails("blind-faith:exact", likelihood="maybe")
    assert "no such file" in fails("blind-faith:exact", texts=f"{tmp_path}/nowhere.jsonl")
    assert "mm-vet has no answers that are right by themselves" in fails("blind-faith:mm-vet")
    for name in ("blind-faith:nothing", "nothing:exact", "swap:blind-faith:exact", "blind-faith:lmms:pope"):
        with pytest.raises(StageError, match=f"--tasks {name.removeprefix('blind-faith:nothing') or 'nothing'}"):
            task(name)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"changed_ans": ["?"]}, "line 2: 'changed_ans' is '?', of which nothing is left without punctuation"),
        ({"changed_ans": "..."}, "line 2: 'changed_ans' is '...', of which nothing is left"),
        ({"changed_ans": [""]}, "line 2: 'changed_ans' is '', of which nothing is left"),
        ({"answer": " ' "}, "line 2: 'answer' is \" ' \", of which nothing is left"),
    ],
)
def test_a_false_answer_of_a_file_that_says_nothing_is_refused(tmp_path: Path, told: dict[str, Any], said: str) -> None:
    data = rows(tmp_path, [{**row, "id": number} for number, row in enumerate(OPEN[:2])])
    file = tmp_path / "texts.jsonl"
    whole = [{"id": 0, "text": "It is blue.", "answer": "blue"}, {"id": 1, "text": "It is red.", **told}]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in whole), encoding="utf-8")
    with pytest.raises(StageError) as raised:
        read("blind-faith:exact", data, texts=str(file))
    assert f"{file}, {said}" in str(raised.value)


def test_no_false_answer_that_says_nothing_is_made(tmp_path: Path) -> None:
    """Of the other answers to such questions, one is punctuation alone: every answer would begin with it."""
    data = [{"question": "Which sign?", "choices": choices, "answer": 0} for choices in (["a", "?"], ["a", "?", "b"])]
    _, questions = read("blind-faith:choices", rows(tmp_path, data))
    assert [each.more["wrapped"]["false"] for each in questions] == ["b", "b"]  # the first question has none
