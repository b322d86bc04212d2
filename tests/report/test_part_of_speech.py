"""Gains by part of speech, with a real spaCy pipeline whose words are known."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import spacy
from transformers import AutoTokenizer

from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.report import job, part_of_speech
from vig_ray.report.job import ReportConfig
from vig_ray.report.part_of_speech import tag_pieces

WORDS = {"ADJ": [*world.COLORS, "left", "right"], "NOUN": world.SHAPES, "DET": ["a", "the"], "ADP": ["on", "by", "in"],
         "PUNCT": ["."]}  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One that knows the demo world's words and takes any other for X."""
    found = spacy.blank("en")
    ruler = found.add_pipe("attribute_ruler")
    ruler.add(patterns=[[{"IS_SPACE": False}]], attrs={"POS": "X"})
    for tag, words in WORDS.items():
        ruler.add(patterns=[[{"LOWER": word}] for word in words], attrs={"POS": tag})
    folder = tmp_path_factory.mktemp("pipeline")
    found.to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(chosen: Path) -> Path:
    return chosen


def told(folder: Path, out: Path, **options: Any) -> dict[str, Any]:
    job.run(ReportConfig(**{"scores": str(folder), "out": str(out / "r.html"), "gallery": 0} | options))
    found: dict[str, Any] = json.loads((out / "r.json").read_text())
    return found


def test_gains_by_part_of_speech(folder: Path, pipeline: str, tmp_path: Path) -> None:
    found = told(folder, tmp_path, tagger=pipeline)["speech"]
    rows = [row for row in pq.read_table(folder / "scores" / "0.parquet").to_pylist() if row["vig"] is not None]
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    gains: dict[str, list[float]] = {}
    for row in rows:
        pieces = tokenizer.convert_ids_to_tokens(row["token_ids"])
        for piece, clean, reference in zip(pieces, row["clean_logprobs"], row["blur_logprobs"], strict=True):
            # The end of a turn is next to the full stop, and no word of its own.
            word = piece.lstrip("▁").lower()
            tag = next((tag for tag, words in WORDS.items() if word in words), None if word == "</s>" else "X")
            if tag is not None:
                gains.setdefault(tag, []).append(clean - reference)
    assert found["samples"] == len(rows)
    assert found["tagger"] == pipeline
    by_tag = {row["tag"]: row for row in found["tags"]}
    for tag in WORDS:
        assert by_tag[tag]["tokens"] == len(gains[tag])
        assert by_tag[tag]["mean"] == pytest.approx(statistics.fmean(gains[tag]), abs=1e-6)
    assert sum(row["tokens"] for row in found["tags"]) == sum(len(row["token_ids"]) for row in rows)
    # What the demo's images show are colors and shapes.
    assert by_tag["NOUN"]["mean"] > 0.3 > 0.1 > abs(by_tag["DET"]["mean"])
    assert by_tag["NOUN"]["words"] == "noun"
    html = (tmp_path / "r.html").read_text()
    assert "Mean gain by part of speech" in html
    assert (tmp_path / "r-figures" / "speech.svg").exists()


def test_parts_of_speech_before_and_after_the_selection(folder: Path, pipeline: str, tmp_path: Path) -> None:
    """Of whole answers: what a selection keeps of the samples, whichever of their tokens are trained on."""
    found = told(folder, tmp_path, tagger=pipeline)["speech"]
    rows = [row for row in pq.read_table(folder / "scores" / "0.parquet").to_pylist() if row["vig"] is not None]
    kept = {*pq.read_table(folder / "selection")["sample_key"].to_pylist()}
    assert 0 < len(kept & {row["sample_key"] for row in rows}) < len(rows)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)

    def share(word_of: list[str], of: list[dict[str, Any]]) -> float:
        words = [piece.lstrip("▁").lower() for row in of for piece in tokenizer.convert_ids_to_tokens(row["token_ids"])]
        return sum(word in word_of for word in words) / len(words)

    after = [row for row in rows if row["sample_key"] in kept]
    by_tag = {row["tag"]: row for row in found["tags"]}
    for tag, words in WORDS.items():
        assert by_tag[tag]["share"] == pytest.approx(share(words, rows), abs=1e-12)
        assert by_tag[tag]["kept_share"] == pytest.approx(share(words, after), abs=1e-12)
    moved = sum(abs(row["kept_share"] - row["share"]) for row in found["tags"]) / 2
    assert found["moved"] == pytest.approx(moved, abs=1e-12)
    assert f"total variation {100 * moved:.1f} %" in (tmp_path / "r.html").read_text()


def test_without_a_selection_there_is_no_after(folder: Path, pipeline: str, tmp_path: Path) -> None:
    scored = tmp_path / "alone"
    scored.mkdir()
    for name in ("scores", "scores.stage.json"):
        (scored / name).symlink_to(folder / name)
    found = told(scored, tmp_path, tagger=pipeline)["speech"]
    assert found["moved"] is None
    assert {row["kept_share"] for row in found["tags"]} == {None}
    assert "total variation" not in (tmp_path / "r.html").read_text()


def test_a_sample_of_the_answers_is_tagged_and_said_so(folder: Path, pipeline: str, tmp_path: Path) -> None:
    some = told(folder, tmp_path, tagger=pipeline, tagged=90)["speech"]
    assert 30 < some["samples"] < 95
    assert re.search(rf"Parts of speech are of {some['samples']} samples drawn", (tmp_path / "r.html").read_text())
    again = told(folder, tmp_path, tagger=pipeline, tagged=90)["speech"]
    assert again == some
    assert told(folder, tmp_path, tagger=pipeline, tagged=90, seed=7)["speech"] != some


def test_without_a_tagger_there_is_no_such_part(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_of_speech, "USUAL", ("no_such_pipeline",))
    assert told(folder, tmp_path, tagger="auto")["speech"] is None
    assert "part of speech" not in (tmp_path / "r.html").read_text()


def test_a_pipeline_that_tags_nothing_is_told(folder: Path, tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(StageError, match="assigns no parts of speech"):
        told(folder, tmp_path, tagger=str(tmp_path / "blank"))


def test_where_none_was_drawn_the_report_goes_without(folder: Path, pipeline: str, tmp_path: Path) -> None:
    assert (
        part_of_speech.gains_by_tag(part_of_speech.load_tagger(pipeline), AutoTokenizer.from_pretrained(CHECKPOINT), [])
        is None
    )


def test_a_token_counts_for_the_word_it_begins_in() -> None:
    words = [(0, 1, "DET"), (2, 10, "NOUN"), (10, 11, "PUNCT")]
    assert tag_pieces(["A", " tri", "angle", "", ".", "</s>"], words) == [
        "DET",
        "NOUN",
        "NOUN",
        "no word",
        "PUNCT",
        "no word",
    ]
    assert tag_pieces([" ", "A"], [(1, 2, "DET")]) == ["no word", "DET"]
