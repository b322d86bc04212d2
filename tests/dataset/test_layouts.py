"""Every layout on files that the `datasets` library writes by the sets' own cards, against samples made by hand."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, load_dataset
from datasets.info import DatasetInfosDict

from tests.dataset.conversation_sets import CONVERSATIONS
from tests.dataset.question_sets import QUESTIONS
from tests.dataset.sets import URL, Expected, Set, asked, kept, picture
from vig_ray.dataset.fields import structs
from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.inputs import read_rows
from vig_ray.dataset.layouts.known import LAYOUTS
from vig_ray.dataset.listing import find
from vig_ray.dataset.rows import Row, to_sample
from vig_ray.dataset.schema import Image, RowError
from vig_ray.dataset.spec import parse
from vig_ray.errors import StageError

SETS = CONVERSATIONS | QUESTIONS

CARDS = Path(__file__).parent / "cards"
DOCS = Path(__file__).parents[2] / "docs" / "data.md"
FOLDER = ImageFolder("/data")
ONE = picture(1)


def features(card: str, folder: Path, config: int = 0) -> Features:
    """The columns of a set by its card, as the `datasets` library reads it."""
    folder.mkdir(exist_ok=True)
    shutil.copy(CARDS / f"{card}.md", folder / "README.md")
    return list(DatasetInfosDict.from_directory(str(folder)).values())[config].features


def written(told: Set, folder: Path) -> Path:
    """The set's rows as a file of its own kind."""
    rows = [row for row, _ in told.rows]
    if told.card is not None:
        path = folder / "train-00000-of-00001.parquet"
        Dataset.from_list(rows, features=features(told.card, folder / "card")).to_parquet(path)
        return path
    path = folder / ("train.jsonl" if told.lines else "train.json")
    path.write_text("\n".join(map(json.dumps, rows)) if told.lines else json.dumps(rows))
    return path


def came_to(row: Row) -> Expected:
    """What a row that was read comes to."""
    try:
        sample, marked = to_sample(row, FOLDER)
    except RowError as error:
        return Expected(error=str(error))
    told = [(turn.role, turn.text) for turn in sample.conversation]
    return Expected(told, sample.images, sample.id, sample.source, marked)


def rows_of(path: Path) -> list[Row]:
    (file,) = find(parse(str(path)), "auto").files
    return list(read_rows(file))


@pytest.mark.parametrize("name", SETS)
def test_rows_come_to_the_samples_that_they_are(name: str, tmp_path: Path) -> None:
    rows = rows_of(written(SETS[name], tmp_path))
    assert len(rows) == len(SETS[name].rows)
    for row, (_, expected) in zip(rows, SETS[name].rows, strict=True):
        found = came_to(row)
        if expected.error is None:
            assert found == expected
        else:
            assert found.error is not None
            assert re.match(expected.error, found.error), found.error


@pytest.mark.parametrize("name", [name for name, told in SETS.items() if told.card is not None])
def test_a_row_is_what_the_datasets_library_reads(name: str, tmp_path: Path) -> None:
    """The columns that are read hold what `datasets` gives of the same file, images undecoded."""
    path = written(SETS[name], tmp_path)
    loaded = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    plain = loaded.with_format("arrow")[:].to_pylist()
    for row, told in zip(rows_of(path), plain, strict=True):
        assert isinstance(row.content, dict)
        assert row.content.items() <= told.items()


def test_the_docs_count_the_rows_that_are_read_here() -> None:
    table = dict(re.findall(r"^\| ([^|]+?) \|(?:[^|\n]*\|)+ (\d+) \|$", DOCS.read_text("utf-8"), re.MULTILINE))
    assert {name: int(table[name]) for name in SETS} == {name: len(told.rows) for name, told in SETS.items()}


def test_images_in_another_file_are_said_to_be_missing(tmp_path: Path) -> None:
    row = {"id": "1", "imageId": "n1", "question": "Is it red?", "answer": "yes", "isBalanced": True}
    kinds = features("gqa", tmp_path / "card")
    path = tmp_path / "gqa.parquet"
    Dataset.from_list([{**dict.fromkeys(kinds), **row}], features=kinds).to_parquet(path)
    with pytest.raises(StageError, match=r"gqa\.parquet: .*question-answer .* lacks an image's column .*another file"):
        rows_of(path)


def test_points_in_pixels_are_not_taken_for_per_cent(tmp_path: Path) -> None:
    kinds = features("pixmo_count", tmp_path / "card")
    row = {"image_url": URL, "image_sha256": None, "count": 1, "points": {"x": [3.0], "y": [4.0]}, "label": "cat"}
    path = tmp_path / "count.parquet"
    Dataset.from_list([row], features=kinds).to_parquet(path)
    with pytest.raises(StageError, match=r"pixmo-points .* lacks 'collection_method'"):
        rows_of(path)


def test_an_answer_by_number_is_refused(tmp_path: Path) -> None:
    kinds = features("scienceqa", tmp_path / "card")
    row = {"image": kept(ONE), "question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": ""}
    path = tmp_path / "science.parquet"
    Dataset.from_list([row], features=kinds).to_parquet(path)
    with pytest.raises(StageError, match=r"lacks 'answer' as text or a list of it \(it is 'int8'\)"):
        rows_of(path)


def one(row: dict[str, Any]) -> Expected:
    return came_to(Row(0, row))


def test_an_answer_among_options_is_refused() -> None:
    row = {"image": ONE, "question": "Which?", "options": ["red", "blue"], "answer": "1"}
    assert re.match("MultipleChoice: .*'options'.*--columns question=question,answer=answer", str(one(row).error))
    assert one({**row, "options": []}).error is None


