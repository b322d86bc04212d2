"""Keys: both forms of their file, attacks on them, and a file that changes under a server that runs."""

from __future__ import annotations

import asyncio
import datetime
import hmac
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serve_app import key_ring
from serve_app.errors import RequestError
from serve_app.key_ring import KeyRing
from serve_app.keys import Key, hash_of, plain_keys, read_keys
from serve_app.schema import EXAMPLE_QA
from tests.serving.conftest import LocalBackend
from tests.serving.http_server import Served
from vig_ray.errors import StageError

Serving = Callable[..., tuple[TestClient, LocalBackend]]

KEY = "s3cret-Key-of-team-a"


def sha256sum(key: str) -> str:
    """By coreutils, as docs/serving.md says."""
    return subprocess.run(["sha256sum"], input=key.encode(), capture_output=True, check=True).stdout.decode()[:64]


def entry(name: str, key: str, **more: object) -> str:
    fields = {"name": name, "sha256": f"'{sha256sum(key)}'"} | more
    return "- {" + ", ".join(f"{field}: {value}" for field, value in fields.items()) + "}"


def file_of(*entries: str, default: str = "") -> str:
    head = f"default: {default}\n" if default else ""
    return "\n".join([f"{head}keys:", *entries]) if entries else f"{head}keys: []"


def status(client: TestClient, *headers: tuple[str, Any], path: str = "/v1/model") -> int:
    return client.get(path, headers=list(headers)).status_code


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(file_of(entry("team-a", KEY), entry("team-b", "schlüssel-à")))
    return path


def test_the_right_key_in_every_spelling_of_the_header(serving: Serving, keys_file: Path) -> None:
    client, _ = serving(keys_file=str(keys_file))
    for value in (
        f"Bearer {KEY}",
        f"bearer {KEY}",
        f"BEARER   {KEY}",
        f"Bearer {KEY}\t ",
        "Bearer schlüssel-à".encode(),
    ):
        assert status(client, ("Authorization", value)) == 200, value


@pytest.mark.parametrize(
    "value",
    [
        "", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer{KEY}", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x",
        f"Bearer {KEY.upper()}", f"Bearer {KEY.lower()}", f"Bearer {KEY} {KEY}", f"Bearer '{KEY}'", f"Bearer {KEY},",
        f"Bearer Bearer {KEY}", f"Bearer {sha256sum(KEY)}", "Bearer team-a", "Bearer *", "Bearer " + "x" * 10_000,
        f"Bearer \u00a0{KEY}".encode(), f"Bearer {KEY}\u0085".encode("latin-1"), f"Bearer {KEY}\u200b".encode(),
        f"Bearer {KEY.replace('e', 'е')}".encode(),  # a Cyrillic one
        b"Bearer schlu\xcc\x88ssel-a\xcc\x80",  # decomposed
        b"Bearer \xff\xfe", f"Bearer {KEY}".encode("utf-16-le").replace(b"\0", b"\xc0\x80"),
    ],
)  # fmt: skip
def test_no_other_key_is_taken(serving: Serving, keys_file: Path, value: Any) -> None:
    client, _ = serving(keys_file=str(keys_file))
    answer = client.get("/v1/model", headers=[("Authorization", value)])
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert KEY not in answer.text


def test_a_key_is_its_bytes_in_utf_8() -> None:
    ring = KeyRing(plain_keys("schlüssel-à"))
    assert ring.find("schlüssel-à".encode()).sha256 == sha256sum("schlüssel-à")
    for given in ("schlüssel-à".encode("latin-1"), "schlüssel-à".encode("utf-16"), b"", b"\0"):
        with pytest.raises(RequestError):
            ring.find(given)


