"""The page in a browser, over the demo model in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.serving.http_server import Served

expect.set_options(timeout=30_000)  # two busy cores take longer than five seconds for an answer


@pytest.fixture(scope="module")
def served(demo_model: Any, demo_formatter: Any) -> Iterator[Served]:
    from vig_ray.scoring.engines.torch import TorchEngine

    server = Served(TorchEngine(demo_model, demo_formatter.collate), demo_formatter, max_image_pixels=100_000)
    yield server
    server.stop()


@pytest.fixture
def page(browser: Any, served: Served, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A fresh page; at the end, nothing was written to the console and no other host was asked."""
    options = {"viewport": {"width": 1200, "height": 900}} | getattr(request, "param", {})
    context = browser.new_context(**options)
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
    refusals = ("status of 4", "status of 5", "net::ERR_FAILED")  # a browser writes these by itself
    assert [text for text in console_messages if not any(part in text for part in refusals)] == []
    assert [url for url in requested_urls if not url.startswith((served.url, "data:", f"blob:{served.url}"))] == []
    context.close()


@pytest.fixture
def comparing(page: Page) -> Page:
    """The page of a server that holds two models and two references of the first.

    The server of this test holds one model with one reference: the browser is told of more, and what it asks of them
    is scored by the one, with gains that tell the answers apart.
    """

    def tell_models(route: Route) -> None:
        info = route.fetch().json()
        models = [{"name": "demo", "references": ["blur", "blind"]}, {"name": "other", "references": ["blur"]}]
        route.fulfill(json=info | {"models": models})

    def score(route: Route) -> None:
        asked = json.loads(route.request.post_data or "")
        model, reference = asked.pop("model"), asked.pop("reference")
        found = route.fetch(post_data=json.dumps(asked)).json()
        if reference == "blind":
            found |= {"vig": 0.125, "reference_images": None}
            found["reference"] |= {"name": "blind", "kernels": []}
        found["model"] |= {"name": model}
        route.fulfill(json=found)

    page.route("**/v1/model", tell_models)
    page.route("**/v1/score", score)
    page.reload()
    expect(page.locator("#choices")).to_be_visible()
    return page
