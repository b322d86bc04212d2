"""A study in a report: numbers against those worked out by hand, the frontier against all pairs, and the page."""

from __future__ import annotations

import copy
import html
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser import needs_chromium
from tests.report import made_study as made
from tests.report.opened import Opened
from vig_ray import cli
from vig_ray.errors import StageError
from vig_ray.report import job, study_charts
from vig_ray.report.chart_labels import box_of, place_labels
from vig_ray.report.job import ReportConfig
from vig_ray.report.study_cost import Point, frontier
from vig_ray.report.study_numbers import Mean, Row, StudyNumbers, bounds
from vig_ray.report.study_words import needs, verdict
from vig_ray.study.file import Order, StudyFile
from vig_ray.study.record import Record
from vig_ray.study.results import Claim, Metric, Results, Scaled, Step, apart
from vig_ray.study.results import Row as StudyRow
from vig_ray.study.results_json import as_json
from vig_ray.study.statistics import ScalingLaw

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quotes\" 'and' {{title}}"
EXACT, LOSS = made.metric("choices.exact"), made.metric("held-out.loss", percent=False, higher=False)


def small() -> dict[str, Any]:
    """Three arms: `vig` settled as better on both, `full` open."""
    rows = [
        made.row("random", {"choices.exact": [0.70, 0.72, 0.74], "held-out.loss": [2.0, 2.1, 2.2]}, tokens=4000),
        made.row("full", {"choices.exact": [0.71, 0.76, 0.72], "held-out.loss": [1.9, 2.2, 2.1]}, tokens=12_000),
        made.row("vig", {"choices.exact": [0.75, 0.78, 0.78], "held-out.loss": [1.8, 1.91, 1.99]}, tokens=2500,
                 seconds=20),
    ]  # fmt: skip
    orders = [
        made.claim(rows, "random < vig on choices.exact", ["random", "vig"], "choices.exact"),
        made.claim(rows, "vig < random on choices.exact", ["vig", "random"], "choices.exact"),
        made.claim(rows, "random < full < vig on choices.exact", ["random", "full", "vig"], "choices.exact"),
    ]
    return made.study(rows, [EXACT, LOSS], "random", orders=orders)


def reported(folder: Path, contents: dict[str, Any], **options: Any) -> str:
    """The page of a study, as text."""
    out = folder / "report.html"
    given = {"study": made.write(folder / "study", contents), "out": str(out), "figures": False} | options
    job.run(ReportConfig(**given))
    return out.read_text()


def part(page: str, name: str) -> str:
    """One of the page's parts, figures among them."""
    return re.split(r"\n<section id=|</main>", page.partition(f'<section id="{name}"><h2>')[2])[0]


def rows_of(inside: str, number: int = 0) -> list[list[str]]:
    """The rows of a table in some HTML: its cells as text, a second line after a bar, ** around what is bold."""
    found = []
    for row in re.findall(r"<table>(.*?)</table>", inside, re.DOTALL)[number].split("<tr")[1:]:
        cells = re.split(r"<t[dh][^>]*>", row)[1:]
        marked = [re.sub(r"</?strong>", "**", cell).replace("<small>", "|") for cell in cells]
        found.append([html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in marked])
    return found


def test_its_numbers_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    page = reported(tmp_path, small())
    # random: 0.72 +- 4.3027 * 0.02 / sqrt(3) = 0.0497; its loss 2.1 +- 4.3027 * 0.1 / sqrt(3) = 0.2484.
    head, *rows = rows_of(part(page, "results"))
    assert head == ["", "seeds", "choices.exact % ↑", "held-out.loss ↓", "tokens", "training, s"]
    assert rows[0] == ["random|baseline", "3", "72.0|[67.0, 77.0]", "2.100|[1.852, 2.348]", "4,000", "10"]
    assert rows[2][0] == "vig"
    assert rows[2][-2:] == ["2,500", "20"]
    # vig - random: 0.05, 0.06, 0.04: 0.05 +- 4.3027 * 0.01 / sqrt(3) = 0.0248; full - random: 0.01, 0.04, -0.02.
    head, full, vig = rows_of(page.partition('id="figure-differences"')[2])
    assert head == ["− random", "choices.exact % ↑", "held-out.loss ↓"]
    assert full[:2] == ["full", "+1.0|[-6.5, +8.5] · 6 more seeds"]
    # -0.2, -0.19, -0.21
    assert vig == ["vig", "**+5.0**|[+2.5, +7.5]", "**-0.200**|[-0.225, -0.175]"]
    assert "Of 4 differences from random, 2 are settled as better and 0 as worse; 2 are open." in page


