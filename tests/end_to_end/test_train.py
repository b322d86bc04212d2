"""`vig train` with workers, the driver and machines killed: what comes out is what an undisturbed run gives."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.cluster.spot import SOON, announce
from tests.end_to_end.conftest import ROOT, vig
from tests.selection.made import write_selected
from tests.training.runs import alone, setup_of, weights_of
from vig_ray.demo import CHECKPOINT
from vig_ray.model.export import hub_name

BATCH = 8
# So high that one wrong sample in a step shows in the weights, so low that two hundred steps of AdamW don't blow
# up what float32 sums differ by in another order.
LR = 2e-4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, demo_model: Any, demo_formatter: Any) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_selected(out, demo_model, demo_formatter, samples=300, p=60)
    return out


def command(data: Path, out: Path | str, **options: Any) -> list[str]:
    given = {
        "model": CHECKPOINT, "samples": data / "samples", "selection": data / "selection", "out": out,
        "global_batch": BATCH, "lr": LR, "dtype": "float32", "save_every": 5,
    } | options  # fmt: skip
    return ["train", *(word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value)))]


def undisturbed(
    data: Path, tmp_path: Path, steps: int, batch: int = BATCH
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same run by the core, alone in this process."""
    run = alone(setup_of(data, global_batch=batch, max_steps=steps, lr=LR), tmp_path / "undisturbed")
    return [line["loss"] for line in run.log], {hub_name(name): t for name, t in weights_of(run).items()}


def assert_as_undisturbed(out: Path, expected: tuple[list[float], dict[str, torch.Tensor]], samples: int) -> None:
    losses, weights = expected
    log = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in log] == pytest.approx(losses, abs=1e-4)
    found = load_file(out / "model" / "model.safetensors")
    worst = max(float((found[name] - tensor).abs().max()) for name, tensor in weights.items())
    print(f"largest difference of a weight: {worst:.1e}; workers by step: {[line['workers'] for line in log]}")
    assert worst < 1e-4
    # The record of places consumed: every one once, in order, and all of their samples trained on.
    places = [place for line in log for place in range(line["first"], line["end"])]
    assert places == list(range(samples))
    assert sum(line["samples"] for line in log) == samples
    assert not any(line["unusable"] for line in log)


def steps_kept(out: Path) -> int:
    """The step of the newest whole checkpoint; 0 where there is none."""
    names = [path.parent.name for path in (out / "training" / "checkpoints").glob("step-*/whole.json")]
    return max((int(name.split("-")[1]) for name in names), default=0)


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.1)
    pytest.fail("waited in vain")


def workers_of(pid: int) -> list[int]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_worker_and_then_the_driver_killed(data: Path, tmp_path: Path) -> None:
    steps, out = 70, tmp_path / "out"
    asked = command(data, out, workers=2, max_steps=steps)
    driver = subprocess.Popen(
        [sys.executable, "-m", "vig_ray.cli", *asked], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        wait_for(lambda: steps_kept(out) >= 10)
        os.kill(workers_of(driver.pid)[0], signal.SIGKILL)
        before = steps_kept(out)
        wait_for(lambda: steps_kept(out) >= before + 10)
        assert driver.poll() is None, "the run ended before it could be killed"
    finally:
        driver.kill()
    kept = steps_kept(out)
    assert kept < steps
    assert not (out / "model").exists()
    done = vig(*asked)
    assert f"{steps} steps, {steps * BATCH} samples" in done.stdout
    assert "going on at step" in done.stderr
    assert_as_undisturbed(out, undisturbed(data, tmp_path, steps), steps * BATCH)
    assert "already complete" in vig(*asked).stderr
    assert steps_kept(out) == steps


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that trains nothing, and one machine that can."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    head = {"num_cpus": 0, "object_store_memory": 100 * 2**20, "_system_config": SOON}
    found = Cluster(initialize_head=True, head_node_args=head)
    yield found
    ray.shutdown()
    found.shutdown()


class Elastic:
    """A run of 1 to `most` workers on a cluster, in a thread of this process."""

    def __init__(self, cluster: Any, data: Path, out: Path, *, most: int, steps: int, **options: Any) -> None:
        from vig_ray.training import job
        from vig_ray.training.config import TrainConfig

        self._out, self.failure = out, list[BaseException]()
        words = command(
            data, out, workers=f"1..{most}", max_steps=steps, resize_every=2, micro_batch=1, address=cluster.address,
            **options,
        )[1:]  # fmt: skip
        pairs = zip(words[::2], words[1::2], strict=True)
        config = TrainConfig(**{name[2:].replace("-", "_"): value for name, value in pairs})

        def train() -> None:
            try:
                job.run(config)
            except BaseException as error:
                self.failure.append(error)

        self.thread = threading.Thread(target=train, daemon=True)
        self.thread.start()

    def sizes(self) -> list[int]:
        """How many workers wrote each checkpoint that is kept."""
        found = sorted((self._out / "training" / "checkpoints").glob("step-*/whole.json"))
        return [json.loads(path.read_text())["workers"] for path in found]

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self._out / "training" / "log.jsonl").read_text().splitlines()]


