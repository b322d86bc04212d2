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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests import prefork
from tests.cluster.spot import HEAD, announce
from tests.command import call
from tests.end_to_end.conftest import ROOT, vig
from tests.end_to_end.server import wait_until
from tests.image_store import ImageStore, hold_images, image_store
from tests.selection.made import selected
from tests.training.aligned import write_captions, write_model
from tests.training.runs import alone, setup_of, weights_of
from tests.training.texts import text_setup, write_llama
from vig_ray.demo import CHECKPOINT
from vig_ray.model.export import hub_name
from vig_ray.tables.rows import Rows
from vig_ray.tables.trained_on import TrainedOn

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("preforked")]

BATCH, STEPS = 8, 16
TEXT_STEPS = 80  # so many that there is time to kill it in
# So high that one wrong sample in a step shows in the weights, so low that the steps of AdamW don't blow up what
# float32 sums differ by in another order.
LR = 2e-4

Undisturbed = tuple[list[float], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def data(chosen: Path) -> Path:
    """300 samples and a selection of them. Not to be changed."""
    return chosen


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What every run here must come to: losses by step and weights by name, from the core alone in this process."""
    run = alone(setup_of(data, global_batch=BATCH, max_steps=STEPS, lr=LR), tmp_path_factory.mktemp("undisturbed"))
    return [line["loss"] for line in run.log], {hub_name(name): t for name, t in weights_of(run).items()}


@pytest.fixture
def images() -> Iterator[ImageStore]:
    with image_store() as store:
        yield store


def held(data: Path, folder: Path, images: ImageStore, steps: Sequence[int]) -> Path:
    """The samples of `data`, of which one in each of these steps has its image in the store, held as "STEP"."""
    keys = [row["sample_key"] for row in selected(data)]
    places = {str(step): keys[step * BATCH : (step + 1) * BATCH] for step in steps}
    return hold_images(data, folder, images, places) / "samples"


def command(data: Path, out: Path | str, **options: Any) -> list[str]:
    given = {
        "model": CHECKPOINT, "samples": data / "samples", "selection": data / "selection", "out": out,
        "global_batch": BATCH, "max_steps": STEPS, "lr": LR, "dtype": "float32", "save_every": 5,
    } | options  # fmt: skip
    return ["train", *(word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value)))]


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]


def assert_as_undisturbed(out: Path, undisturbed: Undisturbed) -> None:
    losses, weights = undisturbed
    log = log_of(out)
    assert [line["loss"] for line in log] == pytest.approx(losses, abs=1e-4)
    written = load_file(out / "model" / "model.safetensors")
    worst = max(float((written[name] - tensor).abs().max()) for name, tensor in weights.items())
    print(f"largest difference of a weight: {worst:.1e}; workers by step: {[line['workers'] for line in log]}")
    assert worst < 1e-4
    # The record of places consumed: every one once, in order, and all of their samples trained on.
    places = [place for line in log for place in range(line["first"], line["end"])]
    assert places == list(range(STEPS * BATCH))
    assert sum(line["samples"] for line in log) == STEPS * BATCH
    assert not any(line["unusable"] for line in log)


def steps_kept(out: Path) -> int:
    """The step of the newest whole checkpoint; 0 where there is none."""
    names = [path.parent.name for path in (out / "training" / "checkpoints").glob("step-*/commit.json")]
    return max((int(name.split("-")[1]) for name in names), default=0)


def workers_of(pid: int) -> list[int]:
    workers = []
    for process in prefork.descendants(pid):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                workers.append(process.pid)
        except psutil.Error:
            continue
    return workers


def kill_both(asked: Sequence[str], out: Path, images: ImageStore, kept: dict[int, int]) -> None:
    """Run a command, kill one of its workers in a held step, and the driver in a later one. `kept`: by these steps, the
    newest checkpoint that there is by then."""
    driver = subprocess.Popen(
        [sys.executable, "-m", "vig_ray.cli", *asked], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    (first, after_first), (second, after_second) = kept.items()
    try:
        images.wait_for(str(first))
        assert steps_kept(out) == after_first
        os.kill(workers_of(driver.pid)[0], signal.SIGKILL)
        images.wait_for(str(first), times=2)  # by a new group
        images.let_go(str(first))
        images.wait_for(str(second))
        assert steps_kept(out) == after_second
        workers = workers_of(driver.pid)
    finally:
        driver.kill()
    driver.wait()
    wait_until(lambda: not any(map(psutil.pid_exists, workers)))  # else they may go on for a while
    images.let_go(str(second))
    assert not (out / "model").exists()


def test_a_worker_and_then_the_driver_killed(
    data: Path, tmp_path: Path, images: ImageStore, undisturbed: Undisturbed
) -> None:
    """The worker in step 6, the driver in step 12; there are checkpoints after steps 5 and 10."""
    out = tmp_path / "out"
    samples = held(data, tmp_path, images, (6, 12))
    asked = command(data, out, samples=samples, workers=2)
    kill_both(asked, out, images, {6: 5, 12: 10})
    done = vig(*asked)
    assert f"{STEPS} steps, {STEPS * BATCH} samples" in done.stdout
    assert "going on at step" in done.stderr
    assert_as_undisturbed(out, undisturbed)
    assert "already complete" in vig(*asked).stderr
    assert steps_kept(out) == STEPS


@pytest.mark.long
def test_an_alignment_whose_worker_and_driver_are_killed(tmp_path: Path, images: ImageStore) -> None:
    """Given again with one worker it comes to what it does alone, in this process, and nothing but the projector has
    moved."""
    captions, model, out = write_captions(tmp_path / "captions", 24), write_model(tmp_path), tmp_path / "out"
    options = {"stage": "align", "model": model, "global_batch": 4, "max_steps": 6, "dtype": "float32"}
    setup = setup_of(captions, selection=False, lr=None, **options)
    expected = alone(setup, tmp_path / "undisturbed")
    source = setup.source(images=False)
    places = {
        str(step): [each.key for each in source.__getitems__(setup.sampler.positions(step).tolist())] for step in (1, 3)
    }
    samples = hold_images(captions, tmp_path / "held", images, places) / "samples"
    given = options | {"samples": samples, "out": out, "save_every": 1}
    asked = ["train", *(word for name in given for word in (f"--{name.replace('_', '-')}", str(given[name])))]
    kill_both([*asked, "--workers", "2"], out, images, {1: 1, 3: 3})
    assert "going on at step" in call(*asked, "--workers", "1").stderr
    log = log_of(out)
    assert [line["workers"] for line in log] == [2, 2, 2, 1, 1, 1]
    assert [line["loss"] for line in log] == pytest.approx([line["loss"] for line in expected.log], abs=1e-5)
    written, before = (
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (out / "model", model)
    )
    for name, tensor in weights_of(expected).items():
        assert (written[name] - tensor).abs().max() < 1e-5, name
        assert torch.equal(written[name], before[name]) == ("projector" not in name), name


@pytest.mark.long
def test_a_language_model_whose_worker_and_driver_are_killed(tmp_path: Path, data: Path) -> None:
    """Each once checkpoints are there; with one worker less it comes to what it does alone, in this process."""
    model = write_llama(tmp_path / "language-model")
    options = {"global_batch": 16, "max_steps": TEXT_STEPS, "lr": LR, "dtype": "float32"}
    setup = text_setup(data / "samples", model, **options)
    expected = alone(setup, tmp_path / "undisturbed")
    out = tmp_path / "out"
    given = {"model": model, "samples": data / "samples", "out": out, "save_every": 4, "micro_batch": 1, **options}
    asked = ["train-text", *(word for name in given for word in (f"--{name.replace('_', '-')}", str(given[name])))]
    driver = subprocess.Popen(
        [sys.executable, "-m", "vig_ray.cli", *asked, "--workers", "2"],
        cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: steps_kept(out) > 0)
        before = steps_kept(out)
        os.kill(workers_of(driver.pid)[0], signal.SIGKILL)
        wait_until(lambda: steps_kept(out) > before + 4)
        assert driver.poll() is None
        workers = workers_of(driver.pid)
    finally:
        driver.kill()
    driver.wait()
    wait_until(lambda: not any(map(psutil.pid_exists, workers)))  # else they may go on for a while
    assert steps_kept(out) < TEXT_STEPS
    assert not (out / "model").exists()
    done = vig(*asked, "--workers", "1")
    assert "going on at step" in done.stderr
    log = log_of(out)
    assert {line["workers"] for line in log} == {1, 2}
    assert [line["loss"] for line in log] == pytest.approx([line["loss"] for line in expected.log], abs=1e-4)
    written = load_file(out / "model" / "model.safetensors")
    assert max(float((written[name] - each).abs().max()) for name, each in weights_of(expected).items()) < 1e-4
    assert [place for line in log for place in range(line["first"], line["end"])] == [*range(TEXT_STEPS * 16)]
    trained_on = TrainedOn.of(str(out / "model"))
    assert trained_on is not None
    keys = [row["sample_key"] for row in Rows(setup.samples, ["sample_key"]).get(setup.index.sample_at)]
    assert trained_on(pa.array(keys)).all()


# One size of machine, the head's too, which has no core to train with.
MACHINE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that trains nothing. Machines that come and go are seen by Ray sooner than by default."""
    import ray
    from ray.cluster_utils import Cluster

    # Ray first tries to start as many workers as before, until this runs out.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    ray.shutdown()
    started = Cluster(initialize_head=True, head_node_args=MACHINE | HEAD)
    yield started
    ray.shutdown()
    started.shutdown()


# Left to itself Ray Train looks every second whether a run's controller still exists, on whatever Ray it finds.
LOOKED_FOR_S = 6


@pytest.mark.long
def test_another_ray_that_begins_on_this_machine(
    data: Path, tmp_path: Path, images: ImageStore, request: pytest.FixtureRequest
) -> None:
    """It knows of no such run, and isn't asked for it."""
    samples = held(data, tmp_path, images, (1,))
    asked = command(data, tmp_path / "out", samples=samples, workers=2, max_steps=2, max_failures=0)
    with (tmp_path / "stderr").open("w") as stderr:
        driver = subprocess.Popen([sys.executable, "-m", "vig_ray.cli", *asked], cwd=ROOT, stderr=stderr)
    try:
        images.wait_for("1")
        request.getfixturevalue("cluster")
        time.sleep(LOOKED_FOR_S)
        images.let_go("1")
        assert driver.wait(240) == 0, (tmp_path / "stderr").read_text()
    finally:
        driver.kill()
        driver.wait()
    assert images.asked("1") == 1


class Elastic:
    """A run of 1 to `most` workers on a cluster, in a thread of this process."""

    def __init__(self, cluster: Any, images: ImageStore, data: Path, out: Path, *, most: int, **options: Any) -> None:
        from vig_ray.training import job
        from vig_ray.training.config import TrainConfig

        self._out, self._images, self._failures = out, images, list[BaseException]()
        words = command(
            data, out, workers=f"1..{most}", resize_every=1, micro_batch=1, address=cluster.address, **options
        )[1:]  # fmt: skip
        pairs = zip(words[::2], words[1::2], strict=True)
        config = TrainConfig(**{name[2:].replace("-", "_"): value for name, value in pairs})

        def train() -> None:
            try:
                job.run(config)
            except BaseException as error:
                self._failures.append(error)

        self._thread = threading.Thread(target=train, daemon=True)
        self._thread.start()

    def wait_for(self, step: int, times: int = 1) -> None:
        """Until a group of workers has come to a held step for the so manieth time."""
        wait_until(lambda: self._failures or self._images.asked(str(step)) >= times)
        assert not self._failures

    def end(self) -> None:
        """Wait for the run's end."""
        self._thread.join(timeout=240)
        assert not self._failures
        assert not self._thread.is_alive()


# A group that is told of its machine's end looks for that word every 15 seconds.
LOOKED_AFTER_S = 17


def test_machines_announced_lost_and_added(
    data: Path, tmp_path: Path, images: ImageStore, undisturbed: Undisturbed, cluster: Any
) -> None:
    """One of two machines is announced to go, and goes; another comes; and goes without a word."""
    out = tmp_path / "out"
    samples = held(data, tmp_path, images, (3, 4, 8, 13))
    cluster.add_node(**MACHINE)
    second = cluster.add_node(**MACHINE)
    run = Elastic(cluster, images, data, out, most=2, samples=samples)
    run.wait_for(3)
    announce(cluster, second, 600)
    time.sleep(LOOKED_AFTER_S)
    images.let_go("3")
    run.wait_for(4)
    assert steps_kept(out) == 4  # for the machine that is to go: others come every five steps
    cluster.remove_node(second, allow_graceful=False)
    run.wait_for(4, times=2)
    images.let_go("4")
    run.wait_for(8)
    assert steps_kept(out) == 5
    third = cluster.add_node(**MACHINE)
    run.wait_for(8, times=2)
    images.let_go("8")
    run.wait_for(13)
    assert steps_kept(out) == 10
    cluster.remove_node(third, allow_graceful=False)
    run.wait_for(13, times=2)
    images.let_go("13")
    run.end()
    assert_as_undisturbed(out, undisturbed)
    assert [line["workers"] for line in log_of(out)] == [2] * 4 + [1] + [2] * 5 + [1] * 6


@pytest.mark.long
def test_machines_that_come_and_go_for_its_whole_length(
    data: Path, tmp_path: Path, images: ImageStore, undisturbed: Undisturbed, cluster: Any
) -> None:
    """One of three is lost in every second step, at any moment around it, and another one comes some time later."""
    out = tmp_path / "out"
    losses = range(1, STEPS, 2)
    samples = held(data, tmp_path, images, losses)
    rng = random.Random(1)
    machines = [cluster.add_node(**MACHINE) for _ in range(3)]
    run = Elastic(cluster, images, data, out, most=3, samples=samples, save_every=1, max_failures=-1)
    for step in losses:
        run.wait_for(step)
        delay = threading.Timer(rng.uniform(0, 3), images.let_go, [str(step)])
        delay.start()
        time.sleep(rng.uniform(0, 3))
        cluster.remove_node(machines.pop(), allow_graceful=False)
        time.sleep(rng.uniform(0, 10))
        machines.insert(0, cluster.add_node(**MACHINE))
    run.end()
    assert_as_undisturbed(out, undisturbed)
    assert {line["workers"] for line in log_of(out)} <= {1, 2, 3}


def in_bucket(data: Path, client: Any) -> None:
    """The samples, their images and the selection under s3://vig/."""
    client.create_bucket(Bucket="vig")
    for path in sorted((data / "samples").iterdir()):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for image in (image for row in rows for image in row["images"]):
            name = Path(image["uri"].removeprefix("file://"))
            client.put_object(Bucket="vig", Key=f"images/{name.name}", Body=name.read_bytes())
            image["uri"] = f"s3://vig/images/{name.name}"
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
        client.put_object(Bucket="vig", Key=f"samples/{path.name}", Body=file.getvalue())
    for path in (*(data / "selection").iterdir(), data / "samples.stage.json", data / "selection.stage.json"):
        client.put_object(Bucket="vig", Key=str(path.relative_to(data)), Body=path.read_bytes())


@pytest.mark.long
def test_data_and_results_in_a_bucket(
    data: Path, tmp_path: Path, s3: Callable[[], Any], undisturbed: Undisturbed
) -> None:
    client = s3()
    in_bucket(data, client)
    asked = command(data, "s3://vig/run", samples="s3://vig/samples", selection="s3://vig/selection")
    assert "model: s3://vig/run/model" in vig(*asked).stdout
    listed = client.list_objects_v2(Bucket="vig", Prefix="run/")["Contents"]
    names = [each["Key"] for each in listed if not each["Key"].endswith("/")]
    assert any("tfevents" in name for name in names)
    assert sum(name.endswith("commit.json") for name in names) == 2
    assert not any("/.train-" in name for name in names)
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(client.get_object(Bucket="vig", Key=name)["Body"].read())
    assert_as_undisturbed(tmp_path / "run", undisturbed)
    vig("export", "--run", "s3://vig/run", "--out", tmp_path / "exported")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("exported", "run/model"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
