"""What a sample on the page is made of: images by every way, turns, where images stand, and a link to its text."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from typing import Any

from playwright.sync_api import Page, expect

from tests.browser import needs_chromium
from tests.serving.conftest import base64_of, png
from tests.serving.http_server import Served
from tests.serving.page.acts import choose, hand_over, keep, score, score_example, write

pytestmark = needs_chromium
TWO_TURNS = (("What is on the left?", "A circle."), ("And here?", "A red square."))


def vig_by_hand(served: Served, messages: list[dict[str, Any]]) -> float:
    """The gain of messages whose images are in their places as OpenAI writes them, asked without the page."""
    body = json.dumps({"messages": messages}).encode()
    request = urllib.request.Request(f"{served.url}/v1/score", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return float(json.load(answer)["vig"])


def image_part(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64_of(data)}"}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def answered_vig(page: Page) -> float:
    with page.expect_response("**/v1/score") as told:
        score(page)
    return float(told.value.json()["vig"])


def sent_messages(page: Page) -> tuple[list[str], list[str]]:
    """The questions and images of what the page sends."""
    with page.expect_request("**/v1/score") as asked:
        score(page)
    body = asked.value.post_data_json
    return [message["content"] for message in body["messages"][::2]], body["images"]


def names(page: Page) -> list[str]:
    return [text.partition(": ")[2] for text in page.locator("#images .name").all_inner_texts()]


def test_images_stand_first_until_they_are_moved_and_are_scored_where_they_stand(page: Page, served: Served) -> None:
    first, second = png(3), png(4)
    choose(page, ("one.png", first), ("two.png", second))
    write(page, *TWO_TURNS)
    (question, answer), (question2, answer2) = TWO_TURNS
    rest = [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": question2},
        {"role": "assistant", "content": answer2},
    ]
    both_first = [image_part(first), text_part("\n"), image_part(second), text_part(f"\n{question}")]
    assert answered_vig(page) == vig_by_hand(served, [{"role": "user", "content": both_first}, *rest])
    page.get_by_label("Where image 1 stands").select_option("in question 2")
    expect(page.locator("#question1")).to_have_value(f"<image>\n{question}")
    expect(page.locator("#question2")).to_have_value(f"<image>\n{question2}")
    assert names(page) == ["two.png", "one.png"]
    expect(page.get_by_label("Where image 2 stands")).to_be_focused()
    rest[1] = {"role": "user", "content": [image_part(first), text_part(f"\n{question2}")]}
    one_each = [{"role": "user", "content": [image_part(second), text_part(f"\n{question}")]}, *rest]
    assert answered_vig(page) == vig_by_hand(served, one_each)
    expect(page.locator(".tokens")).to_have_count(2)
    expect(page.locator(".pair img")).to_have_count(4)
    keep(page, "turns")


def test_images_change_places_and_go(page: Page) -> None:
    choose(page, *[(f"{number}.png", png(number)) for number in range(3)])
    expect(page.locator("#status")).to_have_text("3 images added, 3 in all.")
    expect(page.get_by_role("button", name="Move image 1 forward")).to_be_disabled()
    page.get_by_role("button", name="Move image 1 back").click()
    assert names(page) == ["1.png", "0.png", "2.png"]
    expect(page.get_by_role("button", name="Move image 2 back")).to_be_focused()
    page.get_by_role("button", name="Remove image 1").click()
    assert names(page) == ["0.png", "2.png"]
    expect(page.get_by_role("button", name="Remove image 1")).to_be_focused()
    write(page, ("A <image> and a <image>", "So."))
    questions, images = sent_messages(page)
    assert questions == ["A <image> and a <image>"]
    assert images == [f"data:image/png;base64,{base64_of(png(number))}" for number in (0, 2)]
    page.get_by_role("button", name="Remove image 1").click()
    expect(page.locator("#question1")).to_have_value("A  and a <image>")
    page.get_by_role("button", name="Remove image 1").click()
    expect(page.locator("#file")).to_be_focused()


def test_a_removed_turn_leaves_its_images(page: Page) -> None:
    choose(page, ("one.png", png(1)), ("two.png", png(2)))
    write(page, ("<image> one?", "A."), ("two?", "B."), ("<image> three?", "C."))
    page.get_by_role("button", name="Remove turn 1").click()
    expect(page.locator("#question1")).to_be_focused()
    expect(page.locator("#question1")).to_have_value("<image>\ntwo?")
    page.get_by_role("button", name="Remove turn 2").click()
    expect(page.locator("#question1")).to_have_value("<image>\n<image>\ntwo?")
    assert names(page) == ["one.png", "two.png"]
    expect(page.get_by_role("button", name="Remove turn")).to_have_count(0)


def test_marks_and_images_that_differ_in_number_are_told(page: Page) -> None:
    choose(page, ("one.png", png(1)), ("two.png", png(2)))
    write(page, ("Here <image>", "So."))
    expect(page.locator("#marks")).to_have_text("The questions have room for 1 image (<image>), and 2 are here.")
    score(page)
    expect(page.locator("#error")).to_have_text(
        "The sample was refused: 1 <image> in the conversation, 2 images in the row."
    )
    page.get_by_label("Where image 2 stands").select_option("in question 1")
    expect(page.locator("#question1")).to_have_value("<image>\nHere <image>")
    expect(page.locator("#marks")).to_have_text("")
    assert names(page) == ["two.png", "one.png"]


def test_a_file_dropped_beside_the_field_and_one_pasted(page: Page) -> None:
    hand_over(page, "drop", png(4), "dropped.png")
    expect(page.locator("#images .name")).to_have_text("Image 1: dropped.png")
    hand_over(page, "paste", png(5), "pasted.png")
    expect(page.locator("#images .name")).to_have_text(["Image 1: dropped.png", "Image 2: pasted.png"])
    source = page.locator("#images img").nth(1).get_attribute("src")
    assert source == f"data:image/png;base64,{base64_of(png(5))}"


def test_paste_by_keyboard_from_the_clipboard(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async data => {
            const bytes = Uint8Array.from(atob(data), char => char.charCodeAt(0));
            await navigator.clipboard.write([new ClipboardItem({"image/png": new Blob([bytes], {type: "image/png"})})]);
        }""",
        base64_of(png(6)),
    )
    page.locator("#question1").click()
    page.keyboard.press("Control+v")
    expect(page.locator("#images img")).to_have_count(1)
    page.evaluate("navigator.clipboard.writeText('a word')")
    page.keyboard.press("Control+v")
    expect(page.locator("#question1")).to_have_value("a word")


