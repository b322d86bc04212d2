"""Requests in every form, what they are answered, and what is turned away."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from serve_app import api
from serve_app.schema import EXAMPLE_MESSAGES, EXAMPLE_QA
from tests.end_to_end.server import wait_until
from tests.serving.conftest import LocalBackend, base64_of, png
from vig_ray.dataset.images import decode_image
from vig_ray.dataset.schema import Turn
from vig_ray.model.prompt import PromptImage
from vig_ray.scoring.prepare import make_passes, prepare
from vig_ray.scoring.score import run_passes

Serving = Callable[..., tuple[TestClient, LocalBackend]]

QUESTION, ANSWER = "What is on the left?", "A red circle is on the left."


def plain(**more: Any) -> dict[str, Any]:
    return {"question": QUESTION, "answer": ANSWER, "image": base64_of(png())} | more


def expected(engine: Any, formatter: Any, data: bytes, turns: list[Turn]) -> tuple[np.ndarray, np.ndarray]:
    image = PromptImage("x", lambda: decode_image(data), formatter.preprocess)
    prepared = prepare(formatter, make_passes(("clean", "blur"), formatter), turns, [image])
    ((clean, reference),) = run_passes(engine, [prepared.prompts])  # type: ignore[list-item]
    return clean, reference


def test_every_form_of_the_same_sample_has_the_batch_jobs_numbers(
    serving: Serving, engine: Any, demo_formatter: Any
) -> None:
    client, _ = serving()
    turns = [Turn("user", f"<image>\n{QUESTION}"), Turn("assistant", ANSWER)]
    clean, reference = expected(engine, demo_formatter, png(), turns)
    uri = f"data:image/png;base64,{base64_of(png())}"
    reply = {"role": "assistant", "content": ANSWER}

    def asked(*content: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": list(content)}, reply]} | more

    text = {"type": "text", "text": QUESTION}
    forms: dict[str, dict[str, Any]] = {
        "plain": plain(),
        "data uri": plain(image=uri),
        "openai": asked({"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": f"\n{QUESTION}"}),
        "image_url as text": asked({"type": "image_url", "image_url": uri}, text),
        "trl": asked({"type": "image"}, text, images=[base64_of(png())]),
        "trl, image in the part": asked(text, {"type": "image", "image": base64_of(png())}),
        "marks": {"messages": [{"role": "user", "content": f"<image>\n{QUESTION}"}, reply], "images": [uri]},
    }
    answers = {name: client.post("/v1/score", json=form) for name, form in forms.items()}
    files = {"image": ("a.png", png(), "image/png")}
    answers["upload"] = client.post("/v1/score", files=files, data={"question": QUESTION, "answer": ANSWER})
    sent = json.dumps([{"role": "user", "content": f"<image>{QUESTION}"}, reply])
    answers["upload of messages"] = client.post("/v1/score", files=files, data={"messages": sent})
    for name, answer in answers.items():
        assert answer.status_code == 200, (name, answer.text)
        score = answer.json()
        assert [token["clean_logprob"] for token in score["tokens"]] == pytest.approx(clean.tolist(), abs=1e-5), name
        assert [token["reference_logprob"] for token in score["tokens"]] == pytest.approx(reference.tolist(), abs=1e-5)
        gains = [token["gain"] for token in score["tokens"]]
        assert gains == pytest.approx((clean.astype(float) - reference).tolist(), abs=2e-5)
        assert score["vig"] == pytest.approx(float(np.mean(gains)), abs=1e-5)
        assert score["clean_perplexity"] == pytest.approx(float(np.exp(-clean.mean())), rel=1e-4)
        assert score["num_answer_tokens"] == len(clean)
        assert score["reference"]["kernels"] == [101]


def test_tokens_say_where_in_the_answer_they_are(serving: Serving) -> None:
    client, _ = serving()
    answer = "Ein roter Kreis — naïve \U0001f600."
    tokens = client.post("/v1/score", json=plain(answer=answer)).json()["tokens"]
    assert tokens[-1]["text"] == "</s>"
    assert (tokens[-1]["start"], tokens[-1]["end"]) == (len(answer), len(answer))
    covered = set()
    for token in tokens[:-1]:
        assert token["text"] == answer[token["start"] : token["end"]]
        covered.update(range(token["start"], token["end"]))
    assert {index for index, char in enumerate(answer) if not char.isspace()} <= covered


def test_tau_says_what_is_kept(serving: Serving) -> None:
    client, _ = serving(tau=0.0)
    by_default = client.post("/v1/score", json=plain()).json()
    assert by_default["tau"] == 0.0
    for tau in (-100.0, 0.0, by_default["vig"], 100.0):
        score = client.post("/v1/score", json=plain(tau=tau)).json()
        assert score["kept"] == (score["vig"] >= tau)
        assert [token["active"] for token in score["tokens"]] == [token["gain"] >= tau for token in score["tokens"]]
        assert score["active_tokens"] == sum(token["active"] for token in score["tokens"])
    client, _ = serving()
    score = client.post("/v1/score", json=plain()).json()
    assert (score["tau"], score["kept"], score["active_tokens"], score["tokens"][0]["active"]) == (None,) * 4


def test_a_batch_answers_each_item_in_its_place(serving: Serving) -> None:
    client, _ = serving()
    items = [plain(), {"question": "?"}, plain(image="not an image"), 7, plain(answer="Another."), EXAMPLE_MESSAGES]
    results = client.post("/v1/score/batch", json={"items": items}).json()["results"]
    assert [result["error"] is None for result in results] == [True, False, False, False, True, True]
    # float32's rounding is another beside other samples.
    assert results[0]["result"]["vig"] == pytest.approx(client.post("/v1/score", json=plain()).json()["vig"], abs=1e-5)
    assert "'answer' is missing" in results[1]["error"]["message"]
    assert results[2]["error"]["kind"] == "BadImage"


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"answer": None}, 422, "'answer' is missing"),
        ({"answer": ""}, 422, "no assistant turn with an answer"),
        ({"answer": "an <image>"}, 422, "2 <image> in the conversation, 1 images"),
        ({"image": "%%%"}, 422, "not base64"),
        ({"image": ""}, 422, "0 bytes"),
        ({"image": base64_of(b"GIF89a nonsense")}, 422, "identify|not an image|truncated|cannot"),
        ({"image": "data:image/png,abc"}, 422, "must be base64"),
        ({"image": "https://example.org/a.png"}, 422, "images by URL are not taken"),
        ({"image": "file:///etc/passwd"}, 422, "not base64"),
        ({"image": "/etc/passwd"}, 422, "."),
        ({"images": ["a"]}, 422, "'images' goes with 'messages'"),
        ({"messages": []}, 422, "not both"),
        ({"tau": "high"}, 422, "tau"),
        ({"surprise": 1}, 422, "surprise"),
        ({"answer": "word " * 40}, 422, "answer tokens, and the limit is 30"),
        ({"image": base64_of(png(side=300))}, 413, "pixels, and 10000 are allowed"),
        ({"question": "x " * 3000}, 422, "tokens, and the limit is"),
        ({"question": "x" * 3_000_000}, 413, "longer than 2 MiB"),
    ],
)
def test_errors_say_what_is_wrong(serving: Serving, change: dict[str, Any], status: int, message: str) -> None:
    import re

    client, backend = serving(max_answer_tokens=30, max_image_pixels=10_000, max_body_mb=2)
    answer = client.post("/v1/score", json={key: value for key, value in plain(**change).items() if value is not None})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert re.search(message, error["message"]), error
    assert "Traceback" not in answer.text
    assert os.getcwd() not in answer.text
    assert backend.recorded == [("/v1/score", status)]


def test_bodies_that_are_none(serving: Serving) -> None:
    client, _ = serving(max_items=2)
    deep = "[" * 100_000
    for body, kind in (
        (b"", "application/json"), (b"{", "application/json"), (b"\xff\xfe", "application/json"),
        (b"[]", "application/json"), (b"null", "application/json"), (deep.encode(), "application/json"),
        (b'{"question": "\\ud800"}', "application/json"), (b"x", "multipart/form-data"),
        (b"--a\r\n\r\n", "multipart/form-data; boundary=a"), (b"--a--", "multipart/form-data; boundary=a"),
    ):  # fmt: skip
        for route in ("/v1/score", "/v1/score/batch"):
            answer = client.post(route, content=body, headers={"Content-Type": kind})
            assert answer.status_code == 422, (body[:20], route, answer.text)
    assert client.post("/v1/score", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415
    answer = client.post("/v1/score/batch", json={"items": [1, 2, 3]})
    assert (answer.status_code, answer.json()["error"]["message"]) == (422, "3 items, and the limit is 2")
    assert client.post("/v1/score/batch", json={"items": []}).status_code == 422
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/v1/score").status_code == 405


def test_a_server_that_is_not_ready_says_so(serving: Serving) -> None:
    client, backend = serving()
    backend.loaded = False
    for route, body in (("/v1/score", plain()), ("/v1/score/batch", {"items": [plain()]})):
        answer = client.post(route, json=body)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    waited = []
    for _ in range(2):
        answer = client.get("/readyz")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        told = answer.json()
        waited.append(told.pop("seconds"))
        assert told == {"status": "loading", "model": "demo"}  # its name, not where it lies
    assert 0 <= waited[0] <= waited[1]
    assert client.get("/healthz").status_code == 200
    backend.loaded = True
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    backend.loaded = False  # the only engine is lost, and another one loads
    assert client.get("/readyz").json()["seconds"] == 0


@pytest.mark.parametrize("route", ["/v1/score", "/v1/score/batch"])
def test_what_takes_too_long_is_504(serving: Serving, route: str) -> None:
    client, backend = serving(timeout=0.5)
    backend.gate.clear()  # nothing is ever scored
    answer = client.post(route, json={"items": [plain()]} if route.endswith("batch") else plain())
    assert (answer.status_code, answer.json()["error"]["kind"]) == (504, "Timeout")


def test_texts_are_measured_before_they_are_tokenised(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = serving()
    monkeypatch.setattr(api, "prepare_sample", lambda *_, **__: pytest.fail("it was prepared"))
    with client:
        answer = client.post("/v1/score", json=EXAMPLE_QA | {"answer": "x" * 2_000_000})
    assert answer.status_code == 422
    assert answer.json()["error"]["kind"] == "TooLong"
    assert "bytes of text" in answer.json()["error"]["message"]


def test_more_turns_or_parts_than_a_sample_has_are_refused(serving: Serving) -> None:
    turn = {"role": "user", "content": ""}
    part = {"type": "text", "text": ""}
    client, _ = serving()
    for body in (
        {"messages": [turn] * 5000}, {"messages": [{"role": "user", "content": [part] * 5000}]},
        {"messages": [turn], "images": [""] * 5000},
    ):  # fmt: skip
        assert "at most 4096 items" in client.post("/v1/score", json=body).json()["error"]["message"]
    assert "at most 4096 items" in client.post("/v1/score/batch", json={"items": [1] * 5000}).text


def test_an_internal_error_is_counted_as_one(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    client, backend = serving()

    async def fail(prepared: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(backend, "score", fail)
    with client:
        assert client.post("/v1/score", json=EXAMPLE_QA).status_code == 500
    assert backend.recorded == [("/v1/score", 500)]
    assert backend.refusals == [("Internal", 500)]


def test_what_is_too_much_is_503(serving: Serving) -> None:
    client, backend = serving(queue=2)
    backend.gate.clear()
    with client, ThreadPoolExecutor(2) as pool:  # one event loop for all
        accepted = [pool.submit(client.post, "/v1/score", json=plain()) for _ in range(2)]
        wait_until(lambda: backend.scoring == 2)
        for route, body in (("/v1/score", plain()), ("/v1/score/batch", {"items": [plain()]})):
            answer = client.post(route, json=body)
            assert (answer.status_code, answer.json()["error"]["kind"]) == (503, "Busy")
        backend.gate.set()
        assert [future.result().status_code for future in accepted] == [200, 200]
        assert client.post("/v1/score", json=plain()).status_code == 200


def test_a_batch_takes_as_many_places_as_it_has_samples(serving: Serving) -> None:
    client, backend = serving(queue=3)
    backend.gate.clear()
    with client, ThreadPoolExecutor(1) as pool:
        # The last to come in may go beyond the number of places, or a batch could never be larger than it.
        accepted = pool.submit(client.post, "/v1/score/batch", json={"items": [plain()] * 4})
        wait_until(lambda: backend.scoring == 4)
        assert client.post("/v1/score", json=plain()).status_code == 503
        backend.gate.set()
        assert accepted.result().status_code == 200
        assert client.post("/v1/score", json=plain()).status_code == 200


def test_the_images_without_what_they_show_come_on_request(serving: Serving) -> None:
    client, _ = serving()
    (uri,) = client.post("/v1/score", json=plain(reference_images=True)).json()["reference_images"]
    from serve_app.prepare import _image_bytes

    blurred = decode_image(_image_bytes(uri, ""))  # type: ignore[arg-type]
    assert blurred.shape == (56, 64, 3)
    assert blurred.std(axis=(0, 1)).max() < 12  # of uniform noise, with a deviation of 74
    assert client.post("/v1/score", json=plain()).json()["reference_images"] is None


def test_the_documents_examples_run_as_they_stand(serving: Serving) -> None:
    client, _ = serving()
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v1/score"]["post"]["requestBody"]["content"]["application/json"]
    assert len(body["examples"]) == 2
    for example in body["examples"].values():
        assert client.post("/v1/score", json=example["value"]).status_code == 200
    batch = document["components"]["schemas"]["BatchRequest"]["properties"]["items"]["examples"][0]
    results = client.post("/v1/score/batch", json={"items": batch}).json()["results"]
    assert all(item["error"] is None for item in results)
    assert EXAMPLE_QA in batch
    model = client.get("/v1/model").json()
    assert model["fingerprint"] == "f" * 16
    assert model["reference"] == "blur"
