"""Every task's files, each spoilt in turn: of another layout, a row without a field, an image that isn't there."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.evaluation import published_a, published_b
from tests.evaluation.asking import begun
from tests.evaluation.test_chair import annotations
from tests.evaluation.test_swap import row_of
from tests.evaluation.test_yes_no_and_letters import AMBER, HALLUSION, QUERIES
from vig_ray.dataset.schema import SAMPLES
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.evaluation.asked import Asked
from vig_ray.evaluation.prepare import QuestionPreparer
from vig_ray.evaluation.question import Question
from vig_ray.evaluation.questions import survey
from vig_ray.evaluation.task import Given
from vig_ray.evaluation.tasks import TASKS
from vig_ray.evaluation.told import warn_once
from vig_ray.model.load import Prompts
from vig_ray.scoring.prepared import unpack


@dataclass(frozen=True)
class Layout:
    """How a task's data is written, in a folder. `files`: by path, and the key of its rows behind a colon, the fields
    that each row must have. `data`: what is given of the folder. `told`: a bad row is counted and told, as `vig import`
    has it, and no error of the file."""

    write: Callable[[Path], Any]
    files: Mapping[str, str]
    data: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    told: bool = False

    def given(self, folder: Path) -> Given:
        options = {name: value.replace("FOLDER", str(folder)) for name, value in self.options.items()}
        return Given(str(folder / self.data) if self.data else str(folder), None, options)


def _amber(folder: Path) -> None:
    published_a.amber(folder, AMBER, QUERIES)
    for row in QUERIES:
        published_a.written(folder / row["image"], published_a.picture())


def _own_samples(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nSo?"}, {"from": "gpt", "value": "Yes."}]
    rows = [{"id": f"{n}", "image": f"{n}.png", "conversations": turns} for n in range(3)]
    _with_pictures(folder, rows)
    published_a.as_json(folder / "own.json", rows)


def _with_pictures(folder: Path, rows: list[dict[str, Any]], key: str = "image") -> list[dict[str, Any]]:
    for number, row in enumerate(rows):
        published_a.written(folder / row[key], published_a.picture(number))
    return rows


def _questions(folder: Path) -> None:
    rows = [
        {"question": f"{n}?", "image": f"{n}.png", "choices": ["a", "b", "c"], "answer": "abc"[n]} for n in range(3)
    ]
    published_a.as_lines(folder / "rows.jsonl", _with_pictures(folder, rows))


def _chair(folder: Path) -> None:
    annotations(folder)
    for number in range(30):
        published_a.written(folder / f"{number:02d}.jpg", published_a.picture(number))


def _hallusionbench(folder: Path) -> None:
    rows = [row for row in HALLUSION if row["filename"]]
    published_a.as_json(folder / "HallusionBench.json", _with_pictures(folder, rows, "filename"))


def _mme(folder: Path) -> None:
    of = {"image": published_a.struct(), "category": "OCR", "question": "So?"}
    rows = [{**of, "question_id": f"OCR/{n // 2}.jpg", "answer": ("Yes", "No")[n % 2]} for n in range(4)]
    published_a.as_parquet(folder / "mme.parquet", rows)


def _mmstar(folder: Path) -> None:
    of = {"question": "So?", "answer": "A", "category": "math", "l2_category": "x"}
    published_a.as_parquet(
        folder / "mmstar.parquet", [{**of, "index": n, "image": published_a.struct(n)} for n in range(3)]
    )


def _pope(folder: Path) -> None:
    rows = published_a.pope_rows(["yes", "no"] * 2)
    for number, row in enumerate(rows):
        row["image"] = f"{number}.jpg"
    published_a.as_lines(folder / "random.jsonl", _with_pictures(folder, rows))


def _seed(folder: Path) -> None:
    of = {"data_type": "image", "question": "So?", "answer": "B", "question_type_id": 1}
    of |= {f"choice_{letter}": letter for letter in "abcd"}
    rows = [{**of, "question_id": f"q{n}", "data_id": f"{n}_x"} for n in range(3)]
    published_a.as_json(folder / "SEED-Bench.json", {"questions": _with_pictures(folder, rows, "data_id")})


OWN = Layout(_own_samples, {"own.json": "conversations"}, "own.json", told=True)
EXACT = Layout(_questions, {"rows.jsonl": "question answer"}, "rows.jsonl")
LAYOUTS: dict[str, Layout] = {
    "amber": Layout(_amber, {"query/query_all.json": "id image query", "annotations.json": "id type truth hallu"}),
    "attention": OWN,
    "chair": Layout(
        _chair,
        {
            "instances_val2014.json:images": "id file_name",
            "instances_val2014.json:annotations": "image_id category_id",
            "instances_val2014.json:categories": "id name",
            "captions_val2014.json:annotations": "image_id caption",
        },
        options={"synonyms": "FOLDER/synonyms.txt", "num_images": "all"},
    ),
    "chartqa": Layout(lambda to: published_b.chartqa(to, 8), {
        "test/test_human.json": "imgname query label", "test/test_augmented.json": "imgname query label",
    }, "test"),
    "choices": Layout(_questions, {"rows.jsonl": "question choices answer"}, "rows.jsonl"),
    "docvqa": Layout(lambda to: published_b.docvqa(to, 4), {"val_v1.0.json:data": "questionId question image answers"}),
    "exact": EXACT,
    "gqa": Layout(
        lambda to: published_b.gqa(to, 4),
        {"questions1.2/testdev_balanced_questions.json": "question imageId answer"},
        "questions1.2",
    ),
    "hallusionbench": Layout(_hallusionbench, {
        "HallusionBench.json":
        "category subcategory set_id figure_id question_id question gt_answer filename",
    }),
    "held-out": OWN,
    "llava-bench": Layout(lambda to: published_b.llava_bench(to, 6), {
        "questions.jsonl": "question_id image category text",
        "context.jsonl": "image caption",
        "answers_gpt4.jsonl": "question_id text",
    }),
    "mm-vet": Layout(lambda to: published_b.mm_vet(to, 3), {"mm-vet.json": "imagename question answer capability"}),
    "mmbench": Layout(lambda to: published_b.mmbench(to, 3), {"MMBench_DEV_EN.tsv": "index question answer image"}),
    "mme": Layout(_mme, {"mme.parquet": "category question_id question answer image"}),
    "mmhal": Layout(lambda to: published_b.mmhal(to, 3), {
        "response_template.json": "image_src question gt_answer question_type image_content",
    }),
    "mmstar": Layout(_mmstar, {"mmstar.parquet": "index question answer category l2_category image"}),
    "pope": Layout(_pope, {"random.jsonl": "question_id text label image"}),
    "scienceqa": Layout(lambda to: published_b.scienceqa(to, 8), {"problems.json": "question choices answer"}),
    "seed": Layout(_seed, {
        "SEED-Bench.json:questions":
        "data_type question choice_a choice_d answer question_type_id question_id data_id",
    }),
    "textvqa": Layout(lambda to: published_b.textvqa(to, 4), {
        "TextVQA_0.5.1_val.json:data": "question image_id answers question_id",
    }),
    "vqav2": Layout(lambda to: published_b.vqav2(to, 4), {
        "v2_OpenEnded_mscoco_val2014_questions.json:questions": "question_id image_id question",
        "v2_mscoco_val2014_annotations.json:annotations": "question_id answers multiple_choice_answer answer_type",
    }),
    "attention:exact": EXACT,
    "blind-faith:exact": EXACT,
    "swap:exact": EXACT,
}  # fmt: skip
FILES = [(name, file) for name, layout in LAYOUTS.items() for file in layout.files]
FIELDS = [
    (name, file, key) for name, layout in LAYOUTS.items() for file, keys in layout.files.items() for key in keys.split()
]


def test_every_task_is_here() -> None:
    assert set(TASKS) <= set(LAYOUTS)


def refusal(name: str, folder: Path) -> str:
    """The one line that the data is refused with."""
    with pytest.raises(StageError) as raised:
        survey(str(folder / "out"), Asked(name, LAYOUTS[name].given(folder)))
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 500
    assert "can't be read as the data of" not in text  # what stands for an error that nobody thought of
    return text


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_data_as_it_is_written_is_read(tmp_path: Path, name: str) -> None:
    LAYOUTS[name].write(tmp_path)
    assert survey(str(tmp_path / "out"), Asked(name, LAYOUTS[name].given(tmp_path))).number >= 3


OTHERS: dict[str, Any] = {
    "rows of other keys": [{"foo": "x", "bar": 1}, {"foo": "y", "bar": 2}],
    "an object of other keys": {"foo": {"bar": 1}},
    "a list of numbers": [1, 2],
    "a text": "How much is the fish?\n",
    "bytes": b"PAR1\x00\xff\xfe",
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_file_of_another_layout(tmp_path: Path, name: str, file: str, other: str) -> None:
    layout, content = LAYOUTS[name], OTHERS[other]
    layout.write(tmp_path)
    path = tmp_path / file.partition(":")[0]
    if path.suffix == ".parquet" and other == "rows of other keys":
        pq.write_table(pa.Table.from_pylist(content), path)
    elif path.suffix == ".tsv" and other == "rows of other keys":
        published_a.as_tsv(path, content)
    elif isinstance(content, (str, bytes)):
        published_a.written(path, content)
    else:
        published_a.as_json(path, content)
    said = refusal(name, tmp_path)
    assert path.name in said
    assert any(
        word in said
        for word in (
            "expected",
            "no '",
            "not ",
            "can't be read",
            "0 options",
            "give an array",
            "no problem",
            "UnknownFormat",
        )
    ), said


def spoil(path: Path, under: str, change: Callable[[dict[str, Any]], Any]) -> str:
    """Change the second row of a file; where it is, as messages have it."""
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
        change(rows[1])
        pq.write_table(pa.Table.from_pylist(rows), path)
        return f"{path}, row 2: "
    if path.suffix == ".tsv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        head = list(rows[1])
        change(rows[1])
        published_a.as_tsv(path, [{key: row.get(key, "") for key in head} for row in rows])
        return f"{path}, row 2: "
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        change(rows[1])
        published_a.as_lines(path, rows)
        return f"{path}, line 2: "
    whole = json.loads(path.read_text())
    rows = whole[under] if under else whole
    key = list(rows)[1] if isinstance(rows, dict) else 1
    change(rows[key])
    published_a.as_json(path, whole)
    place = f"key {key!r}" if isinstance(rows, dict) else f"{under.replace('ies', 'ys').removesuffix('s')} 2"
    of_coco = path.name.startswith(("instances", "captions"))
    return f"{path}, {place if of_coco or isinstance(rows, dict) else 'entry 2'}: "


@pytest.mark.parametrize(("name", "file", "key"), FIELDS)
def test_a_row_that_lacks_a_field(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, file: str, key: str
) -> None:
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    given = layout.given(tmp_path)
    path, _, under = file.partition(":")
    warn_once.cache_clear()
    if layout.told:
        before = len(list(begun(name, given).read(given)))
        spoil(tmp_path / path, under, lambda row: row.pop(key))
        assert len(list(begun(name, given).read(given))) == before - 1
        assert f"{tmp_path / path}: 1 samples left out: " in caplog.text
        assert " (own/0000000001)" in caplog.text
        return
    where = spoil(tmp_path / path, under, lambda row: row.pop(key))
    said = refusal(name, tmp_path)
    assert said.startswith(where), said
    # mmbench's options have letters, and pope's columns two names each, of which the hub's are told.
    assert {"text": "question", "label": "answer"}.get(key, key) in said or key in said, said


@pytest.fixture(scope="module")
def preparer() -> QuestionPreparer:
    passes = ("blur", "clean")
    return QuestionPreparer(prompts=Prompts(CHECKPOINT, "auto", None), passes=passes, max_image_pixels=10_000)


def image_of(question: Question) -> Path | None:
    """The file of a question's image."""
    return Path(question.images[0].uri) if question.images and question.images[0].uri else None


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in ("mme", "mmbench", "mmstar")])
def test_an_image_that_is_not_there(tmp_path: Path, preparer: QuestionPreparer, name: str) -> None:
    """Of files with images of their own: the first is told at once, or it is the error of its row; a later one is
    always that. (mme's, mmbench's and mmstar's are in their rows.)"""
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    given = layout.given(tmp_path)
    there = list(begun(name, given).read(given))
    files = [file for question in there if (file := image_of(question)) is not None]
    last = files[-1]
    last.unlink()
    found = list(begun(name, given).read(given))
    assert [question.id for question in found] == [question.id for question in there]
    table = pa.Table.from_pylist([row_of(question) for question in found], schema=SAMPLES)
    missing = {question.id for question in found if image_of(question) == last}
    errors = {row["id"]: row["error"] for row in unpack(preparer(table))}
    assert {key for key, error in errors.items() if error is not None} == missing
    assert all(last.name in error for error in errors.values() if error is not None)
