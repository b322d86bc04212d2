"""Who may ask: keys, this machine, pages of other sites, names of other sites that lead here, proxies."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from serve_app.options import AppConfig
from serve_app.schema import EXAMPLE_QA
from tests.serving.conftest import LocalBackend

Serving = Callable[..., tuple[TestClient, LocalBackend]]


def status_of(client: TestClient, key: str | None = None, **headers: str) -> int:
    """What a sample is answered with these headers; `_` in their names stands for `-`."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    return client.post("/v1/score", json=EXAMPLE_QA, headers=sent).status_code


def test_keys(serving: Serving) -> None:
    client, _ = serving(keys="# ours\nsecret-one\n\n secret-two \n")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret-one"},
                    {"Authorization": "Bearer"}, {"Authorization": "secret-one"}):  # fmt: skip
        answer = client.post("/v1/score", json=EXAMPLE_QA, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert "secret" not in answer.text
        assert client.get("/v1/model", headers=headers).status_code == 401
    for key in ("secret-one", "secret-two"):
        assert status_of(client, key) == 200
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_without_keys_only_this_machine_is_answered(serving: Serving) -> None:
    for machine, options, status in (
        ("127.0.0.1", {}, 200), ("::1", {}, 200), ("10.0.0.7", {}, 403), ("10.0.0.7", {"open": True}, 200),
    ):  # fmt: skip
        client, _ = serving(client=machine, **options)
        assert status_of(client) == status


def test_pages_of_other_sites_are_refused(serving: Serving) -> None:
    for options in ({}, {"open": True}, {"keys": "k"}):
        client, _ = serving(**options)
        assert status_of(client, "k", Origin="https://elsewhere.example") == 403
        assert status_of(client, "k", Origin="null") == 403
        assert status_of(client, "k", Origin="http://localhost") == 200


@pytest.mark.parametrize("options", [{}, {"open": True}])
def test_a_page_whose_name_was_made_to_lead_here_is_refused(serving: Serving, options: dict[str, Any]) -> None:
    """DNS rebinding: the browser takes the page and this server for one site, whose name is the page's."""
    client, _ = serving(**options)
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        assert status_of(client, Host=host, Origin=f"http://{host}") == 421, host
        answer = client.get("/v1/model", headers={"Host": host})
        assert answer.status_code == 421
        assert "--hosts" in answer.json()["error"]["message"]
        assert client.get("/", headers={"Host": host}).status_code == 421
        assert client.get("/healthz", headers={"Host": host}).status_code == 200  # a probe, which learns nothing


def test_names_and_addresses_of_this_machine_are_taken(serving: Serving) -> None:
    client, _ = serving()
    hosts = ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.5", socket.gethostname()]
    for host in hosts:
        assert status_of(client, Host=host, Origin=f"http://{host}") == 200, host


def test_listed_hosts(serving: Serving) -> None:
    client, _ = serving(hosts="vig.example, GPU.example", open=True)
    for host, status in (("vig.example", 200), ("gpu.example:80", 200), ("localhost", 200), ("evil.example", 421)):
        assert status_of(client, Host=host) == status
    for wrong in ("https://vig.example", "vig.example:8000", "a b"):
        with pytest.raises(ValidationError, match="hosts"):
            AppConfig(model="m", hosts=wrong)


def test_a_key_stands_for_the_host_unless_hosts_are_listed(serving: Serving) -> None:
    """A page that was made to lead here has no key, and load balancers have names that this machine can't know."""
    client, _ = serving(keys="k")
    assert status_of(client, "k", Host="balancer.example") == 200
    client, _ = serving(keys="k", hosts="vig.example")
    assert status_of(client, "k", Host="balancer.example") == 421
    assert status_of(client, "k", Host="vig.example") == 200


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Forwarded-Host", "X-Real-IP", "Via"])
def test_what_came_through_a_proxy_is_not_this_machines(serving: Serving, header: str) -> None:
    client, _ = serving()
    answer = client.post("/v1/score", json=EXAMPLE_QA, headers={header: "127.0.0.1"})
    assert answer.status_code == 403
    assert "proxy" in answer.json()["error"]["message"]
    for options in ({"open": True}, {"keys": "k"}):
        client, _ = serving(**options)
        assert status_of(client, "k", **{header: "127.0.0.1"}) == 200
