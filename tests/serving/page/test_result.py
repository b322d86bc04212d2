"""What the page shows of an answer: colours, log-probs, the threshold, two answers side by side, and what is saved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.browser import needs_chromium
from tests.serving.conftest import png
from tests.serving.page.acts import choose, keep, score, score_example, write

pytestmark = needs_chromium


def answer_to_example(page: Page) -> Any:
    """What the server answered about the first example, bytes."""
    with page.expect_response("**/v1/score") as told:
        score_example(page)
    return told.value.body()


def test_an_example_is_one_click_away_and_its_visual_words_stand_out(page: Page) -> None:
    score_example(page)
    classes = {element.inner_text().strip(): element.get_attribute("class") for element in page.locator(".token").all()}
    for word in ("green", "circle", "yellow", "triangle"):
        assert re.search(r"\bp[23]\b", classes[word] or ""), (word, classes[word])
    for word in ("A", "on", "the"):
        assert not re.search(r"\b[pm][123]\b", classes[word] or ""), (word, classes[word])
    assert page.locator(".gain").inner_text().startswith("+")
    pictures = page.locator(".pair img")
    expect(pictures).to_have_count(2)
    for picture in pictures.all():
        assert picture.evaluate("image => image.naturalWidth") > 0
    assert page.locator("#legend span").count() == 7
    expect(page.locator("#choices")).to_be_hidden()
    keep(page, "page")


def test_log_probs_by_mouse_and_by_keyboard(page: Page) -> None:
    score_example(page)
    detail = page.locator(".detail")
    page.locator(".token", has_text="green").hover()
    expect(detail).to_contain_text("“ green”: gain +")
    expect(detail).to_contain_text("without")
    page.locator(".token").first.focus()
    expect(detail).to_contain_text("“A”")
    page.keyboard.press("ArrowRight")
    expect(detail).to_contain_text("“ green”")
    page.keyboard.press("End")
    expect(detail).to_contain_text("“</s>”")
    page.keyboard.press("Home")
    expect(detail).to_contain_text("“A”")


def test_the_slider_masks_without_asking_again(page: Page) -> None:
    gains = [token["gain"] for token in json.loads(answer_to_example(page))["tokens"]]
    requested_urls: list[str] = []
    page.on("request", lambda sent: requested_urls.append(sent.url))
    expect(page.locator("#taunumber")).to_have_value("0.3")  # the server's
    for tau in (-1, 0.3, 3):
        page.locator("#tau").fill(str(tau))
        page.locator("#tau").dispatch_event("input")
        shown = page.locator(".token:not(.masked)").count()
        expect(page.locator(".active")).to_contain_text(f"{shown} of ")
        assert shown == sum(gain >= tau for gain in gains)
    expect(page.locator(".badge")).to_have_text("left out")
    keep(page, "masked")
    page.locator("#taunumber").fill("")
    expect(page.locator(".badge")).to_have_text("no τ")
    assert page.locator(".token.masked").count() == 0
    assert requested_urls == []


def test_the_table_says_what_the_server_answered(page: Page) -> None:
    answered = json.loads(answer_to_example(page))
    page.get_by_text("Tokens as a table").click()
    rows = [[cell.inner_text() for cell in row.locator("th, td").all()] for row in page.locator("tbody tr").all()]
    assert len(rows) == len(answered["tokens"])
    for (text, gain, clean, reference), token in zip(rows, answered["tokens"], strict=True):
        assert text.strip() == token["text"].strip()
        assert float(gain.replace("−", "-")) == pytest.approx(token["gain"], abs=6e-4)
        for shown, name in ((clean, "clean_logprob"), (reference, "reference_logprob")):
            assert float(shown.split()[0]) == pytest.approx(token[name], abs=6e-4)


def test_json_is_what_the_server_answered_to_the_byte(page: Page, tmp_path: Path) -> None:
    answered = answer_to_example(page)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as JSON").click()
    saved.value.save_as(tmp_path / "saved.json")
    assert saved.value.suggested_filename == "vig.json"
    assert (tmp_path / "saved.json").read_bytes() == answered


@pytest.mark.parametrize("page", [{}, {"color_scheme": "dark"}], ids=["light", "dark"], indirect=True)
def test_the_picture_has_the_colours_of_the_page_at_twice_its_size(page: Page, tmp_path: Path) -> None:
    score_example(page)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as a picture").click()
    file = tmp_path / saved.value.suggested_filename
    saved.value.save_as(file)
    assert file.name == "vig.png"
    keep_file(file, page)
    pixels = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
    assert pixels.shape[1] == 2 * 760
    green = page.locator(".token", has_text="green")
    for element, least in ((page.locator("body"), 100_000), (green, 3_000)):
        colour = element.evaluate("element => getComputedStyle(element).backgroundColor")
        wanted = np.array([int(part) for part in re.findall(r"\d+", colour)])
        assert np.all(pixels == wanted, axis=2).sum() > least, colour


def keep_file(file: Path, page: Page) -> None:
    import os
    import shutil

    folder = os.environ.get("VIG_SCREENSHOTS")
    if folder:
        dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        shutil.copy(file, Path(folder) / f"saved-{'dark' if dark else 'light'}.png")


def test_characters_beyond_16_bits_move_no_colour(page: Page) -> None:
    """Places are of characters; a browser's strings count an emoji as two."""
    choose(page, ("a.png", png(3)))
    answer = "🟢🔺 A green circle 👩‍🚀 on the left.\nIt is round."
    write(page, ("What is this?", answer))
    with page.expect_response("**/v1/score") as told:
        score(page)
    expect(page.locator(".token").first).to_be_visible()
    tokens = json.loads(told.value.body())["tokens"]
    shown = page.locator(".token").evaluate_all("all => all.map(element => [element.dataset.index, element.innerText])")
    for index, text in shown:
        token = tokens[int(index)]
        assert text in (token["text"], "·") or text.strip() == token["text"].strip()
    whole = page.locator(".tokens").evaluate(
        "box => [...box.children].filter(one => !one.matches('.special')).map(one => one.textContent).join('')"
    )
    assert whole.replace("·", "") == answer


