"""The report's page in a browser: nothing is asked for, nothing is said on the console, and its parts work."""

from __future__ import annotations

import base64
import io
import json
import re
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
from tests.selection.made import copy_outputs, selected
from vig_ray.dataset.images import load_image
from vig_ray.dataset.schema import SAMPLES
from vig_ray.demo import CHECKPOINT
from vig_ray.report import job
from vig_ray.report.cards import card
from vig_ray.report.gallery import Picture, Place, Shown, picture
from vig_ray.report.job import ReportConfig, Written
from vig_ray.scoring.blur import blur_opencv

pytestmark = needs_chromium
NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quotes\" 'and' {{title}}"


def write_report(folder: Path, out: Path, **options: Any) -> Written:
    given = {"scores": str(folder), "out": str(out), "model": CHECKPOINT, "tagger": "none", "near_zero": 0.06}
    return job.run(ReportConfig(**given | options))


@pytest.fixture(scope="module")
def written(chosen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(chosen, out)
    return out


@pytest.fixture(scope="module")
def told(written: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(written.with_suffix(".json").read_text())
    return found


def test_it_shows_itself_without_asking_for_anything(opened: Opened, told: Any) -> None:
    page = opened.page
    expect(page.locator("h1")).to_have_text("What the images contribute")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    assert page.locator("figure svg:visible").count() == 8
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    style = page.evaluate("(({ backgroundColor, color }) => [backgroundColor, color])(getComputedStyle(document.body))")
    assert style[0] != style[1]
    inside = page.evaluate("JSON.parse(document.getElementById('numbers').textContent)")
    assert inside == told


def test_its_tables_say_what_its_numbers_are(written: Path, told: Any, browser: Any) -> None:
    opened = Opened(browser, written)
    rows = opened.page.locator("#figure-thresholds table").first.locator("tr").all_text_contents()
    assert len(rows) == 1 + len(told["thresholds"])
    for text, row in zip(rows[1:], told["thresholds"], strict=True):
        assert f"{row['tau']:+.4f}{row['samples']:,}" in text
        assert f"{row['active_tokens']:,}{100 * row['active_tokens_share']:.1f} %" in text
    sources = opened.page.locator("#figure-sample-gain table tr").all_text_contents()[1:]
    for text, row in zip(sources, told["sources"], strict=True):
        assert text.startswith(f"{row['source']}{row['scored']:,}{row['text_only']:,}{row['failed']:,}")
        if row["scored"]:
            assert f"{row['mean']:+.3f}" in text
    facts = opened.page.locator(".facts").all_text_contents()
    for name, group in told["gain"]["groups"].items():
        assert f"{name}{100 * group['share']:.1f} %{group['samples']:,} samples" in "".join(facts)
    for name in ("highest", "lowest"):
        for row in told["tokens"][name]:
            said = f"{row['text']}{row['id']}{row['count']:,}{row['mean']:+.3f}"
            assert said in "".join(opened.page.locator("#figure-tokens td").all_text_contents())
    marks = opened.page.locator("#figure-groups .wide [aria-roledescription='bar']")
    assert marks.first.get_attribute("aria-label").startswith("all samples: ")
    opened.close()


def test_the_gallery_is_filtered_by_group_source_and_words(opened: Opened, told: Any, chosen: Path) -> None:
    page = opened.page
    cards = page.locator("#gallery .card:visible")
    expect(cards).to_have_count(32)
    groups = told["gallery"]["groups"].values()
    samples = {place["sample_key"] for places in groups for place in places if place["of_all"]}
    expect(page.locator("#found")).to_have_text(f"{len(samples)} samples")
    page.select_option("#group", "lowest")
    expect(cards).to_have_count(8)
    page.select_option("#source", "color")
    expect(cards).to_have_count(8)
    assert {card.get_attribute("data-source") for card in cards.all()} == {"color"}
    page.select_option("#group", "")
    page.fill("#search", "CIRCLE what")
    found = cards.all_text_contents()
    assert 0 < len(found) < 40
    assert all("circle" in text and "What" in text for text in found)
    page.fill("#search", "no such words anywhere")
    expect(cards).to_have_count(0)
    expect(page.locator("#found")).to_have_text("0 samples")
    page.fill("#search", "")
    page.select_option("#source", "")
    expect(cards).to_have_count(32)


def decoded(uri: str | None) -> Any:
    """The pixels of a data URI."""
    assert uri is not None
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), float)


