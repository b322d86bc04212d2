"""--columns: what a user names, in rows and in files of columns, and every refusal."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.importing import ImportConfig
from vig_ray.dataset.layouts.columns import named_layout
from vig_ray.dataset.rows import Row, to_sample
from vig_ray.dataset.schema import Image, RowError, Sample
from vig_ray.errors import StageError
from vig_ray.stage import read_stage

FOLDER = ImageFolder("/data")
JPG = (Image(uri="/data/a/1.jpg"),)


def named(columns: str, row: dict[str, Any]) -> Sample:
    return to_sample(Row(0, row, layout=named_layout(columns)), FOLDER)[0]


def texts(sample: Sample) -> list[str]:
    return [turn.text for turn in sample.conversation]


TURNS = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "A."}]

NAMED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "question and answer": (
        "question=ask,answer=reply,image=pic",
        {"ask": "Q?", "reply": "A.", "pic": "a/1.jpg"},
        ["<image>\nQ?", "A."],
    ),
    "inside of an object": (
        "question=qa.ask,answer=qa.reply.text",
        {"qa": {"ask": "Q?", "reply": {"text": "A."}}, "image": "a/1.jpg"},
        ["<image>\nQ?", "A."],
    ),
    "inside of a list of objects": (
        "question=qa.q,answer=qa.a",
        {"qa": [{"q": "Q?", "a": "A."}, {"q": "R?", "a": "B."}], "images": ["a/1.jpg"]},
        ["<image>\nQ?", "A.", "R?", "B."],
    ),
    "inside of an object of lists": (
        "question=qa.q,answer=qa.a",
        {"qa": {"q": ["Q?", "R?"], "a": ["A.", "B."]}, "images": ["a/1.jpg"]},
        ["<image>\nQ?", "A.", "R?", "B."],
    ),
    "a name with a dot": (
        "question=q.text,answer=a",
        {"q.text": "Q?", "a": "A.", "image": "a/1.jpg"},
        ["<image>\nQ?", "A."],
    ),
    "a list of answers": (
        "question=q,answer=a",
        {"q": "Q?", "a": ["A.", "B.", "B."], "image": "a/1.jpg"},
        ["<image>\nQ?", "B."],
    ),
    "a number for an answer": ("question=q,answer=a", {"q": "Q?", "a": 3, "image": "a/1.jpg"}, ["<image>\nQ?", "3"]),
    "an answer to the question that is there": (
        "answer=fullAnswer",
        {"question": "Q?", "answer": "A.", "fullAnswer": "It is A.", "image": "a/1.jpg"},
        ["<image>\nQ?", "It is A."],
    ),
    "an answer without a question": (
        "answer=alt_text,image=pic",
        {"alt_text": "A bus.", "pic": "a/1.jpg"},
        ["<image>\nDescribe the image.", "A bus."],
    ),
    "an answer beside options, as it is": (
        "question=question,answer=answer",
        {"question": "Q?", "options": ["a"], "answer": "A.", "image": "a/1.jpg"},
        ["<image>\nQ?", "A."],
    ),
    "conversations": ("conversations=dialog", {"dialog": TURNS, "image": "a/1.jpg"}, ["<image>?", "A."]),
    "messages where both are there": (
        "messages=messages",
        {"messages": TURNS, "conversations": [], "image": "a/1.jpg"},
        ["<image>?", "A."],
    ),
    "texts": (
        "texts=qa,images=pics",
        {"qa": [{"user": "Q?", "assistant": "A."}], "pics": ["a/1.jpg"]},
        ["<image>\nQ?", "A."],
    ),
    "an image alone, the rest being known": (
        "image=pic",
        {"question": "Q?", "answer": "A.", "pic": "a/1.jpg", "image": "thumbnail.jpg"},
        ["<image>\nQ?", "A."],
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_named_columns(case: str) -> None:
    columns, row, expected = NAMED[case]
    sample = named(columns, row)
    assert texts(sample) == expected
    assert sample.images == JPG


@pytest.mark.parametrize("case", NAMED)
def test_named_columns_of_a_file(case: str, bench: Any) -> None:
    columns, row, expected = NAMED[case]
    pq.write_table(pa.Table.from_pylist([row]), bench.folder / "d.parquet")
    (found,) = bench.load(bench.folder / "d.parquet", columns=columns)
    assert found["error"] is None
    assert [turn["text"] for turn in found["conversation"]] == expected
    assert [image["uri"] for image in found["images"]] == [f"{bench.folder}/a/1.jpg"]


def test_id_source_and_system() -> None:
    row = {
        "q": "Q?",
        "a": "A.",
        "uid": 7,
        "kind": 3,
        "prompt": "Be brief.",
        "id": "no",
        "source": "no",
        "image": "a/1.jpg",
    }
    sample = named("question=q,answer=a,id=uid,source=kind,system=prompt", row)
    assert (sample.id, sample.source) == ("7", "3")
    assert texts(sample) == ["Be brief.", "<image>\nQ?", "A."]
    sample = named("question=q,answer=a", row)
    assert (sample.id, sample.source) == ("no", "no")


def test_a_row_without_the_column_is_an_error() -> None:
    for columns in ("question=q,answer=a", "question=q.text,answer=a", "conversations=q"):
        with pytest.raises(RowError, match=r"MissingColumn: no 'q.*' .* its keys are 'a', 'b'"):
            named(columns, {"a": "A.", "b": 1})
    assert named("question=q,answer=a,image=pic", {"q": "Q?", "a": "A."}).images == ()


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ("question", "'question': expected NAME=COLUMN"),
        ("questoin=q", "expected NAME=COLUMN, the name one of question, answer, image"),
        ("question=", "expected NAME=COLUMN"),
        ("question=q,question=r", "question is named twice"),
        ("conversations=a,answer=b", "conversations and answer exclude each other"),
        ("messages=a,texts=b", "messages and texts exclude each other"),
        ("image=a,images=b", "image and images exclude each other"),
    ],
)
def test_columns_that_say_nothing_are_refused(columns: str, told: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(told)):
        ImportConfig(data="d.json", out="out", columns=columns)


def test_a_file_without_the_column_is_refused_before_anything_is_written(bench: Any) -> None:
    pq.write_table(pa.table({"ask": ["Q?"], "qa": [{"reply": "A."}]}), bench.folder / "d.parquet")
    told = r"d\.parquet: no such column: --columns answer=qa\.answer,image=pic; the file has ask, qa"
    with pytest.raises(StageError, match=told):
        bench.load(bench.folder / "d.parquet", columns="question=ask,answer=qa.answer,image=pic")
    assert not bench.out.exists()


def test_a_file_that_fits_no_layout_with_them_is_refused(bench: Any) -> None:
    pq.write_table(pa.table({"ask": ["Q?"], "pic": ["a/1.jpg"]}), bench.folder / "d.parquet")
    with pytest.raises(
        StageError, match=r"d\.parquet: the columns \('ask', 'pic', 'image'\) fit no layout; .*--columns question="
    ):
        bench.load(bench.folder / "d.parquet", columns="image=pic")


def test_they_belong_to_the_identity_where_they_are_given(bench: Any) -> None:
    row = {"question": "Q?", "answer": "A.", "long": "B.", "image": "a/1.jpg"}
    data = bench.write("d.json", [row])
    bench.load(data)
    assert "columns" not in read_stage(str(bench.out / "samples"))["identity"]
    with pytest.raises(StageError, match="columns"):
        bench.load(data, columns="answer=long")
    (found,) = bench.load(data, columns="answer=long", overwrite=True)
    assert found["conversation"][-1]["text"] == "B."
    assert read_stage(str(bench.out / "samples"))["identity"]["columns"] == "answer=long"


def test_of_a_shard_too(bench: Any, make_tar: Any) -> None:
    path = make_tar(bench.folder / "s.tar", [("1.jpg", b"one"), ("1.json", b'{"ask": "Q?", "reply": "A."}')])
    (found,) = bench.load(path, columns="question=ask,answer=reply")
    assert [turn["text"] for turn in found["conversation"]] == ["<image>\nQ?", "A."]
    assert found["images"] == [{"uri": None, "bytes": b"one"}]