def test_which_orders_are_settled_is_said_first_and_step_by_step(tmp_path: Path) -> None:
    page = reported(tmp_path, small())
    said = html.unescape(re.sub("<.*?>", "", page.partition('<p id="verdict">')[2].partition("</p>")[0]))
    assert said == (
        "Settled: random < vig on choices.exact holds, and vig < random on choices.exact does not hold. "
        "Open: random < full < vig on choices.exact: about 6 more seeds."
    )
    _, holds, refuted, first, second = rows_of(part(page, "orders"))
    assert holds == ["random < vig on choices.exact|holds", "vig − random", "**+5.0**|[+2.5, +7.5]", "0.010", "3",
                     "settled"]  # fmt: skip
    assert refuted[0] == "vig < random on choices.exact|does not hold"
    assert first[0] == "random < full < vig on choices.exact|open"
    assert first[1:3] == ["full − random", "+1.0|[-6.5, +8.5]"]
    assert first[5] == "open, about 6 more seeds"
    assert second[:2] == ["", "vig − full"]


def test_a_pilot_says_so_and_whose_results_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    pilot = made.write(folder / "pilot-2-percent", small() | {"pilot": 2.0})
    with pytest.raises(StageError, match=r"study\.json: not there; .*; there is a pilot: --study .*pilot-2-percent$"):
        job.run(ReportConfig(study=str(folder), out=str(tmp_path / "none.html"), figures=False))
    page = reported(tmp_path, small())
    assert "pilot" not in part(page, "results")
    assert 'class="warning"' not in page
    told = job.run(ReportConfig(study=str(folder), out=str(tmp_path / "all.html"), figures=False)).text()
    assert told.startswith(f"Shown are the results of all data; those of a pilot: --study {pilot}\n")
    told = job.run(ReportConfig(study=pilot, out=str(tmp_path / "pilot.html"), figures=False)).text()
    assert told.startswith("Settled: ")
    said = "A pilot, of 2 % of the data and of steps: more of them may change what it says."
    assert said in told
    assert f'<p class="warning">{said}</p>' in (tmp_path / "pilot.html").read_text()


def test_the_verdict_of_a_varied_study_names_an_order_once() -> None:
    contents = made.varied()
    assert verdict(StudyNumbers.model_validate(contents))[0] == (
        "Settled: random < vig on pope.accuracy (at all 4 values) holds."
    )
    contents["orders"][1]["said"] = "open"
    contents["orders"][1]["steps"][0] |= {"said": "open"}
    contents["orders"][1]["steps"][0]["difference"] |= {"settled": False, "seeds_needed": None}
    assert verdict(StudyNumbers.model_validate(contents)) == [
        "Settled: random < vig on pope.accuracy (at 3 of 4 values) holds.",
        "Open: random p=30 < vig p=30 on pope.accuracy: more than 1,000 seeds; and vig p=70 < full < prior p=70 on "
        "choices.accuracy: about 6 more seeds.",
    ]
    contents["orders"] = []
    assert verdict(StudyNumbers.model_validate(contents)) == [
        "Of 39 differences from random p=10, 32 are settled as better and 2 as worse; 5 are open."
    ]


