"""Reports of selections, of odd scores and names, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.report.reporting import assert_mean, report
from tests.selection.made import made_up, selected, write
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.report import PAGE, colours, job, numbers, render, selection_summary, tables
from vig_ray.report.figures import figures
from vig_ray.report.job import ReportConfig
from vig_ray.selection import job as selecting
from vig_ray.selection.config import SelectConfig


def test_a_selection_of_these_scores(scores: str, scored: Any, tmp_path: Path) -> None:
    selecting.run(SelectConfig(scores=scores, out=str(tmp_path), p=40))
    found = report(scores, tmp_path, selection=str(tmp_path))
    kept = {row["sample_key"]: row for row in selected(tmp_path)}
    own = [row for row in scored if row["sample_key"] in kept]
    selection = found["selection"]
    assert (selection["strategy"], selection["share"]) == ("vig", 40)
    assert selection["samples"] == len(own)
    assert selection["sample_tokens"] == sum(len(row["token_ids"]) for row in own)
    assert selection["active_tokens"] == sum(sum(kept[row["sample_key"]]["token_weights"]) for row in own)
    assert selection["text_only"] == len(kept) - len(own)
    for row in selection["sources"]:
        of_source = [each for each in own if each["source"] == row["source"]]
        assert row["samples"] == len(of_source)
        assert row["samples_share"] == len(of_source) / sum(each["source"] == row["source"] for each in scored)
    assert found["gallery"]["tau"] == selection["thresholds"][""] == min(row["vig"] for row in own)


@pytest.mark.parametrize(
    ("options", "marked"),
    [({"p": 40}, True), ({"p": 40, "strategy": "vig-samples"}, False), ({"r": 40, "strategy": "top"}, False),
     ({"p": 40, "quota": "coco=20"}, False), ({"p": 45}, False)],
)  # fmt: skip
def test_the_row_of_a_selection_is_marked_where_it_says_the_same(
    options: dict[str, Any], marked: bool, scores: str, tmp_path: Path
) -> None:
    selecting.run(SelectConfig(scores=scores, out=str(tmp_path), **options))
    found = report(scores, tmp_path, selection=str(tmp_path), p="30,40,50", gallery=0)
    shown = tables.TABLES["thresholds"](found)
    assert ('class="marked"' in shown) == marked
    if marked:
        row = next(row for row in found["thresholds"] if row["p"] == 40)
        assert row["tau"] == found["selection"]["thresholds"][""]
        assert row["active_tokens"] == found["selection"]["active_tokens"]


def test_random_samples_are_random_to_a_random_selection(scores: str, tmp_path: Path) -> None:
    selecting.run(SelectConfig(scores=scores, out=str(tmp_path), strategy="random", p=50))
    found = report(scores, tmp_path, selection=str(tmp_path), gallery=20)
    kept = {row["sample_key"] for row in selected(tmp_path)}
    drawn = [place["sample_key"] for place in found["gallery"]["groups"]["random"] if place["of_all"]]
    assert 4 < sum(key in kept for key in drawn) < 16


def test_sources_that_come_one_after_another_make_no_difference(tmp_path: Path) -> None:
    """Ties between samples of sources that lie in blocks of their own."""
    rows = made_up(120, seed=8, ties=True)
    for number, row in enumerate(rows):
        row["source"] = f"s{number // 40}"
        if row["vig"] is not None:
            row.update(vig=0.0, clean_loss=1.0, blur_loss=1.0)
    one = report(write(tmp_path / "one", rows, files=3), tmp_path)
    other = report(write(tmp_path / "other", rows[::-1], files=3), tmp_path)
    assert one["gallery"] == other["gallery"]


@pytest.mark.parametrize("vig", [0.0, 0.3, -2e9])
def test_one_sample_without_a_source(vig: float, tmp_path: Path) -> None:
    rows = [row | {"source": None} for row in made_up(30, seed=2) if row["vig"] is not None][:1]
    rows[0].update(vig=vig, clean_loss=1.0, blur_loss=1.0 + vig)
    found = report(write(tmp_path / "one", rows, files=1), tmp_path, near_zero=0, figures=True)
    assert found["gain"]["mean"] == found["gain"]["median"] == vig
    assert found["gain"]["low"] is None
    assert [row["source"] for row in found["sources"]] == [None]
    (bar,) = found["sample_gains"]["bins"]
    assert bar["samples"] == 1
    assert [place["sample_key"] for place in found["gallery"]["groups"]["lowest"]] == [rows[0]["sample_key"]]
    assert (tmp_path / "r-figures" / "sample-gain.png").exists()


def test_a_source_of_another_type_and_names_that_could_be_taken_for_others(rows: Any, tmp_path: Path) -> None:
    names = {"coco": "(no source)", "vg": "all other sources", None: None}
    scores = write(tmp_path / "made", [row | {"source": names[row["source"]]} for row in rows])
    for path in Path(scores, "scores").glob("*.parquet"):
        table = pq.read_table(path)
        table = table.set_column(table.schema.get_field_index("source"), "source", table["source"].dictionary_encode())
        pq.write_table(table, path)
    found = report(scores, tmp_path, sources=2)
    bars = next(figure for figure in figures(found) if figure.name == "sample-gain").spec(700)["data"]["values"]
    assert {bar["source"] for bar in bars} < {
        "'(no source)'",
        "'all other sources'",
        "(no source)",
        "all other sources",
    }
    for name in {bar["source"] for bar in bars}:
        assert sum(bar["top"] - bar["bottom"] for bar in bars if bar["source"] == name) == pytest.approx(1)


def test_colours_are_changed_and_texts_are_not() -> None:
    values = [{"name": "#151645", "n": 1}]
    spec = {"data": {"values": values}, "mark": {"type": "bar", "color": colours.LIGHT["p3"]},
            "encoding": {"y": {"field": "name", "type": "nominal"}, "x": {"field": "n"}}}  # fmt: skip
    shown = render.for_page(render.to_svg(spec), "a figure")
    assert "#151645</text>" in shown
    assert 'fill="var(--p3)"' in shown
    assert "http" not in shown


def test_figures_of_an_earlier_report_go_and_no_others(scores: str, tmp_path: Path) -> None:
    folder = tmp_path / "r-figures"
    report(scores, tmp_path, gallery=0, figures=True)
    assert (folder / "sample-gain.svg").exists()
    (folder / "mine.svg").write_text("mine")
    report(scores, tmp_path, gallery=0, figures=False)
    assert [path.name for path in folder.iterdir()] == ["mine.svg"]


def test_a_selection_without_a_threshold_of_its_own(scores: str, stored: Any, tmp_path: Path) -> None:
    selecting.run(SelectConfig(scores=scores, out=str(tmp_path), strategy="prior"))
    found = report(scores, tmp_path, selection=str(tmp_path), near_p=55, p="70")
    assert found["selection"]["thresholds"] == {}
    weights = [weight for row in selected(tmp_path) for weight in row["token_weights"] or []]
    text_only = sum(row["num_answer_tokens"] for row in stored if row["vig"] is None and row["error"] is None)
    assert found["selection"]["active_tokens"] == sum(weight > 0 for weight in weights) - text_only
    assert found["selection"]["by_vig"] is False
    assert [row["p"] for row in found["thresholds"]] == [70]
    at = report(scores, tmp_path, p="55")
    assert found["gallery"]["tau"] == at["thresholds"][0]["tau"]


def test_characters_that_xml_has_no_place_for_are_drawn_as_escapes() -> None:
    values = [{"name": "bell\x07 \x0f \ufffe", "n": 1}, {"name": "élan 猫 🐱", "n": 2}]
    y = {"field": "name", "type": "nominal"}
    drawn = render.to_svg({"data": {"values": values}, "mark": "bar", "encoding": {"y": y, "x": {"field": "n"}}})
    assert "bell\\x07" in drawn
    assert "élan 猫 🐱" in drawn
    assert render.to_png(drawn).startswith(b"\x89PNG")


def refused(scores: str, folder: Path, **options: Any) -> str:
    with pytest.raises(StageError) as caught:
        job.run(ReportConfig(**{"scores": scores, "out": str(folder / "r.html"), "model": CHECKPOINT} | options))
    assert not (folder / "r.html").exists()
    return str(caught.value)


def test_bad_input_is_one_line_before_any_work(scores: str, rows: Any, tmp_path: Path) -> None:
    assert "no scores here" in refused(str(tmp_path), tmp_path)
    assert "ends in .html" in refused(scores, tmp_path, out=str(tmp_path / "report.txt"))
    (tmp_path / "notes.html").write_text("<p>mine</p>")
    assert "is no report" in refused(scores, tmp_path, out=str(tmp_path / "notes.html"))
    assert (tmp_path / "notes.html").read_text() == "<p>mine</p>"
    (tmp_path / "folder.html").mkdir()
    assert "is a folder" in refused(scores, tmp_path, out=str(tmp_path / "folder.html"))
    (tmp_path / "taken.json").write_text('{"a": "dataset"}')
    assert "taken.json exists" in refused(scores, tmp_path, out=str(tmp_path / "taken.html"))
    assert (tmp_path / "taken.json").read_text() == '{"a": "dataset"}'
    (tmp_path / "plain-figures").write_text("")
    assert "plain-figures is a file" in refused(scores, tmp_path, out=str(tmp_path / "plain.html"))
    assert "no/such-model: no such folder" in refused(scores, tmp_path, model="no/such-model")
    assert "no such spaCy pipeline" in refused(scores, tmp_path, tagger="no_such_pipeline")
    other = write(tmp_path / "other", made_up(50, seed=9), identity={"other": 1})
    selecting.run(SelectConfig(scores=other, out=str(tmp_path / "other")))
    assert "a selection of other scores" in refused(scores, tmp_path, selection=str(tmp_path / "other"))
    narrow = write(tmp_path / "narrow", made_up(9, seed=9), files=1)
    path = next(Path(narrow, "scores").glob("*.parquet"))
    pq.write_table(pq.read_table(path).drop_columns("turn"), path)
    assert "has no column 'turn'" in refused(narrow, tmp_path)
    nothing = write(tmp_path / "nothing", [row | {"vig": None} for row in rows[:20]])
    assert "no sample has a score" in refused(nothing, tmp_path)


def test_a_selection_beside_that_is_of_other_scores_is_left_alone(scores: str, rows: Any, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", rows[:100])
    other = write(tmp_path / "other", rows[:50], identity={"other": 1})
    selecting.run(SelectConfig(scores=other, out=mine))
    assert report(mine, tmp_path)["selection"] is None


def test_without_its_tokenizer_tokens_are_numbers(scores: str, tmp_path: Path) -> None:
    found = report(scores, tmp_path, model=None)
    assert found["tokens"]["highest"][0]["text"].startswith("#")
    assert any("shown by their numbers" in warning for warning in found["about"]["warnings"])
    assert "shown by their numbers" in (tmp_path / "r.html").read_text()


def test_beyond_a_thousand_sources_the_others_are_one_row(
    rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numbers, "LISTED", 40)
    monkeypatch.setattr(selection_summary, "LISTED", 40)
    many = [row | {"source": f"s{number % 500}"} for number, row in enumerate(rows)]
    scores = write(tmp_path / "many", many)
    selecting.run(SelectConfig(scores=scores, out=str(tmp_path / "many"), p=50))
    found = report(scores, tmp_path)
    assert len(found["sources"]) == 41
    assert found["sources"][-1]["others"] == 500 - 40
    for name in ("scored", "text_only", "failed", "answer_tokens"):
        assert sum(row[name] for row in found["sources"]) == found["counts"][name]
    listed = {row["source"] for row in found["sources"][:-1]}
    assert_mean(
        found["sources"][-1], [row["vig"] for row in many if row["vig"] is not None and row["source"] not in listed]
    )
    for name in ("samples", "sample_tokens", "active_tokens"):
        assert sum(row[name] for row in found["selection"]["sources"]) == found["selection"][name]
    html = (tmp_path / "r.html").read_text()
    assert "460 others" in html


def test_colours_of_figures_are_those_of_the_page() -> None:
    css = (PAGE / "gains.css").read_text().partition("@media")[0]
    for name, value in colours.LIGHT.items():
        assert f"--{name}: {value};" in css, name
