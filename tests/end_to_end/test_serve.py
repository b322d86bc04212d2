"""`vig serve` as its users meet it: the batch job's numbers, a replica lost under load, and an orderly end."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import yaml

from tests.end_to_end.conftest import ROOT, vig
from tests.end_to_end.server import Server, assert_as_scored, wait_until
from vig_ray.demo import CHECKPOINT, world


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 demo samples, and their scores by the batch job."""
    out = tmp_path_factory.mktemp("serve")
    vig("score", "--data", world.write(str(out / "data"), 40, 77), "--model", CHECKPOINT, "--out", out)
    return out


@pytest.fixture(scope="module")
def samples(data: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What to ask for each sample with an image, and its row of scores."""
    rows = {
        row["sample_key"]: row
        for path in (data / "scores").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    found = []
    for path in (data / "samples").glob("*.parquet"):
        for sample in pq.read_table(path).to_pylist():
            images = [
                base64.b64encode(Path(image["uri"].removeprefix("file://")).read_bytes()).decode()
                for image in sample["images"]
            ]
            if images:
                turns = [{"role": turn["role"], "content": turn["text"]} for turn in sample["conversation"]]
                found.append(({"messages": turns, "images": images}, rows[sample["sample_key"]]))
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = Server("--workers", 2, "--timeout", 30)
    yield found
    found.stop()


def test_the_batch_jobs_numbers_whatever_the_concurrency(server: Server, samples: list[Any]) -> None:
    for clients in (1, 16):
        with ThreadPoolExecutor(clients) as pool:
            answers = list(
                pool.map(lambda pair: server.post("/v1/score", pair[0]), samples * (1 if clients == 1 else 3))
            )
        for answer, (_, row) in zip(answers, samples * 3, strict=False):
            assert answer.status_code == 200, answer.text
            assert_as_scored(answer, row)
    together = server.post("/v1/score/batch", {"items": [asked for asked, _ in samples]}).json()["results"]
    assert [each["result"]["vig"] for each in together] == pytest.approx([row["vig"] for _, row in samples], abs=1e-5)


def test_an_engine_killed_under_load_costs_no_answer(server: Server, samples: list[Any]) -> None:
    stop, lock = threading.Event(), threading.Lock()
    answers: list[tuple[int, int, httpx.Response]] = []

    def client(first: int) -> None:
        turn = first
        while not stop.is_set():
            place = turn % len(samples)
            answer = server.post("/v1/score", samples[place][0])
            with lock:
                answers.append((first, place, answer))
            turn += 1

    wait_until(lambda: len(server.replicas("Scorer")) == 2)
    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        before = len(answers)
        wait_until(lambda before=before: len(answers) > before + 50)
        killed = server.replicas("Scorer")[0]
        os.kill(killed.pid, signal.SIGKILL)
        wait_until(lambda killed=killed: len({p.pid for p in server.replicas("Scorer")} - {killed.pid}) == 2)
    stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    refused = [answer for _, _, answer in answers if answer.status_code != 200]
    print(f"{len(answers)} answers, {len(refused)} of them 503")
    assert all(answer.status_code == 503 and "Retry-After" in answer.headers for answer in refused)
    for _, place, answer in answers:
        if answer.status_code == 200:
            assert_as_scored(answer, samples[place][1])


def test_what_was_accepted_is_answered_before_the_end(samples: list[Any]) -> None:
    server = Server()
    answers: list[httpx.Response] = []
    items = [asked for asked, _ in samples] * 2
    thread = threading.Thread(target=lambda: answers.append(server.post("/v1/score/batch", {"items": items[:60]})))
    thread.start()
    time.sleep(0.1)
    server.process.send_signal(signal.SIGTERM)
    late: set[int] = set()
    while server.process.poll() is None:
        try:
            late.add(server.post("/v1/score", samples[0][0]).status_code)
        except httpx.TransportError:
            time.sleep(0.1)
    assert late <= {200, 503}  # not 404, which a client may take for an answer
    thread.join(60)
    assert [answer.status_code for answer in answers] == [200]
    assert all(item["error"] is None for item in answers[0].json()["results"])
    assert server.process.wait(60) == 0
    assert server.process.stderr is not None
    assert "Traceback" not in server.process.stderr.read()


def test_what_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    def refused(told: str, *words: object) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "vig_ray.cli", "serve", *map(str, words)],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 2
        assert told in done.stderr
        assert "Traceback" not in done.stderr

    refused("--keys FILE, or --open", "--model", CHECKPOINT, "--host", "0.0.0.0")
    (tmp_path / "keys").write_text("# none yet\n")
    refused("holds no key", "--model", CHECKPOINT, "--keys", tmp_path / "keys")
    refused("can't be read", "--model", CHECKPOINT, "--keys", tmp_path / "nowhere")
    refused("no such folder", "--model", tmp_path / "nowhere")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused("choose another", "--model", CHECKPOINT, "--port", taken.getsockname()[1])


def test_serve_yaml_names_the_application_and_options_that_exist() -> None:
    from serve_app.app import build
    from serve_app.options import AppConfig
    from vig_ray.errors import StageError

    (found,) = yaml.safe_load((ROOT / "serve.yaml").read_text())["applications"]
    assert found["import_path"] == f"{build.__module__}:{build.__name__}"
    assert AppConfig(**found["args"]).workers == "1..4"
    assert build({"model": CHECKPOINT, "tau": "0.5", "workers": "1..2"}) is not None  # as `serve run` gives them
    with pytest.raises(StageError, match="tau: "):
        build({"model": CHECKPOINT, "tau": "high"})
    with pytest.raises(StageError, match="model: "):
        build({})