def test_what_an_open_difference_lacks() -> None:
    def said(values: list[float], needed: int | None) -> str:
        pairs = {str(seed): value for seed, value in enumerate(values)}
        found = made.difference(pairs, dict.fromkeys(pairs, 0.0), needed)
        return needs(made_difference(found))

    def made_difference(found: Any) -> Any:
        return StudyNumbers.model_validate(with_difference(found)).rows[1].numbers["choices.exact"].difference

    def with_difference(found: Any) -> dict[str, Any]:
        contents = small()
        contents["rows"][1]["numbers"]["choices.exact"]["difference"] = found
        return contents

    assert said([], None) == "open, no seed has both"
    assert said([0.1], None) == "open, one seed has no interval"
    assert said([-0.1, 0.1], None) == "open, no difference so far"
    assert said([-0.1, 0.2], None) == "open, more than 1,000 seeds"
    assert said([-0.1, 0.2], 3) == "open, about 1 more seed"
    assert said([0.1, 0.1], None) == "settled"


def test_the_frontier_is_that_of_all_pairs() -> None:
    rng = random.Random(5)
    row = Row(label="a", arm="a", axes={}, tokens={}, seconds={}, numbers={})
    for _ in range(300):
        # Few values, so that many are equal in one or in both.
        some = [Point(row, rng.randrange(1, 8), rng.randrange(8) / 8) for _ in range(rng.randrange(1, 12))]
        for higher in (True, False):
            sign = 1 if higher else -1
            expected = [
                one for one in some
                if not any(other.cost <= one.cost and sign * other.quality >= sign * one.quality
                           and other[1:] != one[1:] for other in some)
            ]  # fmt: skip
            found = frontier(some, higher_is_better=higher)
            assert sorted(point[1:] for point in found) == sorted(point[1:] for point in expected)
            assert [point.cost for point in found] == sorted(point.cost for point in found)


def test_the_frontier_on_the_page_and_in_the_numbers(tmp_path: Path) -> None:
    page = reported(tmp_path, small())
    told = json.loads((tmp_path / "report.json").read_text())
    # vig costs the fewest tokens and is best; by seconds random and full are the cheapest, full the better of them.
    assert told["frontier"]["choices.exact"] == {"tokens": ["vig"], "seconds": ["full", "vig"]}
    assert told["study"] == small()
    head, *rows = rows_of(part(page, "cost"))
    assert head[3:] == ["tokens trained on", "frontier", "seconds of training", "frontier"]
    assert [row[3:] for row in rows] == [
        ["4,000", "", "10", ""],
        ["12,000", "", "10", "yes"],
        ["2,500", "yes", "20", "yes"],
    ]


def test_curves_papers_law_and_time(tmp_path: Path) -> None:
    contents = made.varied()
    page = reported(tmp_path, contents)
    assert part(page, "curves").count("<h3>") == 3
    # The table of the first curve: a line an arm, the baseline's first, by p; then those that aren't varied.
    rows = rows_of(part(page, "curves"))[1:]
    assert [row[:2] for row in rows] == [
        *([arm, str(p)] for arm in ("random", "vig", "prior") for p in (10, 30, 50, 70)),
        ["aligned", "–"], ["full", "–"],
    ]  # fmt: skip
    # The mean of 0.842, 0.848 and 0.851.
    assert rows[-1][2] == "84.7"
    head, *rows = rows_of(part(page, "paper"))
    assert head == ["", "pope, reported", "pope.accuracy % ↑, here", "MMBench, reported"]
    assert [row[0] for row in rows] == ["full", "vig p=70", *(f"random p={p}" for p in (10, 30, 50, 70)), "llava"]
    assert [row[1] for row in rows] == ["85.9", "86.4", "84.0", "", "", "", "85.9"]
    assert rows[0][2].startswith("84.7|[")
    assert [row[3] for row in rows] == ["64.3", "65.1", "–", "", "", "", "64.3"]
    law = contents["scaling"][0]
    head, first, _ = rows_of(part(page, "scaling"))
    assert first == ["random", f"{law['scale']:.4g}", f"{law['exponent']:.4f}", "10, 30, 50", "70",
                     f"{law['predicted']:.4f}", f"{law['found']:.4f}", f"{100 * law['error']:.1f} %"]  # fmt: skip
    assert rows_of(part(page, "time"))[1:] == [
        ["train", "6", "25.0 min", "4.2 min", "83.3 %"],
        ["eval", "6", "5.0 min", "50 s", "16.7 %"],
    ]
    missing = part(page, "missing")
    assert "train-0123456789 failed" in missing
    assert "CUDA out of memory &lt;here&gt;" in missing
    assert "vig train --samples out/runs/score-1 --lr 1e-4 --out out/runs/train-0123456789" in missing
    assert rows_of(missing)[1] == ["vig p=30, seed 3", "train-0123456789 failed"]