MACHINE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


def test_two_workers_one_worker_two_workers(
    data: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine is lost in the middle, and later another one comes."""
    # Ray first tries to start as many workers as before, until this runs out.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    # So many steps that the run is still going when the second machine counts, which Ray looks for every 20 seconds.
    steps, batch, out = 104, 32, tmp_path / "out"
    cluster.add_node(**MACHINE)
    second = cluster.add_node(**MACHINE)
    run = Elastic(cluster, data, out, most=2, steps=steps, global_batch=batch)
    failure, sizes, thread = run.failure, run.sizes, run.thread
    wait_for(lambda: failure or 2 in sizes())
    cluster.remove_node(second, allow_graceful=False)
    wait_for(lambda: failure or sizes()[-1:] == [1])
    cluster.add_node(**MACHINE)
    wait_for(lambda: failure or sizes()[-1:] == [2])
    thread.join(timeout=180)
    assert not failure
    assert not thread.is_alive()
    assert_as_undisturbed(out, undisturbed(data, tmp_path, steps, batch), steps * batch)
    workers = [line["workers"] for line in run.log()]
    assert [w for i, w in enumerate(workers) if i == 0 or w != workers[i - 1]] == [2, 1, 2]


def test_machines_that_come_and_go_for_its_whole_length(
    data: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first one is announced, and a checkpoint made for it; then they go without a word."""
    from vig_ray.training import worker

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    steps, batch, out = int(os.environ.get("VIG_TEST_CHAOS_STEPS", "45")), 32, tmp_path / "out"
    rng = random.Random(1)
    machines = [cluster.add_node(**MACHINE) for _ in range(3)]
    run = Elastic(cluster, data, out, most=3, steps=steps, global_batch=batch, save_every=10, max_failures=-1)
    wait_for(lambda: run.failure or steps_kept(out) >= 10)
    kept = steps_kept(out)
    announce(cluster, machines[-1], worker._LOOK_EVERY_S + 15)
    wait_for(lambda: run.failure or steps_kept(out) % 10 or steps_kept(out) >= kept + 40)
    early = steps_kept(out)
    lost = 0
    # One is lost somewhere in every ten steps, however fast they are.
    for reached in range(early, steps, 10):
        wait_for(lambda reached=reached: run.failure or steps_kept(out) >= reached, seconds=240)
        time.sleep(rng.uniform(0, 3))
        if not run.thread.is_alive():
            break
        cluster.remove_node(machines.pop(), allow_graceful=False)
        lost += 1
        time.sleep(rng.uniform(2, 10))
        machines.insert(0, cluster.add_node(**MACHINE))
    run.thread.join(timeout=240)
    with capsys.disabled():
        print(f"\n{steps} steps, a checkpoint at step {early} for a machine that was to go, {lost} machines lost")
    assert not run.failure
    assert not run.thread.is_alive()
    assert early % 10
    assert lost >= 2
    assert_as_undisturbed(out, undisturbed(data, tmp_path, steps, batch), steps * batch)
    assert {line["workers"] for line in run.log()} <= {1, 2, 3}


def in_bucket(data: Path, client: Any) -> None:
    """The samples, their images and the selection under s3://vig/."""
    client.create_bucket(Bucket="vig")
    for path in sorted((data / "samples").iterdir()):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            rows = table.to_pylist()
            for image in (image for row in rows for image in row["images"]):
                name = Path(image["uri"].removeprefix("file://"))
                client.put_object(Bucket="vig", Key=f"images/{name.name}", Body=name.read_bytes())
                image["uri"] = f"s3://vig/images/{name.name}"
            file = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
            client.put_object(Bucket="vig", Key=f"samples/{path.name}", Body=file.getvalue())
        else:
            client.put_object(Bucket="vig", Key=f"samples/{path.name}", Body=path.read_bytes())
    for path in (data / "selection").iterdir():
        client.put_object(Bucket="vig", Key=f"selection/{path.name}", Body=path.read_bytes())


def test_data_and_results_in_a_bucket(data: Path, tmp_path: Path, s3: Callable[[], Any]) -> None:
    client, steps = s3(), 12
    in_bucket(data, client)
    asked = command(data, "s3://vig/run", samples="s3://vig/samples", selection="s3://vig/selection", max_steps=steps)
    assert "model: s3://vig/run/model" in vig(*asked).stdout
    listed = client.list_objects_v2(Bucket="vig", Prefix="run/")["Contents"]
    names = [each["Key"] for each in listed if not each["Key"].endswith("/")]
    assert any("tfevents" in name for name in names)
    assert sum(name.endswith("whole.json") for name in names) == 2
    assert not any(".ray" in name for name in names)
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(client.get_object(Bucket="vig", Key=name)["Body"].read())
    assert_as_undisturbed(tmp_path / "run", undisturbed(data, tmp_path, steps), steps * BATCH)
    vig("export", "--run", "s3://vig/run", "--out", tmp_path / "exported")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("exported", "run/model"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
