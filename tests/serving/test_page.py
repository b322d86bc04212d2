"""The page in a browser: what a person sees and reaches, with mouse and keyboard, and that it asks no other host."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser import needs_chromium
from tests.serving.conftest import png
from tests.serving.http_server import Served

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def served(demo_model: Any, demo_formatter: Any) -> Iterator[Served]:
    from vig_ray.scoring.engines.torch import TorchEngine

    server = Served(TorchEngine(demo_model, demo_formatter.collate), demo_formatter, max_image_pixels=100_000)
    yield server
    server.stop()


@pytest.fixture
def page(browser: Any, served: Served, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A fresh page; at the end, nothing was written to the console and no other host was asked."""
    context = browser.new_context(**getattr(request, "param", {"viewport": {"width": 1200, "height": 900}}))
    fresh_page = context.new_page()
    console_messages: list[str] = []
    requested_urls: list[str] = []
    fresh_page.on(
        "console",
        lambda message: console_messages.append(message.text) if message.type in ("error", "warning") else None,
    )
    fresh_page.on("pageerror", lambda error: console_messages.append(str(error)))
    fresh_page.on("request", lambda sent: requested_urls.append(sent.url))
    fresh_page.goto(served.url)
    yield fresh_page
    assert [text for text in console_messages if "status of 4" not in text] == []
    assert [url for url in requested_urls if not url.startswith((served.url, "data:"))] == []
    context.close()


def keep(page: Page, name: str) -> None:
    """A picture of the whole page, for people, where VIG_SCREENSHOTS names a folder."""
    import os

    folder = os.environ.get("VIG_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def score_example(page: Page, title: str = "a caption") -> None:
    page.get_by_role("button", name=title, exact=True).click()
    expect(page.locator("#tokens .token").first).to_be_visible()


def test_an_example_is_one_click_away_and_its_visual_words_stand_out(page: Page) -> None:
    score_example(page)
    classes = {element.inner_text().strip(): element.get_attribute("class") for element in page.locator(".token").all()}
    for word in ("green", "circle", "yellow", "triangle"):
        assert re.search(r"\bp[23]\b", classes[word] or ""), (word, classes[word])
    for word in ("A", "on", "the"):
        assert not re.search(r"\b[pm][123]\b", classes[word] or ""), (word, classes[word])
    assert page.locator("#vig").inner_text().startswith("+")
    for name in ("clear", "blurred"):
        assert page.locator(f"#{name}").evaluate("image => image.naturalWidth") > 0
    assert page.locator("#legend span").count() == 7
    keep(page, "page")


def test_log_probs_by_mouse_and_by_keyboard(page: Page) -> None:
    score_example(page)
    detail = page.locator("#detail")
    page.locator(".token", has_text="green").hover()
    expect(detail).to_contain_text("“ green”: gain +")
    expect(detail).to_contain_text("without")
    page.locator(".token").first.focus()
    expect(detail).to_contain_text("“A”")
    page.keyboard.press("Tab")
    expect(detail).to_contain_text("“ green”")


def test_the_slider_masks_without_asking_again(page: Page) -> None:
    score_example(page)
    requested_urls: list[str] = []
    page.on("request", lambda sent: requested_urls.append(sent.url))
    expect(page.locator("#taunumber")).to_have_value("0.3")  # the server's
    for tau in (-1, 0.3, 3):
        page.locator("#tau").fill(str(tau))
        page.locator("#tau").dispatch_event("input")
        shown = page.locator(".token:not(.masked)").count()
        expect(page.locator("#active")).to_contain_text(f"{shown} of ")
        gains = page.evaluate("scored.tokens.map(token => token.gain)")
        assert shown == sum(gain >= tau for gain in gains)
    expect(page.locator("#kept")).to_have_text("left out")
    keep(page, "masked")
    assert requested_urls == []


def test_a_file_chosen_and_a_file_dropped(page: Page, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    page.locator("#file").set_input_files(tmp_path / "a.png")
    page.locator("#question").fill("What is this?")
    page.locator("#answer").fill("It is noise <b>& more</b>.")
    page.get_by_role("button", name="Score").click()
    expect(page.locator("#tokens")).to_contain_text("It is noise <b>& more</b>.")
    assert page.locator("#tokens b").count() == 0
    data = base64.b64encode(png(4)).decode()
    page.evaluate(
        """data => {
            const bytes = Uint8Array.from(atob(data), char => char.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "b.png", {type: "image/png"}));
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer}));
        }""",
        data,
    )
    expect(page.locator("#preview")).to_have_attribute("src", f"data:image/png;base64,{data}")


def test_what_is_wrong_is_told_in_words(page: Page, tmp_path: Path) -> None:
    error = page.locator("#error")
    page.get_by_role("button", name="Score").click()
    expect(error).to_have_text("Choose an image first.")
    (tmp_path / "note.txt").write_text("x")
    page.locator("#file").set_input_files(tmp_path / "note.txt")
    expect(error).to_have_text("That file is not an image.")
    (tmp_path / "big.png").write_bytes(png(1, side=400))
    page.locator("#file").set_input_files(tmp_path / "big.png")
    page.locator("#question").fill("What?")
    page.get_by_role("button", name="Score").click()
    expect(error).to_have_text("Write the answer that is to be judged.")
    page.locator("#answer").fill("This.")
    page.get_by_role("button", name="Score").click()
    expect(error).to_contain_text("pixels, and 100000 are allowed")
    expect(page.locator("#result")).to_be_hidden()
    keep(page, "error")


@pytest.mark.parametrize(
    "page",
    [{"viewport": {"width": 400, "height": 800}}, {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"}],
    ids=["narrow", "dark"],
    indirect=True,
)
def test_narrow_and_dark(page: Page, request: pytest.FixtureRequest) -> None:
    score_example(page, "a wrong caption")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator(".m1, .m2, .m3").count() > 0
    keep(page, request.node.callspec.id)


def test_a_server_with_keys_asks_for_one(browser: Any, demo_model: Any, demo_formatter: Any) -> None:
    from vig_ray.scoring.engines.torch import TorchEngine

    served = Served(TorchEngine(demo_model, demo_formatter.collate), demo_formatter, keys="a-key")
    page = browser.new_page()
    page.goto(served.url)
    expect(page.locator("#error")).to_have_text("This server wants a key.")
    page.get_by_label("Key").fill("a-key")
    score_example(page)
    page.close()
    served.stop()