def test_a_curve_over_checkpoints_is_over_the_steps_of_its_training(tmp_path: Path) -> None:
    at = (0.05, 0.25, 1)
    rows = [
        made.row(arm, {"choices.exact": [0.5 + 0.2 * share + up, 0.53 + 0.2 * share + up, 0.5 + 0.25 * share + up]},
                 {"at": share}, tokens=1000 * share)
        for arm, up in (("plain", 0.0), ("prior", 0.1)) for share in at
    ]  # fmt: skip
    contents = made.study(rows, [EXACT], "plain at=0.05")
    contents["study"]["checkpoints"] = {"of": "align", "at": list(at)}
    study = StudyNumbers.model_validate(contents)
    chart = study_charts.curve(study, "at", study.metric("choices.exact"), 600)
    for layer in chart["layer"]:
        assert layer["encoding"]["x"]["title"] == "at: share of the steps of align"
        assert "type" not in layer["encoding"]["x"]["scale"]  # linear, though the last is twenty times the first
    band = {(value["line"], value["at"]): (value["low"], value["high"]) for value in chart["data"]["values"]}
    assert len(band) == 6
    for row in contents["rows"]:
        mean = row["numbers"]["choices.exact"]["mean"]
        assert band[row["arm"], row["axes"]["at"]] == pytest.approx((100 * mean["low"], 100 * mean["high"]))
    page = reported(tmp_path, contents)
    assert part(page, "curves").count("<h3>") == 1
    assert [cells[-2] for cells in rows_of(part(page, "results"))[1:]] == ["50", "250", "1,000"] * 2


def test_numbers_that_yaml_takes_for_text_are_numbers_and_names_are_none() -> None:
    def axes(values: list[Any]) -> list[str]:
        rows = [made.row("a", {"choices.exact": [0.5]}, {"train.lr": value}) for value in values]
        return StudyNumbers.model_validate(made.study(rows, [EXACT], rows[0]["label"])).numeric_axes()

    assert axes(["1e-4", "3e-4"]) == ["train.lr"]
    assert axes([1, 2.5]) == ["train.lr"]
    for none in (["cosine", "linear"], [1, "auto"], [True, False], [1, "1.0"], [[1], [2]]):
        assert axes(none) == []


def test_a_study_that_has_hardly_begun(tmp_path: Path) -> None:
    nothing = made.study([made.row("random", {}), made.row("vig", {})], [], "random",
                         missing={"vig, seed 0": "not run"})  # fmt: skip
    nothing["cost"] |= {"hours": 0.0, "by_stage": {}}
    page = reported(tmp_path, nothing)
    assert "No evaluation has ended yet." in page
    assert "Nothing can be compared with random yet." in page
    assert "<figure>" not in page
    one_seed = made.study(
        [made.row("random", {"choices.exact": [0.5]}), made.row("vig", {"choices.exact": [0.6]}, tokens=None),
         made.row("full", {"choices.exact": []})],
        [EXACT], "random",
    )  # fmt: skip
    page = reported(tmp_path, one_seed)
    _, random_row, vig, full = rows_of(part(page, "results"))
    assert random_row[1:3] == ["1", "50.0"]
    assert vig[2:4] == ["60.0", "–"]
    assert full[1:3] == ["0", "–"]
    assert "Of 1 difference from random, 0 are settled as better and 0 as worse; 1 is open." in page
    assert "not shown: vig." in part(page, "cost")


