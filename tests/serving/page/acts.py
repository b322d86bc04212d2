"""What a person does on the page, and a picture of it for people."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from playwright.sync_api import Page, expect


def keep(page: Page, name: str) -> None:
    """A picture of the whole page, for people, where VIG_SCREENSHOTS names a folder; docs/page.png is `page`."""
    folder = os.environ.get("VIG_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def score_example(page: Page, title: str = "a caption") -> None:
    page.get_by_role("button", name=title, exact=True).click()
    expect(page.locator(".token").first).to_be_visible()


def choose(page: Page, *images: tuple[str, bytes]) -> None:
    """Choose files of these names."""
    page.locator("#file").set_input_files(
        [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in images]
    )


def write(page: Page, *turns: tuple[str, str]) -> None:
    """Write questions and answers, with as many turns more as that takes."""
    for number, (question, answer) in enumerate(turns, start=1):
        if number > page.locator(".turn").count():
            page.get_by_role("button", name="Add a turn").click()
        page.locator(f"#question{number}").fill(question)
        page.locator(f"#answer{number}").fill(answer)


def score(page: Page) -> None:
    page.get_by_role("button", name="Score", exact=True).click()


def hand_over(page: Page, event: str, data: bytes, name: str) -> None:
    """Dispatch a drop or paste of a file, as the browser makes it."""
    page.evaluate(
        """([event, data, name]) => {
            const bytes = Uint8Array.from(atob(data), char => char.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, {type: "image/png"}));
            const made = event === "drop"
                ? new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true})
                : new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true});
            document.body.dispatchEvent(made);
        }""",
        [event, base64.b64encode(data).decode(), name],
    )