PAIR = {"image": ONE, "question": "Q?", "answer": "A."}
TURNS = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "T."}]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({**PAIR, "conversations": TURNS}, "T."),
        ({**PAIR, "caption": "C."}, "A."),
        ({**PAIR, "answers": ["B.", "B."]}, "A."),
        ({**PAIR, "multiple_choice_answer": "M."}, "M."),
        ({"image": ONE, "caption": "C.", "messages": TURNS}, "T."),
        ({"messages": TURNS, "image": ONE, "prompt": [TURNS[0]], "completion": [{"from": "gpt", "value": "P."}]}, "T."),
    ],
)
def test_the_more_specific_layout_is_taken(row: dict[str, Any], answer: str) -> None:
    assert one(row).conversation[-1] == ("assistant", answer)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"conversations": TURNS, "messages": TURNS, "image": ONE},
            "both 'conversations' and 'messages' are there; .*--columns conversations=conversations or --columns mess",
        ),
        (
            {"images": [ONE], "texts": [{"user": "A?", "assistant": "B."}], "messages": TURNS},
            "both 'messages' and 'texts' are there; .*--columns texts=texts",
        ),
        (
            {**PAIR, "query": "Q?", "response": "R."},
            "both 'question' with 'answer' and 'query' with 'response' .*--columns question=query,answer=response",
        ),
        ({**PAIR, "instruction": "Q?", "output": "R."}, ".*--columns question=instruction,answer=output"),
    ],
)
def test_two_layouts_alike_are_refused(row: dict[str, Any], told: str) -> None:
    assert re.match(f"UnknownFormat: {told}", str(one(row).error))


def test_a_file_may_mix_layouts(bench: Any) -> None:
    """As JSON by each row's keys, as Parquet by which columns are null."""
    rows = [{"image": "1.jpg", "conversations": TURNS}, {**PAIR, "image": "1.jpg"}, {"query": "Q?", "response": "R."}]
    expected = ["T.", "A.", "R."]
    found = bench.load(bench.write("d.json", rows), order="as-is")
    assert [row["conversation"][-1]["text"] for row in found] == expected
    keys = ("image", "conversations", "question", "answer", "query", "response")
    table = pa.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows])
    pq.write_table(table, bench.folder / "d.parquet")
    found = bench.load(bench.folder / "d.parquet", order="as-is", overwrite=True)
    assert [row["conversation"][-1]["text"] for row in found] == expected


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        (["a", "b", "b"], "b"),
        (["a", "b", "b", "a"], "a"),
        (["b"], "b"),
        ("plain", "plain"),
        ({"answer": ["a", "b", "b"], "answer_id": [1, 2, 3]}, "b"),
        ([{"answer": "a"}, {"answer": "b"}, {"answer": "b"}], "b"),
    ],
)
def test_of_several_answers_the_most_frequent_is_taken(answers: Any, chosen: str) -> None:
    found = one({"image": ONE, "question": "Q?", "answers": answers})
    assert found.conversation[-1] == ("assistant", chosen)


def test_several_questions_with_as_many_answers_are_one_conversation() -> None:
    found = one({"image": ONE, "question": ["A?", "C?"], "answer": ["B.", "D."]})
    assert found.conversation == asked("<image>\nA?", "B.", "C?", "D.")
    short = one({"image": ONE, "question": ["A?", "C?"], "answer": ["B."]})
    assert short.error == "BadConversation: 2 questions under 'question', and 1 under 'answer'"


def test_an_object_of_lists_is_what_datasets_makes_of_a_sequence_of_objects() -> None:
    rows = [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "B."}]
    kinds = Features.from_dict(
        {
            "turns": {
                name: {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"} for name in ("from", "value")
            }
        }
    )
    (kept_row,) = Dataset.from_list(
        [{"turns": {name: [row[name] for row in rows] for name in ("from", "value")}}], features=kinds
    ).to_list()
    assert structs(kept_row["turns"], "turns") == rows
    with pytest.raises(RowError, match="lists of different lengths: 1 'from', 2 'value'"):
        structs({"from": ["a"], "value": ["b", "c"]}, "turns")


def test_links_are_passed_on_with_their_checksum() -> None:
    row = {"image_url": URL, "image_sha256": "AB" * 32, "question": "Q?", "answer": "A."}
    assert one(row).images == (Image(uri=URL, sha256="ab" * 32),)
    assert one({**row, "image": ONE}).images == (Image(bytes=ONE),)


def test_what_fits_no_layout_is_told_with_the_nearest() -> None:
    found = str(one({"question": "Q?", "answer": "A.", "picture": "1.jpg"}).error)
    assert found == (
        "UnknownFormat: the row's keys ('question', 'answer', 'picture') fit no layout; the nearest is question-answer "
        "('question', 'answer'), which lacks an image's column (image, images, image_url; some sets keep images in "
        "another file: join it first); other names are told with --columns "
        "question=question,answer=answer,image=picture"
    )
    found = str(one({"vqa": {"ask": "Q?", "reply": "A."}, "user_prompt": "x", "photo_path": "y"}).error)
    assert found.endswith("--columns question=user_prompt,answer=vqa.reply,image=photo_path")
    found = str(one({"dialog": TURNS}).error)
    assert "expected 'conversations', 'messages'" in found
    assert found.endswith("--columns conversations=dialog")


def test_names_of_layouts_are_their_own() -> None:
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)
