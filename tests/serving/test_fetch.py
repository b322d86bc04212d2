"""Images by URL: from listed hosts, from no address inside a network, whatever names and redirects say."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serve_app import fetch
from serve_app.errors import RequestError
from serve_app.schema import EXAMPLE_QA
from tests.serving.conftest import LocalBackend, png

Serving = Callable[..., tuple[TestClient, LocalBackend]]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("127.0.0.1", False), ("10.1.2.3", False), ("192.168.0.1", False), ("172.16.0.1", False),
        ("169.254.169.254", False), ("0.0.0.0", False), ("100.64.0.1", False), ("224.0.0.1", False), ("::1", False),
        ("64:ff9b::a9fe:a9fe", False), ("64:ff9b::a00:1", False), ("64:ff9b:1::1", False), ("2002:7f00:1::1", False),
        ("2002:a00:1::", False), ("::7f00:1", False), ("fec0::1", False), ("2001::7f00:1", False), ("::", False),
        ("64:ff9b::5db8:d822", True), ("2002:5db8:d822::1", True), ("ff02::1", False),
        ("fe80::1", False), ("fd00::1", False), ("::ffff:127.0.0.1", False), ("::ffff:10.0.0.1", False),
        ("93.184.216.34", True), ("2606:2800:220:1:248:1893:25c8:1946", True),
    ],
)  # fmt: skip
def test_addresses(address: str, public: bool) -> None:
    assert fetch.is_public(address) == public


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/a.png", "https://images.example.other/a.png", "https://user@images.example/a.png",
        "https://images.example:8080/a.png", "ftp://images.example/a.png", "file:///etc/passwd", "https://[::1]/a",
        "https://images.example:99999/a", "http://127.0.0.1/a", "gopher://images.example/", "https:///a",
    ],
)  # fmt: skip
def test_what_is_not_on_the_list(url: str) -> None:
    with pytest.raises(RequestError):
        fetch.check_url(url, ["images.example"])
    with pytest.raises(RequestError, match="not taken here"):
        fetch.check_url("https://images.example/a.png", [])
    fetch.check_url("https://IMAGES.example/a.png", ["images.example"])


def test_a_listed_name_that_leads_inside_is_refused() -> None:
    for host in ("localhost", "127.0.0.1", "[::1]"):
        with pytest.raises(RequestError, match="public"):
            asyncio.run(fetch.fetch(f"http://{host}/a.png", [host.strip("[]")], fetch.Allowance(1000)))


class Store(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/image.png":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png())
        elif self.path == "/inside":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest")
            self.end_headers()
        elif self.path == "/broken":
            self.send_response(302)
            self.send_header("Location", "http://[")
            self.end_headers()
        elif self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
        elif self.path == "/moved":
            self.send_response(301)
            self.send_header("Location", "/image.png")
            self.end_headers()
        else:
            self.send_response(404)
            self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A host of images on this machine, which counts as public here, at whatever port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(fetch, "PORTS", (None, server.server_address[1]))
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()


def test_redirects_are_checked_and_sizes_kept(store: str) -> None:
    def get(path: str, most: int = 100_000) -> bytes:
        return asyncio.run(fetch.fetch(store + path, ["localhost"], fetch.Allowance(most)))

    assert get("/image.png") == png()
    assert get("/moved") == png()
    for path, message in (
        ("/inside", "from these hosts only"),
        ("/loop", "more than 3 times"),
        ("/broken", "what is no URL"),
        ("/none", "answers 404"),
    ):
        with pytest.raises(RequestError, match=message):
            get(path)
    with pytest.raises(RequestError, match="more than 100 bytes"):
        get("/image.png", 100)


def test_a_sample_whose_image_is_named_by_url(store: str, serving: Serving) -> None:
    client, _ = serving(image_hosts="localhost, elsewhere.example")
    by_url = client.post("/v1/score", json=EXAMPLE_QA | {"image": f"{store}/image.png"})
    from tests.serving.conftest import base64_of

    by_value = client.post("/v1/score", json=EXAMPLE_QA | {"image": base64_of(png())})
    assert by_url.json()["vig"] == by_value.json()["vig"]
    assert client.post("/v1/score", json=EXAMPLE_QA | {"image": f"{store}/none"}).status_code == 422
