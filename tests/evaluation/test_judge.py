"""A judge behind a real HTTP server on this machine: asked, kept, asked again, down, and never told of the key."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation import published_b as published
from tests.evaluation.judge_server import JudgeServer, answer, cut, error, judge_server, silent
from vig_ray.errors import StageError
from vig_ray.evaluation.judge import KEY, Judge, JudgeError, JudgeOptions, JudgePrompt
from vig_ray.evaluation.question import Answer
from vig_ray.evaluation.task import Given
from vig_ray.evaluation.tasks import task

SECRET = "sk-not-to-be-seen-0123456789"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv(KEY, SECRET)
    with judge_server() as judge:
        yield judge


def asking(server: JudgeServer, cache: Path, **options: Any) -> Judge:
    return Judge(JudgeOptions(server.url, "gpt", str(cache), **{"backoff_s": 0.01, "timeout_s": 5.0} | options))


def number(reply: str) -> float | None:
    return float(reply) if reply.replace(".", "").isdecimal() else None


def test_a_reply_is_kept_and_not_asked_for_again(server: JudgeServer, tmp_path: Path) -> None:
    judge = asking(server, tmp_path)
    prompt = JudgePrompt("How good is Köln\ud800?", system="Be brief.", temperature=0.2, max_tokens=7)
    assert judge.verdict(prompt, number) == (1.0, "1.0")
    body = server.asked[0]
    assert body == {
        "model": "gpt",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How good is Köln\ud800?"},
        ],
        "temperature": 0.2,
        "max_tokens": 7,
    }
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    server.reply = lambda body: "0.5"
    assert asking(server, tmp_path).verdict(prompt, number) == (1.0, "1.0")
    assert len(server.asked) == 1
    # Another prompt, another temperature, another judge: other requests.
    assert judge.verdict(prompt._replace(text="And now?"), number)[0] == 0.5
    assert judge.verdict(prompt._replace(temperature=0.0), number)[0] == 0.5
    other = Judge(JudgeOptions(server.url, "other", str(tmp_path)))
    assert other.verdict(prompt, number)[0] == 0.5
    assert len(server.asked) == 4
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) == 4
    assert not any(SECRET in path.read_text() for path in kept)
    kept[0].write_text("half a fi")  # a damaged file costs a request, and nothing else
    for each in (prompt, prompt._replace(text="And now?"), prompt._replace(temperature=0.0)):
        judge.verdict(each, number)
    other.verdict(prompt, number)
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    "faults",
    [
        [error(429, "slow down", Retry_After="0")],
        [error(429), error(500), error(503, Retry_After="Mon, 01 Jan 2024 00:00:00 GMT"), error(502)],
        [answer(200, b"<html>sorry</html>"), answer(200, {"choices": []})],
        [cut],
    ],
)
def test_what_fails_in_passing_is_tried_again(
    server: JudgeServer, tmp_path: Path, faults: list[Callable[[Any], None]]
) -> None:
    server.faults = list(faults)
    assert asking(server, tmp_path).verdict(JudgePrompt("?"), number) == (1.0, "1.0")
    assert len(server.asked) == len(faults) + 1
    assert all(body == server.asked[0] for body in server.asked)


def test_a_judge_that_is_silent_is_given_up_on_and_asked_again(server: JudgeServer, tmp_path: Path) -> None:
    server.faults = [silent]
    assert asking(server, tmp_path, timeout_s=0.3).verdict(JudgePrompt("?"), number)[0] == 1.0
    assert len(server.asked) == 2


def test_replies_that_cannot_be_read(server: JudgeServer, tmp_path: Path) -> None:
    said = iter(["I'd say a lot", None, "0.7"])
    server.reply = lambda body: next(said)
    judge = asking(server, tmp_path)
    assert judge.verdict(JudgePrompt("?"), number) == (0.7, "0.7")
    assert [body["temperature"] for body in server.asked] == [0.0, 0.5, 1.0]
    server.reply = lambda body: "No\nidea."
    with pytest.raises(JudgeError, match=r"^no verdict in 3 replies of the judge, the last: No idea\.$") as caught:
        judge.verdict(JudgePrompt("Well?"), number)
    assert (caught.value.asked, caught.value.replied) == ("Well?", "No\nidea.")
    assert judge.verdict(JudgePrompt("?"), number) == (0.7, "0.7")  # kept, and so are not the two before it
    assert [body["temperature"] for body in server.asked[6:]] == [0.0, 0.5]


def test_one_request_that_is_refused_is_one_row(server: JudgeServer, tmp_path: Path) -> None:
    judge = asking(server, tmp_path)
    server.faults = [error(400, f"Too long\nfor {SECRET}")]
    with pytest.raises(JudgeError, match=r"^the judge refused the request: HTTP 400, Too long for \*\*\*$") as caught:
        judge.verdict(JudgePrompt("long"), number)
    assert caught.value.asked == "long"
    assert judge.verdict(JudgePrompt("short"), number)[0] == 1.0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (error(401, "Incorrect API key"), rf"HTTP 401, Incorrect API key; the environment variable {KEY} holds"),
        (error(404, "no model gpt"), r"HTTP 404, no model gpt; expected an OpenAI-compatible API that has this model$"),
        (answer(302, b"", Location="http://elsewhere/"), r"redirects to http://elsewhere/, where the key isn't sent"),
        (error(400, "bad"), r"HTTP 400, bad$"),
    ],
)
def test_the_check_before_a_run_says_in_one_line_what_is_wrong(
    server: JudgeServer, tmp_path: Path, fault: Callable[[Any], None], message: str
) -> None:
    server.faults = [fault]
    with pytest.raises(StageError, match=message) as caught:
        asking(server, tmp_path).check()
    assert str(caught.value).startswith(f"--judge {server.url}, gpt: ")
    assert "\n" not in str(caught.value)
    assert len(server.asked) == 1
    asking(server, tmp_path).check()


def test_a_judge_that_is_down_ends_the_run_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with judge_server() as server:
        judge = asking(server, tmp_path, tries=3)
        assert judge.verdict(JudgePrompt("before"), number)[0] == 1.0
    with pytest.raises(StageError, match=r"gives no answer: .*refused; what it has said is kept in .* from there$"):
        judge.verdict(JudgePrompt("after"), number)
    assert judge.verdict(JudgePrompt("before"), number)[0] == 1.0
    # Many threads: once one has given up, no other goes on trying.
    judge = asking(server, tmp_path, tries=5, backoff_s=0.02)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(judge.verdict, JudgePrompt(str(n)), number) for n in range(40)]
        errors = [each.exception() for each in asked]
    assert all(isinstance(each, StageError) for each in errors)


def test_a_request_that_always_fails_is_one_row_while_others_are_answered(server: JudgeServer, tmp_path: Path) -> None:
    judge = asking(server, tmp_path, tries=4, timeout_s=60.0)
    tries, good = 0, 0

    def reply(body: dict[str, Any]) -> str:
        nonlocal tries
        if body["messages"][-1]["content"] == "bad":
            tries, before = tries + 1, good
            while tries == 4 and good == before:  # its last try ends after another was answered
                time.sleep(0.01)
            raise ConnectionResetError  # the server says nothing to this one
        return "0.25"

    server.reply = reply
    with ThreadPoolExecutor(1) as pool:
        bad = pool.submit(judge.verdict, JudgePrompt("bad"), number)
        while not bad.done():
            assert judge.verdict(JudgePrompt(f"good {good}"), number)[0] == 0.25
            good += 1
        with pytest.raises(JudgeError, match=r"^the judge refused the request: .+, 4 times$"):
            bad.result()
    assert judge.verdict(JudgePrompt("last"), number)[0] == 0.25


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", r"--judge localhost:8000: takes the address of an OpenAI-compatible API"),
        ("ftp://host/v1", r"takes the address"),
        ("https://host/v1?key=secret", r"^--judge: what follows \? in an address would be recorded; leave it out"),
        ("http://me:secret@host/v1", r"^--judge: an address with a name or password in it would be recorded; OPEN"),
    ],
)
def test_an_address_that_is_none(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=message):
        Judge(JudgeOptions(url, "m", str(tmp_path)))


def test_addresses_as_people_give_them(server: JudgeServer, tmp_path: Path) -> None:
    for url in (server.url + "/", server.url + "/chat/completions"):
        assert Judge(JudgeOptions(url, "m", str(tmp_path))).verdict(JudgePrompt("?"), number)[0] == 1.0
    assert len(server.asked) == 1  # the same request


def test_judged_tasks_from_the_files_to_marks(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIG_RAY_CACHE", str(tmp_path / "remembered"))
    published.mmhal(tmp_path / "data", 4)
    options = {"judge": server.url, "judge_model": "gpt"}
    given = Given(str(tmp_path / "data"), None, options)
    made: Any = pickle.loads(pickle.dumps(task("mmhal")))
    questions = list(made.read(given))
    with pytest.raises(StageError, match=r"--tasks mmhal: a judge marks its answers; --judge URL --judge-model NAME"):
        made.mark(questions[0], Answer("a bus"))
    made.check(given)
    made.begin(given)
    server.faults = [error(500, Retry_After="0"), error(429, Retry_After="0")]
    server.reply = lambda body: "Fine. Rating: 2" if "a red bus" in body["messages"][-1]["content"] else "Rating: 5"
    marks = [made.mark(each, Answer(text)) for each, text in zip(questions, ["a red bus", "b"] * 2, strict=True)]
    assert [dict(each) for each in marks[:2]] == [
        {"score": 2 / 6, "rating": 2, "hallucination": 1},
        {"score": 5 / 6, "rating": 5, "hallucination": 0},
    ]
    assert marks[0].asked == server.prompts[-4]
    assert "a red bus" in marks[0].asked
    assert (marks[0].replied, marks[1].replied) == ("Fine. Rating: 2", "Rating: 5")
    assert len(list((tmp_path / "remembered/judge").rglob("*.json"))) == 4
    for fault in ({}, {"judge": server.url}):
        with pytest.raises(StageError, match="--judge"):
            task("mmhal").check(Given(given.data, None, fault))  # type: ignore[attr-defined]
    everything = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert SECRET not in everything + repr(made.__dict__) + os.fspath(tmp_path)
