"""Gates: what policies decide, what is counted of it, and what is wrong with a file of them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serve_app.gates import read_policies
from serve_app.keys import hash_of
from serve_app.schema import EXAMPLE_QA
from tests.serving.conftest import LocalBackend, base64_of, png
from vig_ray.errors import StageError

Serving = Callable[..., tuple[TestClient, LocalBackend]]

POLICIES = """
all: {least_gain: -100}
none: {least_gain: 100, action: gate}
watched: {least_gain: 100, action: count}
tokens: {tau: 0.2, least_active: 0.5, least_gain: -100}
"""


@pytest.fixture
def policies(tmp_path: Path) -> str:
    path = tmp_path / "policies.yaml"
    path.write_text(POLICIES)
    return str(path)


def scored(client: TestClient, **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/score", json=EXAMPLE_QA | more)
    assert answer.status_code == 200, answer.text
    score: dict[str, Any] = answer.json()
    return score


def test_a_policy_decides_and_says_why(serving: Serving, policies: str) -> None:
    client, backend = serving(policies=policies)
    score = scored(client)
    assert (score["decision"], score["kept"]) == (None, None)
    kept = scored(client, policy="all")
    assert kept["decision"] == {
        "policy": "all", "verdict": "kept", "reason": f"vig {kept['vig']:.3g} reaches -100", "dry_run": False,
        "would": None,
    }  # fmt: skip
    assert kept["kept"] is True
    dropped = scored(client, policy="none")
    assert dropped["decision"]["verdict"] == "dropped"
    assert dropped["decision"]["reason"] == f"vig {dropped['vig']:.3g} is below 100"
    assert dropped["kept"] is False
    assert backend.verdicts == [("all", "", "kept"), ("none", "", "dropped")]


def test_a_dry_run_keeps_every_sample_and_says_and_counts_what_would_have_been(serving: Serving, policies: str) -> None:
    client, backend = serving(policies=policies)
    score = scored(client, policy="watched")
    decision = score["decision"]
    assert (decision["verdict"], decision["would"], decision["dry_run"], score["kept"]) == (
        "kept", "dropped", True, True,
    )  # fmt: skip
    assert "counted only" in decision["reason"]
    assert "is below 100" in decision["reason"]
    assert backend.verdicts == [("watched", "", "dropped")]


def test_the_share_of_active_tokens_is_that_of_the_answers_gains(serving: Serving, tmp_path: Path) -> None:
    client, _ = serving()
    image = base64_of(png())  # one that a blur changes
    gains = [token["gain"] for token in scored(client, image=image)["tokens"]]
    tau = sorted(gains)[len(gains) // 2]  # so that some reach it
    share = sum(gain >= tau for gain in gains) / len(gains)
    path = tmp_path / "policies.yaml"
    path.write_text(f"""
just: {{tau: {tau!r}, least_active: {share!r}}}
missed: {{tau: {tau!r}, least_active: {share + 1e-6!r}}}
both: {{tau: {tau!r}, least_active: {share + 1e-6!r}, least_gain: 100}}
""")
    client, _ = serving(policies=str(path), tau=-100.0)
    for name, verdict in (("just", "kept"), ("missed", "dropped"), ("both", "dropped")):
        score = scored(client, image=image, policy=name)
        assert score["decision"]["verdict"] == verdict
        assert score["tau"] == tau
        assert score["active_tokens"] == round(share * len(gains))
    assert " and " in score["decision"]["reason"]
    missed = scored(client, image=image, policy="missed")["decision"]["reason"]
    said, least = (float(missed.split(mark)[1].split()[0]) for mark in ("nats, ", "below "))
    assert said < least  # with enough digits to tell them apart


def test_a_request_names_a_policy_of_the_server(serving: Serving, policies: str) -> None:
    client, backend = serving(policies=policies)
    answer = client.post("/v1/score", json=EXAMPLE_QA | {"policy": "strict"})
    assert answer.status_code == 422
    assert "there are all, none, watched, tokens" in answer.json()["error"]["message"]
    answer = client.post("/v1/score", json=EXAMPLE_QA | {"policy": "all", "tau": 0.1})
    assert answer.status_code == 422
    assert "not both" in answer.json()["error"]["message"]
    items = [EXAMPLE_QA | {"policy": name} for name in ("none", "strict", "all")]
    results = client.post("/v1/score/batch", json={"items": items}).json()["results"]
    assert results[0]["result"]["decision"]["verdict"] == "dropped"
    assert results[1]["error"]["kind"] == "Policy"
    assert results[2]["result"]["decision"]["verdict"] == "kept"
    form = {"question": "What color?", "answer": "Red.", "policy": "none"}
    image = base64.b64decode(EXAMPLE_QA["image"])
    answer = client.post("/v1/score", data=form, files={"image": ("a.png", image, "image/png")})
    assert answer.json()["decision"]["policy"] == "none"
    client, _ = serving()
    answer = client.post("/v1/score", json=EXAMPLE_QA | {"policy": "all"})
    assert (answer.status_code, "--policies" in answer.text) == (422, True)
    assert ("all", "", "kept") in backend.verdicts


def test_a_keys_policy_is_that_of_its_requests(serving: Serving, policies: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"keys: [{{name: team-a, sha256: '{hash_of(b'k')}', policy: watched}}]")
    client, backend = serving(policies=policies, keys_file=str(keys))
    client.headers["Authorization"] = "Bearer k"
    assert scored(client)["decision"]["policy"] == "watched"
    assert scored(client, policy="none")["decision"]["policy"] == "none"
    assert backend.verdicts == [("watched", "team-a", "dropped"), ("none", "team-a", "dropped")]
    answer = client.post("/v1/score", json=EXAMPLE_QA | {"tau": 0.1})
    assert answer.status_code == 422
    assert "leave tau out" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "takes policies by name"),
        ("- a", "takes policies by name"),
        ("a: 1", "policy 'a': takes tau, least_gain, least_active, action"),
        ("a: {}", "policy 'a': decides nothing; give least_gain or least_active"),
        ("a: {tau: 0.1}", "policy 'a': decides nothing"),
        ("a: {least_active: 0.5}", "policy 'a': least_active counts the tokens that reach tau; give tau too"),
        ("a: {tau: 0, least_active: 1.5}", "policy 'a': least_active: input should be less than or equal to 1"),
        ("a: {least_gain: high}", "policy 'a': least_gain: input should be a valid number"),
        ("a: {least_gain: .nan}", "policy 'a': least_gain: input should be a finite number"),
        ("a: {least_gain: true}", "policy 'a': least_gain: input should be a valid number"),
        ("a: {least_gain: 1, action: drop}", "policy 'a': action: input should be 'gate' or 'count'"),
        ("a: {least_vig: 1}", "policy 'a': least_vig: no such field; there are tau, least_gain, least_active, action"),
        ("a: {least_gain: 1}\na: {least_gain: 2}", "the mapping at line 1 has a name twice"),
        ("a: {least_gain: 1", "not YAML at line 1"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "policies.yaml"
    path.write_text(text)
    with pytest.raises(StageError) as error:
        read_policies(str(path))
    assert str(error.value).startswith(f"--policies {path}: {message}")
    assert "\n" not in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="can't be read: No such file"):
        read_policies(str(tmp_path / "nowhere"))
