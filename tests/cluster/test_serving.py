"""Serving on a cluster of several raylets: engines come with the load and go after it, a lost machine costs no request,
a new version of the model is taken up without one, and models take turns."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from serve_app.options import AppConfig
from serve_app.prepare import PreparedSample, parse_sample, prepare_sample
from serve_app.schema import EXAMPLE_QA, ScoreRequest
from tests.end_to_end.server import Server, free_port, wait_until
from vig_ray.demo import CHECKPOINT, HARD_CHECKPOINT
from vig_ray.model.load import load_formatter, load_model
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.gain import loss
from vig_ray.scoring.prepare import make_passes
from vig_ray.scoring.score import run_passes

pytestmark = [pytest.mark.cluster, pytest.mark.long]

_NODE = {"num_cpus": 2, "object_store_memory": 150 * 2**20}
NAME = "vig"


class Load:
    """Clients that ask again and again, until the context ends. `answers`: by status and model's fingerprint, and
    `vigs` by the fingerprint."""

    def __init__(self, url: str, clients: int) -> None:
        self.answers: Counter[tuple[int, str]] = Counter()
        self.vigs: dict[str, list[float]] = defaultdict(list)
        self._url, self._ended = url, threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(120)

    def _ask(self) -> None:
        with httpx.Client(timeout=120) as client:
            while not self._ended.is_set():
                answer = client.post(f"{self._url}/v1/score", json=EXAMPLE_QA)
                found = answer.json().get("model", {}).get("fingerprint", "")
                self.answers[answer.status_code, found] += 1
                if answer.status_code == 200:
                    self.vigs[found].append(answer.json()["vig"])
                if answer.status_code == 503:
                    time.sleep(float(answer.headers["Retry-After"]))

    def answered(self, fingerprint: str) -> int:
        return self.answers[200, fingerprint]


def engines() -> int:
    """How many engines are there and running."""
    from ray import serve

    told = serve.status().applications[NAME].deployments["Scorer"]
    return int(told.replica_states.get("RUNNING", 0))


@contextmanager
def served(**options: Any) -> Iterator[tuple[Any, str]]:
    """The application on a head that does no work beside it and three machines; the cluster, and the URL."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from serve_app.app import build

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args=_NODE | {"num_cpus": 1})
    try:
        for _ in range(3):
            cluster.add_node(**_NODE)
        ray.init(address=cluster.address, log_to_driver=False)
        port = free_port()
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({"model": CHECKPOINT, "queue": 200} | options), name=NAME)
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=30).status_code == 200)
        yield cluster, url
    finally:
        ray.shutdown()
        cluster.shutdown()


def vig_by_hand(folder: str, reference: str) -> float:
    formatter = load_formatter(folder)
    engine = TorchEngine(load_model(folder, dtype="float32", device="cpu"), formatter.collate)
    passes = make_passes(("clean", reference), formatter, blur="fast")
    sample = parse_sample(ScoreRequest(**EXAMPLE_QA))
    prepared = prepare_sample(sample, formatter, passes, AppConfig(model=folder), reference=reference)
    assert isinstance(prepared, PreparedSample)
    ((clean, without),) = run_passes(engine, [prepared.pair])
    return loss(without) - loss(clean)


def test_engines_follow_the_load_and_a_lost_machine_costs_no_request(
    preforked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    with served(workers="1..3", shrink_after=10) as (cluster, url):
        assert engines() == 1
        ours = httpx.get(f"{url}/v1/model", timeout=60).json()["fingerprint"]
        with Load(url, 40) as load:
            began = time.monotonic()
            wait_until(lambda: engines() == 3)
            grown = time.monotonic() - began
            # A machine that has an engine goes without a word, and not the one with the proxy and the ingress.
            from ray.util.state import list_actors

            actors = list_actors(filters=[("state", "=", "ALIVE")], limit=500)
            at = {kind: {each.node_id for each in actors if kind in each.class_name} for kind in ("Scorer", "Ingress")}
            head = ray.get_runtime_context().get_node_id()
            chosen = next(iter(at["Scorer"] - at["Ingress"] - {head}))
            before = load.answered(ours)
            cluster.remove_node(
                next(node for node in cluster.list_all_nodes() if node.node_id == chosen), allow_graceful=False
            )
            wait_until(lambda: load.answered(ours) > before + 200)
        assert set(load.answers) <= {(200, ours), (503, "")}, load.answers
        began = time.monotonic()
        wait_until(lambda: engines() == 1)
        shrunk = time.monotonic() - began
    with capsys.disabled():
        print(f"\nthree engines after {grown:.0f} s of load, one {shrunk:.0f} s after it; {dict(load.answers)}")


def test_a_new_version_is_taken_up_without_a_lost_request(preforked: None, capsys: pytest.CaptureFixture[str]) -> None:
    from ray import serve

    from serve_app.app import build

    options = {"queue": 200, "workers": "2", "prepare_workers": "2"}
    with served(**options) as (_, url):
        old = httpx.get(f"{url}/v1/model", timeout=60).json()["fingerprint"]
        with Load(url, 8) as load:
            wait_until(lambda: load.answered(old) > 20)
            serve.run(
                build({"model": HARD_CHECKPOINT, "queue": 200, "workers": "2", "prepare_workers": "2"}), name=NAME
            )
            wait_until(lambda: any(status == 200 and which != old for status, which in load.answers))
            new = next(which for status, which in load.answers if status == 200 and which != old)
            before = load.answered(new)
            wait_until(lambda: load.answered(new) > before + 20)
        assert set(load.answers) <= {(200, old), (200, new), (503, "")}, load.answers
        assert httpx.get(f"{url}/v1/model", timeout=60).json()["fingerprint"] == new
    # No prompt of the one was scored by the other.
    assert load.vigs[old] == pytest.approx([vig_by_hand(CHECKPOINT, "blur")] * len(load.vigs[old]), abs=1e-5)
    assert load.vigs[new] == pytest.approx([vig_by_hand(HARD_CHECKPOINT, "blur")] * len(load.vigs[new]), abs=1e-5)
    with capsys.disabled():
        print(f"\n{dict(load.answers)}")


def test_models_that_take_turns_have_their_own_numbers(preforked: None) -> None:
    """One engine's process that holds one of two models at a time."""
    server = Server("--model", f"hard={HARD_CHECKPOINT}", "--reference", "blur,blind", "--models-a-worker", 1,
                    "--timeout", 120)  # fmt: skip
    expected = {
        (name, reference): vig_by_hand(folder, reference)
        for name, folder in (("checkpoint", CHECKPOINT), ("hard", HARD_CHECKPOINT))
        for reference in ("blur", "blind")
    }
    try:
        for _ in range(2):
            for (name, reference), vig in expected.items():
                asked = EXAMPLE_QA | {"model": name, "reference": reference}
                while (said := server.post("/v1/score", asked)).status_code == 503:  # it is being loaded
                    time.sleep(float(said.headers["Retry-After"]))
                answer = said.json()
                assert (answer["model"]["name"], answer["reference"]["name"]) == (name, reference)
                assert answer["vig"] == pytest.approx(vig, abs=1e-5)
        assert len(server.replicas("Scorer")) == 1
    finally:
        server.stop()