def test_two_answers_side_by_side(comparing: Page) -> None:
    page = comparing
    choices = page.locator("#scoredby option").all_inner_texts()
    assert choices == ["demo · blur", "demo · blind", "other · blur"]
    expect(page.locator("#model")).to_have_text("Models: demo, other.")
    page.get_by_label("Compared with").select_option("demo · blind")
    asked: list[Any] = []
    page.on("request", lambda sent: asked.append(sent.post_data_json) if sent.url.endswith("/v1/score") else None)
    score_example(page)
    assert [(one["model"], one["reference"]) for one in asked] == [("demo", "blur"), ("demo", "blind")]
    assert asked[0]["images"] == asked[1]["images"]
    panels = page.locator(".panel")
    expect(panels).to_have_count(2)
    assert page.locator("#panels .who").all_inner_texts() == ["demo · blur", "demo · blind"]
    assert page.locator(".gain").all_inner_texts()[1] == "+0.125"
    left, right = (panel.bounding_box() for panel in panels.all())
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    expect(page.locator(".evidence").nth(1)).to_contain_text("the reference “blind”, which shows no picture")
    page.locator("#taunumber").fill("0.2")  # one τ for both
    expect(page.locator(".badge").nth(0)).to_have_text("kept")
    expect(page.locator(".badge").nth(1)).to_have_text("left out")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as JSON").nth(1).click()
    assert saved.value.suggested_filename == "vig-2.json"
    assert json.loads(Path(saved.value.path()).read_text())["reference"]["name"] == "blind"
    page.get_by_label("Compared with").select_option("nothing")
    score_example(page)
    expect(panels).to_have_count(1)


def test_one_of_two_that_fails_does_not_hide_the_other(comparing: Page) -> None:
    page = comparing

    def refuse(route: Any) -> None:
        if json.loads(route.request.post_data)["model"] == "other":
            message = {"error": {"kind": "Busy", "message": "the model is being loaded"}}
            route.fulfill(status=503, headers={"Retry-After": "7"}, json=message)
        else:
            route.fallback()

    page.route("**/v1/score", refuse)
    page.get_by_label("Compared with").select_option("other · blur")
    score_example(page)
    expect(page.locator(".panel")).to_have_count(1)
    expect(page.locator("#error")).to_have_text(
        "other · blur: The server is busy: the model is being loaded. Try again in 7 seconds."
    )
