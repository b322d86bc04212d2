"""What the page says where something is wrong: with the sample, the server, the key; and texts that mean it ill."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from serve_app.access import read_access
from serve_app.options import AppConfig
from tests.browser import needs_chromium
from tests.serving.conftest import png
from tests.serving.http_server import Served
from tests.serving.page.acts import choose, hand_over, keep, score, score_example, write
from vig_ray.demo import CHECKPOINT
from vig_ray.scoring.engines.torch import TorchEngine

pytestmark = needs_chromium
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>&lt;b&gt;"


def test_what_is_wrong_with_a_sample_is_told_in_words(page: Page) -> None:
    error = page.locator("#error")
    score(page)
    expect(error).to_have_text("Choose an image first.")
    page.locator("#file").set_input_files({"name": "note.txt", "mimeType": "text/plain", "buffer": b"x"})
    expect(error).to_have_text("Not an image: note.txt.")
    choose(page, ("big.png", png(1, side=400)))
    page.locator("#question1").fill("What?")
    score(page)
    expect(error).to_have_text("Write the answer that is to be judged.")
    expect(page.locator("#answer1")).to_be_focused()
    page.locator("#answer1").fill("This.")
    score(page)
    expect(error).to_contain_text("pixels, and 100000 are allowed")
    expect(page.locator("#result")).to_be_hidden()
    keep(page, "error")
    page.get_by_role("button", name="Add a turn").click()
    score(page)
    expect(error).to_have_text("Write a question in turn 2.")


def _json(message: str) -> str:
    return json.dumps({"error": {"kind": "Any", "message": message}})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"status": 422, "body": _json("no image")}, "The sample was refused: no image."),
        (
            {"status": 503, "headers": {"Retry-After": "30"}, "body": _json("64 samples are under way")},
            "The server is busy: 64 samples are under way. Try again in 30 seconds.",
        ),
        ({"status": 503, "body": "<html>"}, "The server is busy. Try again in a while."),
        (
            {"status": 503, "headers": {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, "body": _json("closed")},
            "The server is busy: closed. Try again after Fri, 31 Dec 1999 23:59:59 GMT.",
        ),
        ({"status": 504, "body": _json("no score within 60 seconds")}, "too long: no score within 60 seconds."),
        ({"status": 502, "body": "<html>Bad gateway</html>"}, "The server answered 502."),
        ({"status": 200, "body": "<html>A login</html>"}, "its answer is no JSON."),
        ({"status": 500, "body": _json(HOSTILE)}, HOSTILE),
    ],
    ids=["422", "503", "503-bare", "503-date", "504", "502", "not-json", "hostile"],
)
def test_what_the_server_refuses_is_told_in_words(page: Page, answer: dict[str, Any], words: str) -> None:
    page.route("**/v1/score", lambda route: route.fulfill(**answer))
    page.get_by_role("button", name="a place", exact=True).click()
    expect(page.locator("#error")).to_contain_text(words)
    expect(page.locator("#status")).to_have_text("")
    expect(page.locator("#send")).to_have_attribute("aria-disabled", "false")
    assert page.locator("#error *").count() == 0


def test_a_server_that_is_gone(page: Page) -> None:
    expect(page.get_by_role("button", name="a place", exact=True)).to_be_visible()
    page.route("**/v1/score", lambda route: route.abort())
    page.get_by_role("button", name="a place", exact=True).click()
    expect(page.locator("#error")).to_have_text("The server can't be reached. Is it still running?")


def test_a_server_with_keys_asks_for_one(browser: Any, demo_model: Any, demo_formatter: Any) -> None:
    served = Served(TorchEngine(demo_model, demo_formatter.collate), demo_formatter, keys="a-key")
    page = browser.new_page()
    page.goto(served.url)
    expect(page.locator("#error")).to_have_text("This server wants a key: fill in the field Key.")
    key = page.get_by_label("Key")
    expect(key).to_be_focused()
    key.fill("another")
    key.press("Tab")
    expect(page.locator("#error")).to_have_text("The server doesn't know this key. Check the field Key.")
    key.fill("a-key")
    key.press("Tab")
    expect(page.locator("#model")).to_contain_text("demo")
    expect(page.locator("#error")).to_have_text("")
    score_example(page)
    page.close()
    served.stop()


def test_a_key_with_a_policy_of_its_own(browser: Any, demo_model: Any, demo_formatter: Any, tmp_path: Path) -> None:
    """Which takes no other threshold."""
    (tmp_path / "policies.yaml").write_text("strict: {tau: 0.2, least_active: 0.5}")
    digest = hashlib.sha256(b"a-key").hexdigest()
    (tmp_path / "keys.yaml").write_text(f"keys: [{{name: team, sha256: {digest}, policy: strict}}]")
    config = AppConfig(model=CHECKPOINT, keys=str(tmp_path / "keys.yaml"), policies=str(tmp_path / "policies.yaml"))
    engine = TorchEngine(demo_model, demo_formatter.collate)
    served = Served(engine, demo_formatter, access=read_access(config))
    page = browser.new_page()
    page.goto(served.url)
    page.get_by_label("Key").fill("a-key")
    page.get_by_label("Key").press("Tab")
    expect(page.locator("#model")).to_contain_text("demo")
    score_example(page)
    expect(page.locator("#error")).to_have_text("")
    page.close()
    served.stop()


def test_a_page_that_is_opened_while_the_model_loads(browser: Any, demo_model: Any, demo_formatter: Any) -> None:
    served = Served(TorchEngine(demo_model, demo_formatter.collate), demo_formatter)
    backend: Any = served.api.backend
    backend.loaded = False
    page = browser.new_page()
    page.goto(served.url)
    expect(page.locator("#error")).to_contain_text("the model is being loaded")
    backend.loaded = True
    expect(page.locator("#model")).to_contain_text("demo")
    expect(page.locator("#error")).to_have_text("")
    page.close()
    served.stop()


def test_texts_stay_texts(page: Page) -> None:
    """The model's name, a reference's, a token's, a file's, a link's: none of them is read as HTML."""

    def tell_models(route: Route) -> None:
        models = [{"name": HOSTILE, "references": ["blur", HOSTILE]}]
        route.fulfill(json=route.fetch().json() | {"name": HOSTILE, "models": models})

    def tell_score(route: Route) -> None:
        asked = json.loads(route.request.post_data or "")
        del asked["model"], asked["reference"]
        found = route.fetch(post_data=json.dumps(asked)).json()
        found["model"]["name"] = found["reference"]["name"] = HOSTILE
        found["tokens"][-1]["text"] = HOSTILE
        route.fulfill(json=found)

    page.route("**/v1/model", tell_models)
    page.route("**/v1/score", tell_score)
    page.reload()
    expect(page.locator("#scoredby option").nth(1)).to_have_text(HOSTILE)
    hand_over(page, "drop", png(3), HOSTILE)
    expect(page.locator("#images .name")).to_have_text(f"Image 1: {HOSTILE}")
    page.locator("#file").set_input_files({"name": HOSTILE, "mimeType": "text/plain", "buffer": b"x"})
    expect(page.locator("#error")).to_contain_text(HOSTILE)
    write(page, (HOSTILE, HOSTILE))
    page.get_by_label("Compared with").select_option(index=2)
    score(page)
    expect(page.locator(".token").last).to_have_text(HOSTILE)
    assert HOSTILE in page.locator(".tokens").first.evaluate("box => box.textContent")
    page.locator(".token").last.hover()
    expect(page.locator(".detail").last).to_contain_text(HOSTILE)
    expect(page.locator("#panels .who").last).to_contain_text(HOSTILE)
    assert page.locator("script").count() == 1
    assert page.locator("img[src=x], body b").count() == 0
    assert page.title() == "What does the image contribute?"


def test_the_browser_is_told_to_run_and_fetch_nothing_else(served: Served, browser: Any) -> None:
    headers = httpx.get(served.url).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    for script in ("page.js", "marks.js"):
        assert "javascript" in httpx.get(f"{served.url}/page/{script}").headers["content-type"]
    page = browser.new_page()
    page.goto(served.url)
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'var ran = 1'}))")
    assert page.evaluate("typeof ran") == "undefined"
    stopped_by = page.evaluate(
        """() => new Promise(resolve => {
            document.addEventListener("securitypolicyviolation", event => resolve(event.effectiveDirective));
            fetch("http://127.0.0.2:9/").catch(() => {});
        })"""
    )
    assert stopped_by == "connect-src"
    page.close()
