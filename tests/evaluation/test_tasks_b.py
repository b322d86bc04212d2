"""Benchmarks' files, as their authors publish them, read to questions; their metrics by hand; files that are not so."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.evaluation import published_b as published
from tests.evaluation.asking import answered, read
from vig_ray.errors import StageError
from vig_ray.evaluation.question import Answer, Question
from vig_ray.evaluation.tasks import TASKS, task

MINE = ("chartqa", "docvqa", "gqa", "llava-bench", "mm-vet", "mmbench", "mmhal", "scienceqa", "textvqa", "vqav2")


def columns(marks: list[Any]) -> dict[str, np.ndarray]:
    return {name: np.array([mark[name] for mark in marks], dtype=np.float64) for name in marks[0]}


def file_of(question: Question, number: int = 0) -> Path:
    uri = question.images[number].uri
    assert uri is not None
    return Path(uri)


def test_every_task_says_what_it_is() -> None:
    assert list(TASKS) == sorted(TASKS)
    for name in MINE:
        made = task(name)
        assert made.name == name
        assert "https://" in made.source
        assert sum(metric.main for metric in made.metrics_of) == 1
        assert made.max_new_tokens > 0


def test_docvqa(tmp_path: Path) -> None:
    rows = published.docvqa(tmp_path, 5)
    made, questions = read("docvqa", tmp_path / "val_v1.0.json")
    assert [question.id for question in questions] == ["1000", "1001", "1002", "1003", "1004"]
    assert questions[1].prompt == ("<image>\nWhat is in field 1?\nAnswer the question using a single word or phrase.")
    assert file_of(questions[3]) == tmp_path / "documents/page_1.png"
    assert questions[0].unit == questions[1].unit != questions[2].unit
    assert questions[2].group == rows[2]["question_types"][0]
    answers = [rows[0]["answers"][0].upper(), "qqqqqqqq", *(row["answers"][-1] for row in rows[2:])]
    found = answered(made, questions, answers, [2, 1, 1, 1, 1])
    assert found == {"anls": pytest.approx(5 / 6), "accuracy": pytest.approx(5 / 6)}


def test_images_are_found_where_archives_leave_them(tmp_path: Path) -> None:
    published.docvqa(tmp_path / "a", 2)
    (tmp_path / "flat").mkdir()
    (tmp_path / "a/documents/page_0.png").rename(tmp_path / "flat/page_0.png")
    _, questions = read("docvqa", tmp_path / "a", tmp_path / "flat")
    assert file_of(questions[0]) == tmp_path / "flat/page_0.png"
    with pytest.raises(StageError, match=r"entry 1: its image isn't there, .*page_0\.png; --images docvqa=FOLDER says"):
        read("docvqa", tmp_path / "a")


def test_parquet_with_the_same_columns(tmp_path: Path) -> None:
    rows = published.docvqa(tmp_path / "a", 4)
    for row in rows:
        row["image"] = {"bytes": published.picture(colour=row["docId"]), "path": None}
    (tmp_path / "one").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "one/validation-00000-of-00001.parquet")
    _, by_json = read("docvqa", tmp_path / "a")
    for name in ("validation-00000-of-00001.parquet", "validation-*.parquet", ""):
        data = tmp_path / "one" / name
        _, questions = read("docvqa", data)
        assert [(each.id, each.prompt, each.expected, each.unit) for each in questions] == [
            (each.id, each.prompt, each.expected, each.unit) for each in by_json
        ]
        assert questions[2].images[0].bytes == rows[2]["image"]["bytes"]
    folder = tmp_path / "hub/data"
    folder.mkdir(parents=True)
    for split in ("validation", "test"):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    with pytest.raises(StageError, match=r"hub: Parquet files of several splits, test, validation; --data doc"):
        read("docvqa", tmp_path / "hub")


def test_textvqa(tmp_path: Path) -> None:
    rows = published.textvqa(tmp_path, 6)
    made, questions = read("textvqa", tmp_path)
    assert questions[0].prompt.startswith("<image>\nWhat does the nasa sign 0 say?\nAnswer the question using")
    assert file_of(questions[5]) == tmp_path / f"train_images/{rows[5]['image_id']}.jpg"
    _, told = read("textvqa", tmp_path, ocr=str(tmp_path / "ocr/TextVQA_Rosetta_OCR_v0.2_val.json"))
    assert f"say?\nReference OCR token: {', '.join(rows[1]['ocr_tokens'])}\nAnswer" in told[1].prompt
    everybody = [max(row["answers"], key=row["answers"].count) for row in rows]
    assert answered(made, questions, everybody)["accuracy"] > 0.8
    assert answered(made, questions, ["qqq"] * 6) == {"accuracy": 0}
    published.written(tmp_path / "empty.json", {"data": []})
    with pytest.raises(StageError, match=r"entry 1: textvqa.ocr's file has no image '0{16}'"):
        read(
            "textvqa",
            tmp_path,
            ocr=str(published.written(tmp_path / "o.json", {"data": [{"image_id": "x", "ocr_tokens": []}]})),
        )


def test_vqav2(tmp_path: Path) -> None:
    rows = published.vqav2(tmp_path, 6)
    made, questions = read("vqav2", tmp_path)
    assert [question.id for question in questions] == [str(row["question_id"]) for row in rows]
    assert [question.answer for question in questions] == [row["multiple_choice_answer"] for row in rows]
    assert file_of(questions[5]) == tmp_path / "val2014/COCO_val2014_000000262149.jpg"
    assert questions[0].unit == questions[2].unit != questions[3].unit
    found = answered(made, questions, [row["multiple_choice_answer"] for row in rows])
    for kind in ("yes/no", "number", "other"):
        of = [n for n, row in enumerate(rows) if row["answer_type"] == kind]
        scores = [made.mark(questions[n], Answer(rows[n]["multiple_choice_answer"]))["score"] for n in of]
        assert found[kind] == pytest.approx(np.mean(scores) if of else float("nan"), nan_ok=True)
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text('{"annotations": []}')
    with pytest.raises(StageError, match=r"entry 1: the annotations have no question 262148000; are they of val2014\?"):
        read("vqav2", tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json")


def test_gqa(tmp_path: Path) -> None:
    rows = published.gqa(tmp_path, 4)
    made, questions = read("gqa", tmp_path / "questions1.2")
    assert [(each.id, each.unit, each.group) for each in questions] == [
        (row["id"], row["imageId"], row["types"]["structural"]) for row in rows
    ]
    assert answered(made, questions, [f"{row['answer'].upper()}." for row in rows[:3]] + ["qqq"]) == {"accuracy": 0.75}


def test_chartqa(tmp_path: Path) -> None:
    published.chartqa(tmp_path, 8)
    made, questions = read("chartqa", tmp_path / "test")
    assert [each.id for each in questions] == [f"{kind}/{n}" for kind in ("human", "augmented") for n in range(4)]
    assert file_of(questions[0]) == tmp_path / "test/png/chart_0.png"
    answers = [question.expected for question in questions[:4]] + ["qqq"] * 3 + [questions[7].expected]
    assert answered(made, questions, answers) == {"relaxed": 5 / 8, "human": 1, "augmented": 1 / 4}
    _, human = read("chartqa", tmp_path / "test/test_human.json")
    assert human == questions[:4]
    with pytest.raises(StageError, match=r"x\.json: the file's name says neither human nor augmented"):
        read("chartqa", published.written(tmp_path / "x.json", []))


def test_scienceqa(tmp_path: Path) -> None:
    rows = published.scienceqa(tmp_path, 12)
    made, questions = read("scienceqa", tmp_path)
    with_image = [row["image"] is not None for row in rows]
    assert [bool(question.images) for question in questions] == with_image
    assert [question.prompt.count("<image>") for question in questions] == [int(each) for each in with_image]
    first = with_image.index(True)
    assert file_of(questions[first]) == tmp_path / f"images/test/{rows[first]['id']}/image.png"
    answers = [f"{question.expected}. " if question.images else "x" for question in questions]
    assert answered(made, questions, answers) == {
        "image": 1,
        "accuracy": pytest.approx(sum(with_image) / 12),
        "unread": 0,
    }
    _, subset = read("scienceqa", tmp_path, subset="image")
    assert subset == [question for question in questions if question.images]
    _, mini = read("scienceqa", tmp_path / "problems.json", split="minitest")
    assert mini == questions[:2]
    with pytest.raises(StageError, match=r"--task-options scienceqa.split=dev: expected one of test, val"):
        read("scienceqa", tmp_path, split="dev")
    with pytest.raises(
        StageError, match=r"pid_splits.json: no split 'minival' \(there are train, val, test, minitest\)"
    ):
        read("scienceqa", tmp_path, split="minival")


def test_mmbench_counts_a_question_by_all_its_copies(tmp_path: Path) -> None:
    rows = published.mmbench(tmp_path, 6)
    made, questions = read("mmbench", tmp_path)
    assert len(questions) == len(rows)
    assert [question.unit for question in questions] == sorted((str(row["index"] % 1_000_000) for row in rows), key=int)
    assert all(question.images[0].bytes == published.picture(colour=int(question.unit or "")) for question in questions)
    right = [question.expected for question in questions]
    assert answered(made, questions, right) == {"circular": 1, "vanilla": 1, "unread": 0}
    last = max(n for n, question in enumerate(questions) if question.unit == "0")
    assert answered(made, questions, [*right[:last], "?", *right[last + 1 :]]) == {
        "circular": 5 / 6,
        "vanilla": 1,
        "unread": 1 / len(rows),
    }
    # A question that the bootstrap draws twice counts twice.
    weights = [2.0 if question.unit == "0" else 1.0 for question in questions]
    assert answered(made, questions, [*right[:last], "?", *right[last + 1 :]], weights)["circular"] == 5 / 7


def test_mmbench_makes_the_copies_that_a_file_has_not(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    published.mmbench(tmp_path, 6)
    published.mmbench(tmp_path / "one", 6, copies=False)
    _, of_file = read("mmbench", tmp_path)
    made = read("mmbench", tmp_path / "one", circular="make")[1]
    assert made == of_file
    assert len(read("mmbench", tmp_path / "one")[1]) == len(read("mmbench", tmp_path, circular="none")[1]) == 6
    prompt = read("mmbench", tmp_path, prompt="llava")[1][0].prompt
    assert "\nWhat is thing 0?\nA. " in prompt
    assert prompt.endswith("\nAnswer with the option's letter from the given choices directly.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(answer="E"), r"row 1: 'answer' is 'E', not one of A, B"),
        (
            lambda row: row.update(answer=""),
            r"row 1: no 'answer': those of the test split are at the benchmark's server",
        ),
        (lambda row: row.update(image="no base64!"), r"row 1: 'image': BadImage: not base64"),
        (lambda row: row.update(image="77"), r"row 1: its image is that of row 77, which isn't there"),
        (lambda row: row.update(index="x"), r"row 1: 'index' is 'x', not a whole number"),
        (lambda row: [row.pop(letter) for letter in "ABC"], r"row 1: [01] options; expected two or more"),
    ],
)
def test_a_row_of_mmbench_that_is_none(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    row = {"index": "0", "question": "q", "hint": "", "A": "x", "B": "y", "C": "", "answer": "A"}
    row["image"] = base64.b64encode(published.picture()).decode()
    change(row)
    file = published.written(tmp_path / "a.tsv", "\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    with pytest.raises(StageError, match=message):
        read("mmbench", file)


def test_choices_by_likelihood_are_the_letters_that_there_are(tmp_path: Path) -> None:
    for name, write in (("mmbench", published.mmbench), ("scienceqa", published.scienceqa)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, 6)
        made, written = read(name, tmp_path / name)
        _, compared = read(name, tmp_path / name, answered="likelihood")
        assert [question.prompt for question in compared] == [question.prompt for question in written]
        for question in compared:
            assert question.expected in question.choices
            assert all(f"\n{letter}. " in question.prompt for letter in question.choices)
            assert [made.mark(question, Answer(letter))["score"] for letter in question.choices].count(1) == 1


def test_llava_bench_reads_what_its_judge_is_told(tmp_path: Path) -> None:
    rows = published.llava_bench(tmp_path, 6)
    made, questions = read("llava-bench", tmp_path)
    assert [(each.id, each.group, each.unit) for each in questions] == [
        (str(row["question_id"]), row["category"], row["image"]) for row in rows
    ]
    asked = made.asked(questions[4], Answer(" My answer. ")).text  # type: ignore[attr-defined]
    places = [
        asked.index(part) for part in (rows[4]["caption"], rows[4]["text"], rows[4]["gpt_answer"], "My answer.\n")
    ]
    assert places == sorted(places)
    marks = [made.worth(question, (8.0, 4.0 + number)) for number, question in enumerate(questions)]  # type: ignore[attr-defined]
    found = made.metrics(columns(marks), np.ones(6))
    assert found == {"score": 6.5 / 8, "conv": 5.5 / 8, "detail": 6.5 / 8, "complex": 7.5 / 8}


def test_the_authors_prompts_are_read_from_their_files(tmp_path: Path) -> None:
    published.mmhal(tmp_path / "mmhal", 2)
    published.mm_vet(tmp_path / "vet", 2)
    template = "Judge {} and {} and {} and {}"
    source = f"import openai\n\ntemplate = {template!r}\nraise SystemExit\n"
    made, questions = read("mmhal", tmp_path / "mmhal", prompt=str(published.written(tmp_path / "e.py", source)))
    asked = made.asked(questions[1], Answer("{red}"))  # type: ignore[attr-defined]
    assert asked.text == f"Judge Tree, Bus and What colour is bus 1? and {questions[1].expected} and {{red}}"
    made, questions = read("mm-vet", tmp_path / "vet", prompt=str(published.written(tmp_path / "p.txt", "Compare.\n")))
    expected = questions[0].expected.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    assert made.asked(questions[0], Answer("x = 3")).text == f"Compare.\n\nWhat is x in 0? | {expected} | x = 3 | "  # type: ignore[attr-defined]
    with pytest.raises(StageError, match=r"e\.txt: 3 places such as {}; expected 4"):
        read("mmhal", tmp_path / "mmhal", prompt=str(published.written(tmp_path / "e.txt", "{} {} {}")))
    with pytest.raises(StageError, match=r"f\.py: sets none of template to a text; name the authors' file"):
        read("mmhal", tmp_path / "mmhal", prompt=str(published.written(tmp_path / "f.py", "x = 1\n")))
    with pytest.raises(StageError, match=r"r\.json: no 'llava_bench_conv'; is this its authors' rule.json\?"):
        read("llava-bench", tmp_path, rules=str(published.written(tmp_path / "r.json", {})))


def test_own_prompts_tell_the_judge_everything(tmp_path: Path) -> None:
    published.mmhal(tmp_path / "mmhal", 8)
    made, questions = read("mmhal", tmp_path / "mmhal")
    asked = made.asked(questions[3], Answer("A green bus."))  # type: ignore[attr-defined]
    assert all(
        part in asked.text for part in ("Tree, Bus", "bus 3?", questions[3].expected, "A green bus.", "Rating: ")
    )
    assert made.verdict("Good.\nRating: 6") == (6.0,)  # type: ignore[attr-defined]
    assert made.verdict("Rating: 6, or\nrating: 2") is None  # type: ignore[attr-defined]
    marks = [made.worth(questions[0], (float(rating),)) for rating in (0, 2, 3, 6)]  # type: ignore[attr-defined]
    assert made.metrics(columns(marks), np.ones(4)) == {"score": 11 / 4, "hallucination": 0.5}


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("8 7\nBecause 9 is more.", (8.0, 7.0)),
        ("8.5, 10\n", (8.5, 10.0)),
        ("Assistant 1: 8, Assistant 2: 7", None),
        ("8/10 7/10", None),
        ("8", None),
        ("80 70", None),
        ("", None),
    ],
)
def test_ratings_are_two_numbers_in_the_first_line(reply: str, verdict: tuple[float, float] | None) -> None:
    assert task("llava-bench").verdict(reply) == verdict  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("0.4", (0.4,)), (" 1.0 \nsure", (1.0,)), ("1.5", None), ("nan", None), ("ok 1", None), ("", None)],
)
def test_correctness_is_the_number_that_a_reply_begins_with(reply: str, verdict: tuple[float] | None) -> None:
    assert task("mm-vet").verdict(reply) == verdict  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "docvqa",
            {"data": [{"questionId": 1, "question": "q", "image": "x.png"}]},
            r"entry 1: no 'answers': those of",
        ),
        (
            "docvqa",
            {"data": [{"answers": ["a"], "question": "q"}]},
            r"entry 1: no 'image' \(there are answers, question\)",
        ),
        ("textvqa", {"data": [{"answers": [1]}]}, r"entry 1: 'answers' is a list, not a list of strings"),
        ("gqa", [1], r"x\.json: a list, not an object of questions by their ids"),
        ("gqa", {"7": {"question": "q"}}, r"x\.json, key '7': no 'imageId'"),
        ("vqav2", {"questions": []}, r"x\.json: no 'data_subtype'; is this the file as its authors publish it\?"),
        ("mm-vet", {"v1_0": {"capability": ["smell"], "imagename": "x"}}, r"key 'v1_0': 'capability' has 'smell'"),
        ("mmhal", [{"image_src": 3}], r"entry 1: 'image_src' is a number, not a string"),
        ("gqa", "{broken", r"x\.json: not JSON"),
    ],
)
def test_a_file_of_another_layout_is_told_in_one_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    file = published.written(tmp_path / ("questions.json" if name == "vqav2" else "x.json"), content)
    with pytest.raises(StageError, match=message.replace(r"x\.json: no 'data", r"questions\.json: no 'data")) as caught:
        read(name, file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", MINE)
def test_what_isn_t_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(StageError, match=r"nowhere: no such file or folder"):
        read(name, tmp_path / "nowhere")
    with pytest.raises(StageError, match=r"^[^\n]+(no file|neither)[^\n]+$"):
        read(name, tmp_path)


def test_a_question_may_not_lead_out_of_the_images(tmp_path: Path) -> None:
    published.docvqa(tmp_path, 1)
    whole = json.loads((tmp_path / "val_v1.0.json").read_text())
    whole["data"][0]["image"] = "../../etc/passwd"
    file = published.written(tmp_path / "val_v1.0.json", whole)
    with pytest.raises(StageError, match=r"entry 1: ImagePath: '\.\./\.\./etc/passwd' lies outside the images folder"):
        read("docvqa", file)


def test_mmbench_without_copies_has_no_circular(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published.mmbench(tmp_path, 4, copies=False)
    made, questions = read("mmbench", tmp_path)
    right = [question.expected for question in questions]
    found = answered(made, questions, right)
    assert np.isnan(found["circular"])
    assert (found["vanilla"], found["unread"]) == (1, 0)
    assert (
        f"{tmp_path}: 4 of 4 questions of mmbench have no copies with their options moved on, and no number "
        "'circular'; --task-options mmbench.circular=make makes them"
    ) in caplog.text
    # Where they aren't wanted there is nothing to be told.
    caplog.clear()
    made, questions = read("mmbench", tmp_path, circular="none")
    assert np.isnan(answered(made, questions, right)["circular"])
    assert not caplog.text


def test_mmbench_circular_is_of_the_questions_with_copies(tmp_path: Path) -> None:
    rows = published.mmbench(tmp_path, 4)
    kept = [row for row in rows if row["index"] % 1_000_000 != 3 or row["index"] == 3]
    lines = ["\t".join(f'"{value}"' for value in row.values()) for row in kept]
    (tmp_path / "MMBench_DEV_EN.tsv").write_text("\n".join(["\t".join(rows[0]), *lines]), encoding="utf-8")
    made, questions = read("mmbench", tmp_path)
    wrong = ["?" if question.unit == "0" else question.expected for question in questions]
    assert answered(made, questions, wrong)["circular"] == 2 / 3