def test_a_link_carries_the_text_and_nothing_of_it_to_the_server(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    choose(page, ("one.png", png(1)))
    turns = (("Where & what? <image> #1\n+", "A “circle” = 100 %."), ("Und nun? 🟢", "<b>"))
    write(page, *turns)
    page.locator("#taunumber").evaluate("field => { field.value = '0.25'; }")
    page.get_by_role("button", name="Copy a link").click()
    expect(page.locator("#status")).to_contain_text("not the images")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url
    # What a reader of the standard's forms makes of it, in another language.
    fields = urllib.parse.parse_qs(urllib.parse.urlsplit(link).fragment)
    assert fields == {"q": [turns[0][0], turns[1][0]], "a": [turns[0][1], turns[1][1]], "tau": ["0.25"]}

    other = page.context.new_page()
    asked: list[str] = []
    other.on("request", lambda sent: asked.append(sent.url.partition("#")[0]))
    other.goto(link)
    for number, (question, answer) in enumerate(turns, start=1):
        expect(other.locator(f"#question{number}")).to_have_value(question)
        expect(other.locator(f"#answer{number}")).to_have_value(answer)
    expect(other.locator("#status")).to_have_text("The text came with the link. Images don't: add them, then score.")
    expect(other.locator("#model")).to_contain_text("demo")  # the server's τ is known by now
    expect(other.locator("#taunumber")).to_have_value("0.25")
    assert not [url for url in asked if "circle" in url or "?" in url]
    choose(other, ("one.png", png(1)))  # fills the place that waits for it
    expect(other.locator("#question1")).to_have_value(turns[0][0])
    other.goto(link.partition("#")[0] + "#a=%F0%28%8C&tau=much&x")  # nothing that a link may hold breaks the page
    expect(other.locator("#question1")).to_have_value("")


def test_an_example_takes_the_place_of_all_that_was_there(page: Page) -> None:
    choose(page, ("one.png", png(1)), ("two.png", png(2)))
    write(page, *TWO_TURNS)
    score_example(page)
    expect(page.locator(".turn")).to_have_count(1)
    assert names(page) == ["a caption"]