def test_what_vig_study_writes_is_what_a_page_reads(tmp_path: Path) -> None:
    study = StudyFile(
        stages={"eval": {}}, arms={"random": {}, "vig": {}}, seeds=2, vary={"select.p": (10, 30, 90)},
        orders=("random < vig on held-out.loss",), scaling={"over": "select.p", "of": "held-out.loss"},
        paper=({"source": "VIG", "columns": ("loss",), "rows": {"vig": (1.5,)}},),
    )  # fmt: skip
    rows = tuple(
        StudyRow(f"{arm} p={p}", arm, {"select.p": p}, {"held-out.loss": {0: low + 9 / p, 1: low * 1.01 + 9.5 / p}},
                 {0: 10 * p}, {0: 2.0 * p}, {seed: f"{arm}{p}{seed}" for seed in range(2)})
        for arm, low in (("random", 2.0), ("vig", 1.5)) for p in (10, 30, 90)
    )  # fmt: skip
    found = apart(rows[3], rows[0], "held-out.loss")
    results = Results(
        study, "out", (Metric("held-out.loss", False, False),), rows, "random p=10",
        (Claim(Order.parse(study.orders[0]), (Step("random p=10", "vig p=10", found),)),),
        (Scaled("vig", ScalingLaw(3.0, -0.1), (10.0, 30.0), 90.0, 1.7, 1.6),),
        (Record("train-1", "train", "train", "vig train", "failed", "out of memory"),), {"vig p=30, seed 1": "not run"},
        {"hours": 1.0, "gpu_hours": 0.5, "stages": 3, "ran": 2, "by_stage": {"train": {"runs": 1, "seconds": 60.0}}},
    )  # fmt: skip
    written = json.loads(json.dumps(as_json(results)))
    page = reported(tmp_path, written)
    for name in ("orders", "results", "paper", "curves", "cost", "scaling", "missing", "time"):
        assert part(page, name), name
    assert "0.50 hours of GPUs" in page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"study.json: not there; --study takes what `vig study --out` wrote"),
        ("{broken", r"study.json: can't be read \(.*\); run the same `vig study` again"),
        ("[1, 2]", r"study.json: not the results of a study \("),
        ('{"name": "train-1", "stage": "train"}', r"study.json: not the results of a study \(title: Field required\)"),
        ("nameless", r"study.json: not the results of a study \(baseline nobody is none of the rows\)"),
        ("holes", r"study.json: not the results of a study \(vig has no held-out.loss\)"),
    ],
)  # fmt: skip
def test_what_is_no_study_is_one_line_that_names_the_file(text: str | None, said: str, tmp_path: Path) -> None:
    contents = small()
    if text == "nameless":
        contents["baseline"] = "nobody"
    if text == "holes":
        del contents["rows"][2]["numbers"]["held-out.loss"]
    if text is not None:
        (tmp_path / "study.json").write_text(json.dumps(contents) if text in ("nameless", "holes") else text)
    with pytest.raises(StageError, match=said) as raised:
        job.run(ReportConfig(study=str(tmp_path), out=str(tmp_path / "r.html")))
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "study.json") in str(raised.value)
    assert not (tmp_path / "r.html").exists()


def test_a_study_goes_with_no_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["report", "--study", str(tmp_path), "--scores", "s", "--by", "length", "--out", "r.html"])
    assert end.value.code == 2
    assert "--study is a page of its own; leave out --scores, --by" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--scores, --evaluation or --study is required"):
        ReportConfig(out="r.html")


