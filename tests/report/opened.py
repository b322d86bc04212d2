"""A report's page in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import Page


class Opened:
    """The file in a browser without a network; what it said and asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, "offline": True} | options)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda sent: self.asked.append(sent.url))
        self.page.goto(file.as_uri())

    def close(self) -> None:
        self.context.close()
        assert self.said == []
        assert [url for url in self.asked[1:] if not url.startswith(("data:", "blob:"))] == []
