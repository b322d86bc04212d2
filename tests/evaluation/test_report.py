"""An evaluation in a report: by itself, and what the page says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser import needs_chromium
from tests.report.opened import Opened
from vig_ray.errors import StageError
from vig_ray.report import job
from vig_ray.report.job import ReportConfig


@needs_chromium
def test_the_page_shows_table_intervals_and_answers(asked: Path, chosen: Path, tmp_path: Path, browser: Any) -> None:
    out = tmp_path / "report.html"
    written = job.run(ReportConfig(evaluation=str(asked), out=str(out), gallery=3))
    summary = json.loads((asked / "evaluation/summary.json").read_text())
    assert written.numbers["evaluation"] == summary
    assert sorted(path.stem for path in (tmp_path / "report-figures").glob("*.json")) == [
        "relative", "task-choices", "task-exact", "task-held-out",
    ]  # fmt: skip
    opened = Opened(browser, out)
    page = opened.page
    expect(page.locator("h1")).to_have_text("Did it help?")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.locator("figure svg:visible").count() == 4
    head, *rows = page.locator("#evaluation table").first.locator("tr").all_text_contents()
    assert head == "modelchoices: accuracy %exact: exact %held-out: loss ↓Rel. %"
    one = summary["tasks"][0]["models"]["worse"]["numbers"]["accuracy"]
    assert rows[1].startswith(f"worse{100 * one['value']:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]")
    page.locator("#figure-task-held-out summary").click()
    difference = summary["tasks"][2]["models"]["worse"]["differences"]["loss"]
    expect(page.locator("#figure-task-held-out table").first).to_contain_text(f"{difference['value']:+.3f} [")
    cards = page.locator(".card")
    assert cards.count() == 9
    expect(cards.first.locator(".answer")).to_have_count(2)
    opened.close()
    # Beside scores it is a part of their report.
    both = job.run(ReportConfig(scores=str(chosen), evaluation=str(asked), out=str(out), gallery=1, tagger="none"))
    assert both.numbers["gain"]["samples"]
    opened = Opened(browser, out)
    expect(opened.page.locator("nav")).to_contain_text("Evaluation")
    assert opened.page.locator("#figure-sample-gain svg").count() > 0
    assert opened.page.locator("#figure-relative svg").count() > 0
    opened.close()


def test_what_is_no_evaluation_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no evaluation here"):
        job.run(ReportConfig(evaluation=str(tmp_path), out=str(tmp_path / "r.html")))
    with pytest.raises(ValueError, match="--scores, --evaluation or --study is required"):
        ReportConfig(out="r.html")