def test_labels_of_points_cover_no_other_label_and_no_point() -> None:
    rng = random.Random(3)
    placed = 0
    for _ in range(50):
        places = [(rng.uniform(0, 500), rng.uniform(0, 240)) for _ in range(12)]
        texts = ["p=" + "9" * rng.randrange(1, 9) for _ in places]
        sides = place_labels(places, texts, range(12), 500, 240)
        boxes = [box_of(place, text, side) for place, text, side in zip(places, texts, sides, strict=True) if side]
        placed += len(boxes)
        for number, (left, top, right, bottom) in enumerate(boxes):
            assert 0 <= left < right <= 500
            assert 0 <= top < bottom <= 240
            for other in boxes[:number]:
                assert right <= other[0] or left >= other[2] or bottom <= other[1] or top >= other[3]
            assert not any(left < x < right and top < y < bottom for x, y in places)
    assert placed > 500, "labels are left out where there is room"


def test_one_very_long_interval_leaves_the_others_readable() -> None:
    means = [Mean(value=value, low=value - half, high=value + half, seeds=2)
             for value, half in ((0.70, 0.01), (0.72, 0.02), (0.74, 0.01), (0.71, 5.0))]  # fmt: skip
    low, high = bounds([100 * (mean.value or 0) for mean in means], means, 100)
    assert low < 69 < 75 < high
    assert high - low < 20
    low, high = bounds([70, 72, 74], means[:3], 100)
    assert low < 69 < 75 < high


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("study")
    reported(folder, made.varied(), figures=True)
    return folder / "report.html"


@needs_chromium
def test_it_shows_itself_without_asking_for_anything(opened: Opened, written: Path) -> None:
    page = opened.page
    expect(page.locator("h1")).to_have_text("p and the strategy")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    assert page.locator("figure svg:visible").count() == 9
    inside = page.evaluate("JSON.parse(document.getElementById('numbers').textContent)")
    assert inside == json.loads(written.with_suffix(".json").read_text())
    expect(page.locator("#figure-differences table")).to_be_visible()
    summary = page.locator("#cost summary").first
    summary.click()
    expect(page.locator("#cost table").first).to_be_visible()
    mark = page.locator("#cost svg:visible [aria-roledescription='point']").first
    assert "pope.accuracy % ↑" in str(mark.get_attribute("aria-label"))


def test_its_figures_lie_beside_it(written: Path) -> None:
    names = {path.name for path in (written.parent / "report-figures").glob("*.svg")}
    assert {"differences.svg", "curve-0-0-select-p-pope-accuracy.svg", "cost-2-held-out-loss.svg", "scaling-narrow.svg",
            "time.svg"} <= names  # fmt: skip


@needs_chromium
def test_names_are_text_and_nothing_else(tmp_path: Path, browser: Any) -> None:
    renamed = json.dumps(made.varied())
    for name in ("vig", "pope.accuracy", "select.p"):
        nasty = json.dumps(f"{name} {NASTY}")[1:-1]
        renamed = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w.-])", lambda _, nasty=nasty: nasty, renamed)
    contents = json.loads(renamed)
    contents |= {"title": NASTY, "about": NASTY, "missing": {NASTY: NASTY}}
    contents["failed"] = [{"name": NASTY, "told": f"{NASTY}\n{NASTY}", "command": f"vig {NASTY}"}]
    contents["study"]["paper"][0] |= {"source": NASTY, "note": NASTY, "columns": [NASTY, "b"]}
    page = reported(tmp_path, copy.deepcopy(contents))
    assert page.count("<script") == 2
    opened = Opened(browser, tmp_path / "report.html")
    expect(opened.page.locator("h1")).to_have_text(NASTY)
    expect(opened.page.locator("#missing .warning")).to_have_text(NASTY)
    expect(opened.page.locator("#paper h3")).to_have_text(NASTY)
    expect(opened.page.locator("#verdict")).to_contain_text(f"random < vig {NASTY} on pope.accuracy {NASTY}")
    assert opened.page.locator("img").count() == 0
    opened.close()
