"""Kept columns on the report's page: figures, their tables, cards; and that a dataset's words stay words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import expect

from tests.browser import needs_chromium
from tests.report.opened import Opened
from tests.report.test_kept import keep
from tests.report.test_report_page import NASTY, write_report
from tests.selection.made import copy_outputs

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def rated(chosen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 demo samples with ratings that go with their gain, and with words that no page may run."""
    folder: Path = tmp_path_factory.mktemp("rated")
    copy_outputs(chosen, folder, "samples", "scores", "selection")
    table = pq.read_table(folder / "scores" / "0.parquet")
    rows, rng = table.to_pylist(), np.random.default_rng(0)
    for row in rows:
        rating = int(np.clip(round(3 + 3 * (row["vig"] or 0) + rng.normal(0, 0.7)), 1, 5))
        licence = str(rng.choice(["CC BY 4.0", "CC0", NASTY]))
        more: dict[str, Any] = {"licence": licence, "ratings": [rating, rating + 1], NASTY: True}
        keep(row, visual_dependency_min=rating, similarity=float(rng.normal()), **more)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "scores" / "0.parquet")
    names = {pair["name"]: len(rows) for pair in rows[0]["kept"]}
    record = folder / "scores.stage.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"kept": names}))
    return folder


@pytest.fixture(scope="module")
def written(rated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("report") / "report.html"
    told = write_report(rated, out, gallery=3).text()
    assert "rank correlation of VIG with kept columns: " in told
    return out


def test_figures_and_tables_of_kept_columns(opened: Opened, written: Path) -> None:
    page = opened.page
    told = json.loads(written.with_suffix(".json").read_text())["kept"]["columns"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    assert page.locator("figure svg:visible").count() == 10
    expect(page.locator("nav")).to_contain_text("Kept columns")
    boxes = page.locator("#figure-kept svg:visible [aria-roledescription='bar']")
    assert boxes.count() == sum(len(row["values"]) for row in told)
    rating = next(row for row in told if row["column"] == "visual_dependency_min")
    labels = [box.get_attribute("aria-label") for box in boxes.all()]
    for value in rating["values"]:
        name = f"visual_dependency_min {value['value']:g}: {value['samples']:,} samples, median {value['median']:+.3f}"
        assert any(label.startswith(name) for label in labels)
    page.locator("#figure-kept-correlations summary").click()
    cells = page.locator("#figure-kept-correlations td").all_text_contents()
    assert f"{rating['spearman']:+.4f}" in cells
    assert "lists, each as the mean of its numbers" in cells
    assert "CC BY 4.0" in page.locator("#figure-kept td").all_text_contents()
    assert NASTY in page.locator("#figure-kept td").all_text_contents()


def test_cards_show_what_is_kept(browser: Any, written: Path, rated: Path) -> None:
    opened = Opened(browser, written)
    rows = {row["sample_key"]: row for row in pq.read_table(rated / "scores" / "0.parquet").to_pylist()}
    card = opened.page.locator("#highest .card").first
    kept = {pair["name"]: json.loads(pair["value"]) for pair in rows[card.get_attribute("data-key")]["kept"]}
    expect(card.locator(".kept")).to_contain_text(f"visual_dependency_min {kept['visual_dependency_min']}")
    expect(card.locator(".kept")).to_contain_text(f"licence {kept['licence']}")
    opened.close()


def test_figures_of_kept_columns_are_written_as_files(written: Path) -> None:
    figures = written.parent / "report-figures"
    for name in ("kept", "kept-correlations"):
        assert json.loads((figures / f"{name}.json").read_text())["$schema"]
        assert min(PIL.Image.open(figures / f"{name}.png").size) > 100
        assert "var(--" not in (figures / f"{name}.svg").read_text()