def test_a_key_elsewhere_than_in_its_header_is_none(serving: Serving, keys_file: Path) -> None:
    client, _ = serving(keys_file=str(keys_file))
    for path in (f"/v1/model?key={KEY}", f"/v1/model?access_token={KEY}", f"/v1/model?Authorization=Bearer%20{KEY}"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert KEY not in answer.text
    for header in ("X-Api-Key", "Proxy-Authorization", "Cookie"):
        assert status(client, (header, f"Bearer {KEY}")) == 401
    answer = client.post("/v1/score", json=EXAMPLE_QA | {"key": KEY})
    assert answer.status_code == 401


def test_two_authorization_headers_are_refused_whichever_is_right(engine: Any, demo_formatter: Any) -> None:
    """Through a real HTTP server, over a bare socket: clients join such headers."""
    served = Served(engine, demo_formatter, keys=KEY)
    try:
        for keys, expected in (
            ([KEY], b"200"),
            ([KEY, "wrong"], b"401"),
            (["wrong", KEY], b"401"),
            ([KEY, KEY], b"401"),
        ):
            with socket.create_connection(("127.0.0.1", served.port)) as connection:
                lines = [f"Authorization: Bearer {key}" for key in keys]
                request = ["GET /v1/model HTTP/1.1", "Host: localhost", "Connection: close", *lines, "", ""]
                connection.sendall("\r\n".join(request).encode())
                assert connection.recv(65536).split()[1] == expected, keys
    finally:
        served.stop()


def test_every_hash_is_compared_whichever_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the time tells nothing of which key came close, or of how many there are before it."""
    compared: list[str] = []

    def compare(given: str, known: str) -> bool:
        compared.append(known)
        return hmac.compare_digest(given, known)

    monkeypatch.setattr(key_ring, "hmac", type("Hmac", (), {"compare_digest": staticmethod(compare)}))
    keys = plain_keys("\n".join(f"key {number}" for number in range(50)))
    ring = KeyRing(keys)
    for given in (b"key 0", b"key 49", b"key 25"):
        compared.clear()
        assert ring.find(given).sha256 == sha256sum(given.decode())
        assert compared == [key.sha256 for key in keys]
    compared.clear()
    with pytest.raises(RequestError):
        ring.find(b"key 50")
    assert len(compared) == 50


def test_the_plain_form(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes("\ufeff# ours\nfirst key\n\n second:key \nfirst key\n".encode())
    keys = read_keys(str(path), ())
    assert [key.sha256 for key in keys] == [sha256sum("first key"), sha256sum("second:key")]
    assert keys[0].name == f"key-{sha256sum('first key')[:8]}"
    path.write_text("# none yet\n")
    with pytest.raises(StageError, match="holds no key"):
        read_keys(str(path), ())


def test_the_defaults_are_for_keys_that_say_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "keys"  # YAML by what is in it
    path.write_text(
        file_of(
            entry("a", "a", concurrency=2),
            entry("b", "b", requests_per_second="null", expires="2027-01-31"),
            entry("c", "c", expires="2027-01-31T18:00:00+02:00"),
            default="{requests_per_second: 5, concurrency: 8, policy: strict}",
        )
    )
    a, b, c = read_keys(str(path), ("strict",))
    assert (a.requests_per_second, a.concurrency, a.policy, a.samples_per_day) == (5, 2, "strict", None)
    assert (b.requests_per_second, b.concurrency) == (None, 8)
    assert b.expires == datetime.datetime(2027, 1, 31, tzinfo=datetime.UTC)
    assert c.expires == datetime.datetime(2027, 1, 31, 16, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keys: {a: b}", "takes a list under `keys:`"),
        ("keys: []\nkey: []", "takes `keys:` and `default:` and nothing else"),
        (f"keys: [{KEY}]", "key 1: takes name and sha256; takes the SHA-256"),
        (f"keys: [{{name: a, sha256: {KEY}}}]", "key 1: sha256: takes the SHA-256 of a key, 64 hex digits"),
        (f"keys: [{{name: a, key: {KEY}}}]", "key 1: "),
        (f"keys: [{{{KEY}: a}}]", "key 1: "),
        (f"keys: [{{name: a, sha256: {'1' * 64}}}]", "key 1: sha256: takes the SHA-256 of a key, 64 hex digits"),
        (file_of(entry("'a b'", "k")), "key 1: name: takes up to 64 letters"),
        (file_of("- {sha256: '" + "0" * 64 + "'}"), "key 1: name: missing"),
        (file_of(entry("a", "k"), entry("a", "l")), "key 2 'a': name: key 'a' has the same"),
        (file_of(entry("a", "k"), entry("b", "k")), "key 2 'b': sha256: key 'a' has the same"),
        (file_of(entry("a", "k", concurrency=0)), "key 1: concurrency: input should be greater than"),
        (file_of(entry("a", "k", concurrency=1.5)), "key 1: concurrency: input should be a valid integer"),
        (file_of(entry("a", "k", requests_per_second=".inf")), "key 1: requests_per_second: input should be a finite"),
        (file_of(entry("a", "k", requests_per_minute=1)), "key 1: requests_per_minute: no such field; there are req"),
        (file_of(entry("a", "k", expires="2027-01-31T18:00:00")), "key 1: expires: takes a date, or a time and"),
        (file_of(entry("a", "k", expires="20270131")), "key 1: expires: takes a date"),
        (file_of(entry("a", "k", expires="soon")), "key 1: expires: takes a date"),
        (file_of(entry("a", "k", expires="2027-02-31")), "holds a date that there isn't"),
        (file_of(entry("a", "k", policy="strict")), "key 'a': policy: there is no policy of this name; there are l"),
        (file_of(entry("a", "k"), default="{samples_per_day: many}"), "default: samples_per_day: input should be"),
        (file_of(entry("a", "k"), default="{name: a}"), "default: name: no such field"),
        (f"keys:\n- name: a\n  sha256: *{KEY}", "not YAML at line 3"),
        (f"keys: [\n{KEY}", "not YAML at line"),
        ("keys: []\nkeys: []", "the mapping at line 1 has a name twice"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_in_one_line_without_a_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(StageError) as error:
        read_keys(str(path), ("loose",))
    assert str(error.value).startswith(f"--keys {path}: {message}")
    assert "\n" not in str(error.value)
    assert KEY not in str(error.value)


def test_plain_keys_in_a_file_that_is_named_as_yaml_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.yml"
    path.write_text(f"{KEY}\n")
    with pytest.raises(StageError, match="takes a list under `keys:`"):
        read_keys(str(path), ())


def test_a_key_expires_on_time() -> None:
    moment = datetime.datetime(2027, 1, 31, 18, tzinfo=datetime.UTC)
    now = [moment - datetime.timedelta(microseconds=1)]
    ring = KeyRing([Key(name="a", sha256=hash_of(b"k"), expires=moment)], now=lambda: now[0])
    assert ring.find(b"k").name == "a"
    now[0] = moment
    with pytest.raises(RequestError, match="the key 'a' has expired") as refusal:
        ring.find(b"k")
    assert refusal.value.status == 401


class Rotated:
    """A ring over a file that changes, with a clock that the test sets."""

    def __init__(self, path: Path) -> None:
        self.path, self.time = path, 0.0
        self.ring = KeyRing(read_keys(str(path), ()), path=str(path), clock=lambda: self.time)

    def taken(self, *keys: str) -> list[str]:
        """Which of these keys are taken."""
        asyncio.run(self.ring.refresh())
        found = []
        for key in keys:
            try:
                self.ring.find(key.encode())
            except RequestError:
                continue
            found.append(key)
        return found


def test_keys_are_rotated_without_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(file_of(entry("a", "old"), entry("b", "other")))
    rotated = Rotated(path)
    assert rotated.taken("old", "new", "other") == ["old", "other"]
    times = os.stat(path)
    new = tmp_path / "new"
    new.write_text(file_of(entry("a", "new"), entry("b", "other")))
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert new.stat().st_size == times.st_size  # of the same size and time, and yet another file
    new.rename(path)
    rotated.time = 0.5
    assert rotated.taken("old", "new", "other") == ["old", "other"]  # it was looked at half a second ago
    rotated.time = 1.0
    assert rotated.taken("old", "new", "other") == ["new", "other"]
    path.write_text(file_of())
    rotated.time = 2.0
    assert rotated.taken("old", "new", "other") == []  # and not: without keys, so for everyone


@pytest.mark.parametrize("spoil", ["unlink", "empty", "half", "folder", "bytes"])
def test_a_wrong_file_keeps_the_keys_and_is_logged_once(
    tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.yaml"
    text = file_of(entry("a", KEY))
    path.write_text(text)
    rotated = Rotated(path)
    path.unlink()
    if spoil == "folder":
        path.mkdir()
    elif spoil != "unlink":
        path.write_bytes({"empty": b"", "half": text[:-10].encode(), "bytes": b"\xff\xfe" * 100}[spoil])
    with caplog.at_level(logging.ERROR, "vig_ray.serve"):
        for second in range(5):
            rotated.time = second
            assert rotated.taken(KEY, "new") == [KEY]
    (record,) = caplog.records
    assert f"--keys {path}" in record.getMessage()
    assert "the keys from before stay" in record.getMessage()
    assert KEY not in record.getMessage()
    if spoil == "folder":
        path.rmdir()
    path.write_text(file_of(entry("a", "new")))
    rotated.time = 5
    assert rotated.taken(KEY, "new") == ["new"]


def test_a_file_system_that_hangs_holds_up_no_request_for_longer_than_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    path.write_text(KEY)
    rotated = Rotated(path)
    gate = key_ring.Future[None]()
    monkeypatch.setattr(key_ring, "read_keys", lambda *_: gate.result() or plain_keys("new"))
    monkeypatch.setattr(key_ring, "_EVERY", 0.05)
    assert rotated.taken(KEY, "new") == [KEY]  # waits
    rotated.time = 60
    assert rotated.taken(KEY, "new") == [KEY]  # doesn't, and begins no second look
    gate.set_result(None)
    rotated.ring._look.result()  # type: ignore[union-attr]
    assert rotated.taken(KEY, "new") == ["new"]


def test_a_removed_key_is_refused_by_the_server_that_runs(serving: Serving, keys_file: Path) -> None:
    client, _ = serving(keys_file=str(keys_file))
    assert status(client, ("Authorization", f"Bearer {KEY}")) == 200
    new = keys_file.with_name("new")
    new.write_text(file_of(entry("team-a", "another")))
    new.rename(keys_file)
    time.sleep(1.0)  # what the server leaves between two looks
    assert status(client, ("Authorization", f"Bearer {KEY}")) == 401
    assert status(client, ("Authorization", "Bearer another")) == 200