def test_a_card_shows_its_sample(browser: Any, written: Path, told: Any, chosen: Path) -> None:
    opened = Opened(browser, written)
    rows = {row["sample_key"]: row for row in pq.read_table(chosen / "scores" / "0.parquet").to_pylist()}
    samples = {
        row["sample_key"]: row
        for path in (chosen / "samples").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    kept = {row["sample_key"]: row["token_weights"] for row in selected(chosen)}
    for name in ("highest", "lowest"):
        place = told["gallery"]["groups"][name][0]["sample_key"]
        card = opened.page.locator(f"#{name} .card").first
        assert card.get_attribute("data-key") == place
        row = rows[place]
        expect(card.locator(".numbers strong")).to_have_text(f"{row['vig']:+.3f}")
        expect(card.locator(".badge")).to_have_count(1)
        assert ("left out" in card.locator(".badge").text_content()) == (place not in kept)
        tokens = card.locator(".token").all()
        assert len(tokens) == row["num_answer_tokens"]
        spoken = [turn["text"] for turn in samples[place]["conversation"]]
        expect(card.locator(".turn.asked").first).to_have_text(spoken[0].replace("<image>", "").strip())
        assert spoken[1] in card.locator(".answer").first.text_content()
        for at, token in enumerate(tokens):
            gain = row["clean_logprobs"][at] - row["blur_logprobs"][at]
            classes = token.get_attribute("class").split()
            assert ("p3" in classes) == (gain >= 1)
            assert ("m3" in classes) == (gain <= -1)
            assert ("masked" in classes) == (place in kept and kept[place][at] == 0)
            assert f"gain {gain:+.3f} nats" in (token.get_attribute("title") or "")
        clear, blurred = (decoded(image.get_attribute("src")) for image in card.locator("img").all())
        pixels = load_image(samples[place]["images"][0])
        assert np.abs(clear - pixels).mean() < 4
        assert np.abs(blurred - blur_opencv(pixels)).mean() < 2
    opened.close()


def test_by_keyboard_and_pointer(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Summary"
    page.keyboard.press("Enter")
    summary = page.locator("#figure-tokens summary")
    summary.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#figure-tokens table").first).to_be_visible()
    mark = page.locator("#figure-groups svg:visible [aria-roledescription='bar']").first
    mark.scroll_into_view_if_needed()
    mark.hover()
    expect(page.locator("#tip")).to_have_text(re.compile(r"^all samples: \d+ vision-critical samples"))
    page.keyboard.press("Escape")
    expect(page.locator("#tip")).to_be_hidden()
    token = page.locator("#highest .token").first
    token.hover()
    expect(page.locator("#tip")).to_have_text(re.compile("gain .* nats"))
    with page.expect_download() as download:
        page.locator("#save").click()
    assert json.loads(Path(download.value.path()).read_text())["counts"]["read"] == 300


def test_what_a_dataset_says_is_text_and_nothing_else(chosen: Path, browser: Any, tmp_path: Path) -> None:
    """Markup in questions, sources and errors stays text; an image that is gone is told."""
    copy_outputs(chosen, tmp_path, "scores", "samples", "selection")
    scores = pq.read_table(tmp_path / "scores" / "0.parquet")
    rows = scores.to_pylist()
    worst = min((row for row in rows if row["vig"] is not None), key=lambda row: row["vig"])
    worst["source"] = NASTY
    next(row for row in rows if row is not worst and row["source"] == "color").update(
        vig=None, error=f"{NASTY}: {NASTY}"
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=scores.schema), tmp_path / "scores" / "0.parquet")
    for path in (tmp_path / "samples").glob("*.parquet"):
        samples = pq.read_table(path).to_pylist()
        for row in samples:
            if row["sample_key"] == worst["sample_key"]:
                row["conversation"][0]["text"] = NASTY
                row["images"] = [{"uri": f"/no/such/{NASTY}.png", "bytes": None}]
        pq.write_table(pa.Table.from_pylist(samples, schema=SAMPLES), path)
    write_report(tmp_path, tmp_path / "r.html", figures=False, title=NASTY)
    opened = Opened(browser, tmp_path / "r.html")
    expect(opened.page.locator("h1")).to_have_text(NASTY)
    card = opened.page.locator("#lowest .card").first
    expect(card.locator(".turn.asked").first).to_have_text(NASTY)
    expect(card.locator(".warning")).to_contain_text("The image can't be shown")
    assert card.get_attribute("data-source") == NASTY
    opened.page.select_option("#source", NASTY)
    expect(opened.page.locator("#lowest .card:visible")).to_have_count(1)
    expect(opened.page.locator("#failures td.words")).to_have_text(f"{NASTY}: {NASTY}")
    opened.close()


def test_on_paper(browser: Any, written: Path) -> None:
    opened = Opened(browser, written, viewport={"width": 700, "height": 900})
    assert opened.page.locator("figure .narrow svg:visible").count() > 0
    opened.page.emulate_media(media="print")
    assert opened.page.locator("figure .narrow svg:visible").count() == 0
    assert opened.page.locator("figure .wide svg:visible").count() > 0
    expect(opened.page.locator("nav")).to_be_hidden()
    expect(opened.page.locator(".controls")).to_be_hidden()
    opened.close()


def test_without_its_script_everything_is_there(browser: Any, written: Path, told: Any) -> None:
    opened = Opened(browser, written, java_script_enabled=False)
    assert opened.page.locator(".card:visible").count() == sum(map(len, told["gallery"]["groups"].values()))
    expect(opened.page.locator(".controls")).to_be_hidden()
    opened.close()


def test_blind_scores_without_samples(chosen: Path, tmp_path: Path) -> None:
    copy_outputs(chosen, tmp_path, "scores")
    record = json.loads((tmp_path / "scores.stage.json").read_text())
    record["identity"]["references"] = [{"name": "blind", "parameters": {}}]
    (tmp_path / "scores.stage.json").write_text(json.dumps(record))
    for path in (tmp_path / "scores").glob("*.parquet"):
        table = pq.read_table(path)
        names = [name.replace("blur_", "blind_") for name in table.column_names]
        pq.write_table(table.rename_columns(names), path)
    found = write_report(tmp_path, tmp_path / "r.html", figures=False)
    assert "No samples/ beside the scores" in found.text()
    assert "data:image/jpeg" not in (tmp_path / "r.html").read_text()
    copy_outputs(chosen, tmp_path, "samples")
    found = write_report(tmp_path, tmp_path / "r.html", figures=False)
    html = (tmp_path / "r.html").read_text()
    assert "data:image/jpeg" in html
    assert "blurred" not in html.partition("<body>")[2].partition('<section id="method">')[0]


def test_another_models_tokenizer_is_told(chosen: Path, told: Any, tmp_path: Path, qwen_checkpoint: str) -> None:
    found = write_report(chosen, tmp_path / "r.html", figures=False, model=qwen_checkpoint)
    assert "The tokens don't spell the answers" in found.text()
    assert not any("spell" in warning for warning in told["about"]["warnings"])


def test_a_card_of_many_images_and_a_turn_that_was_not_scored() -> None:
    row = {"source": None, "vig": 0.5, "clean_loss": 1.0, "reference_loss": 1.5, "num_truncated_tokens": 0,
           "clean_logprobs": [-1.0], "reference_logprobs": [-1.5], "turn": [1]}  # fmt: skip
    turns = [
        ("system", "Be brief."),
        ("user", "<image>What?"),
        ("assistant", "First."),
        ("user", "And?"),
        ("assistant", "Red"),
    ]
    shown = Shown("k", row, ["Red"], np.array([0.5]), [{"role": a, "text": b} for a, b in turns],
                  [Picture("data:image/jpeg;base64,AA", None)], more_pictures=2)  # fmt: skip
    html = card(shown, Place("k", True))
    assert "and 2 more images" in html
    assert '<p class="turn asked" data-role="assistant, not scored">First.</p>' in html
    assert '<p class="turn asked" data-role="system">Be brief.</p>' in html
    assert html.count('class="turn answer"') == 1
    assert html.index("First.") < html.index("And?") < html.index(">Red</span>")


def test_it_stays_below_the_size_that_is_asked_for(chosen: Path, tmp_path: Path, written: Path) -> None:
    whole = written.stat().st_size
    limit = whole * 0.6 / 1e6
    found = write_report(chosen, tmp_path / "r.html", figures=False, max_mb=limit)
    assert found.left_out > 0
    assert (tmp_path / "r.html").stat().st_size == found.size < limit * 1e6
    html = (tmp_path / "r.html").read_text()
    assert f"{found.left_out} of {found.shown} cards are left out" in html
    assert html.count("<article") == found.shown - found.left_out
    # Those of all sources come before those of one.
    assert html.count('class="card"') == 32
    assert "left out" in found.text()


def test_the_files_beside_it(written: Path, chosen: Path, tmp_path: Path) -> None:
    figures = written.parent / "report-figures"
    names = {path.name for path in figures.iterdir()}
    for name in ("sample-gain", "groups", "tokens", "places", "lengths", "thresholds", "token-losses", "sample-losses"):
        assert {f"{name}.svg", f"{name}.png", f"{name}.json"} <= names
        image = PIL.Image.open(figures / f"{name}.png")
        assert min(image.size) > 200
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert "data" in (figures / f"{name}.json").read_text()
        assert "var(--" not in (figures / f"{name}.svg").read_text()
    again = tmp_path / "report.html"
    write_report(chosen, again)
    assert again.read_bytes() == written.read_bytes(), "the same scores give the same file"
    assert write_report(chosen, again, gallery=0, figures=False).shown == 0
    assert "<article" not in again.read_text()


def test_large_images_are_blurred_before_they_are_made_small() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (600, 900, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    found = picture({"uri": None, "bytes": buffer.getvalue()}, True, 90, 10**8)
    shown = decoded(found.blurred)
    assert shown.shape == (60, 90, 3)
    expected = PIL.Image.fromarray(blur_opencv(pixels)).resize((90, 60))
    assert np.abs(shown - np.asarray(expected, float)).mean() < 2
    assert picture({"uri": None, "bytes": buffer.getvalue()}, False, 90, 10**8).blurred is None
    assert "too large" in str(picture({"uri": None, "bytes": buffer.getvalue()}, True, 90, 100).error)
