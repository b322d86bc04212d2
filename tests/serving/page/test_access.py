"""The page for everyone: axe-core in every state and both colour schemes, by keyboard alone, and 400 px wide."""

from __future__ import annotations

import importlib.resources
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser import needs_chromium
from tests.serving.conftest import png
from tests.serving.page.acts import choose, keep, score, score_example, write

pytestmark = needs_chromium
DARK = {"color_scheme": "dark"}
NARROW = {"viewport": {"width": 400, "height": 800}}


def findings(page: Page) -> list[str]:
    """What axe-core finds, all of its rules."""
    page.evaluate((importlib.resources.files("axe_playwright_python") / "axe.min.js").read_text())
    found: Any = page.evaluate("axe.run(document)")
    assert len(found["passes"]) > 10
    return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found["violations"]
            for node in one["nodes"]]  # fmt: skip


def fill_all(page: Page) -> None:
    """Two turns, two images, results, the table open."""
    choose(page, ("one.png", png(1)), ("two.png", png(2)))
    write(page, ("What is on the left?", "A green circle is on the left."), ("And there?", "A red square."))
    score(page)
    expect(page.locator(".tokens").nth(1)).to_be_visible()
    for summary in page.locator("summary").all():
        summary.click()


@pytest.mark.parametrize("page", [{}, DARK, DARK | NARROW], ids=["light", "dark", "dark-narrow"], indirect=True)
def test_axe_finds_nothing_at_the_start_with_an_error_and_with_results(page: Page) -> None:
    expect(page.get_by_role("button", name="a place", exact=True)).to_be_visible()
    assert findings(page) == []
    score(page)
    expect(page.locator("#error")).not_to_be_empty()
    assert findings(page) == []
    score_example(page, "a wrong caption")
    assert page.locator(".m1, .m2, .m3").count() > 0
    assert findings(page) == []
    page.locator("#taunumber").fill("-100")  # every colour unmasked
    assert findings(page) == []


@pytest.mark.parametrize("page", [{}, DARK, NARROW], ids=["light", "dark", "narrow"], indirect=True)
def test_axe_finds_nothing_in_a_comparison(comparing: Page, request: pytest.FixtureRequest) -> None:
    page = comparing
    page.get_by_label("Compared with").select_option("other · blur")
    fill_all(page)
    expect(page.locator(".panel")).to_have_count(2)
    assert findings(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.locator("#key").evaluate("key => { key.parentElement.hidden = false; }")
    assert findings(page) == []
    keep(page, f"compared-{request.node.callspec.id}")


@pytest.mark.parametrize("page", [NARROW, NARROW | DARK], ids=["light", "dark"], indirect=True)
def test_400_pixels_are_wide_enough(page: Page, request: pytest.FixtureRequest) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    fill_all(page)
    choose(page, ("a-name-" * 20 + ".png", png(3)))
    write(page, ("What is on the left?" * 5, "Unbroken" * 30))
    score(page)
    expect(page.locator("#status")).to_contain_text("nats of sample gain")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    keep(page, f"narrow-{request.node.callspec.id}")


OPERABLE = "button:visible:not([disabled]), select:visible, textarea:visible, input:visible, summary:visible"
FOCUSED = """() => {
    const element = document.activeElement;
    const shown = element.id === "file" ? element.parentElement : element;
    const style = getComputedStyle(shown);
    const again = element.dataset.reached !== undefined;
    element.dataset.reached = "";
    return {
        name: element.id || element.className || element.textContent.trim(),
        seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
        over: again || element === document.body,
    };
}"""


def reached_by_tab(page: Page) -> list[str]:
    """The elements that Tab goes to, from the first on; each is seen to have the focus, and is marked as reached."""
    names = []
    page.locator("#examples button").first.focus()
    page.keyboard.press("Shift+Tab")
    for _ in range(80):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused["over"]:
            return names
        assert focused["seen"], focused
        names.append(focused["name"])
    raise AssertionError(f"Tab never ends: {names}")


def test_everything_by_keyboard_alone(comparing: Page) -> None:
    page = comparing
    choose(page, ("one.png", png(1)), ("two.png", png(2)))
    expect(page.locator("#images li")).to_have_count(2)
    page.locator("#question1").focus()
    page.keyboard.type("What is on the left?")
    page.keyboard.press("Tab")
    page.keyboard.type("A green circle.")
    for name in ("addturn", "copylink", "scoredby", "comparedwith"):
        page.keyboard.press("Tab")
        expect(page.locator(f"#{name}")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")  # the second choice, after "nothing"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("demo · blind: ")
    expect(page.locator("#send")).to_be_focused()
    names = reached_by_tab(page)
    for element in page.locator(OPERABLE).all():
        assert element.get_attribute("data-reached") is not None, element.evaluate("element => element.outerHTML")
    assert sum(name.startswith("token ") for name in names) == 2  # Tab enters each answer once; arrows go on


def test_a_screen_reader_is_told_what_came_and_reads_every_gain(page: Page) -> None:
    expect(page.get_by_role("status").filter(has_text="gain")).to_have_count(0)
    score_example(page)
    status = page.locator("#status")
    expect(status).to_contain_text("Scored: +")
    assert status.get_attribute("role") == "status"
    assert page.locator("[aria-live] .token, [role=status] .token, output .token").count() == 0
    snapshot = page.locator(".panel").aria_snapshot()
    assert 'listbox "Tokens of the answer"' in snapshot
    assert snapshot.count("option ") == page.locator(".token").count()
    assert 'option "“ green”: gain +' in snapshot.replace("'", "")
