"""What is told of what workers raise, and what a Ray that is running already is good for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from tests import gates
from vig_ray.cluster import failure, footer_readers, machines, scans_on_ray, start
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.scoring import job
from vig_ray.scoring.config import ScoreConfig


@ray.remote
class Refusing:
    """An actor whose constructor says what to do about what went wrong."""

    def __init__(self) -> None:
        try:
            raise OSError("disk")
        except OSError as error:
            raise StageError("--model: not there; name another") from error

    def ready(self) -> None:
        """Never."""


def test_what_to_do_is_told_before_the_first_cause(local_ray: None) -> None:
    with pytest.raises(ray.exceptions.RayError) as raised:
        ray.get(Refusing.remote().ready.remote())
    assert str(failure(raised.value, "the work")) == "--model: not there; name another"


@ray.remote(max_retries=0)
def raising(error: Exception) -> None:
    try:
        raise error
    except StageError:
        raise
    except Exception as inner:
        raise RuntimeError("a wrapper") from inner


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StageError("--model: not there"), "--model: not there"),
        (ValueError("two\n    lines of it"), "the work failed: ValueError: two lines of it"),
        (KeyError("name"), "the work failed: KeyError: 'name'"),
    ],
)
def test_the_first_cause_is_told_on_one_line(local_ray: None, error: Exception, told: str) -> None:
    with pytest.raises(ray.exceptions.RayError) as raised:
        ray.get(raising.remote(error))
    assert str(failure(raised.value, "the work")) == told


def test_footers_are_read_by_as_many_actors_as_there_is_work_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    name = "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"
    monkeypatch.delenv(name, raising=False)
    for files, readers in ((1, "1"), (640, "10"), (10**6, "32")):
        with footer_readers(files):
            assert os.environ[name] == readers
        assert name not in os.environ
    monkeypatch.setenv(name, "7")
    with footer_readers(1):
        assert os.environ[name] == "7"


@ray.remote
class Holder:
    """Keeps CPUs of the Ray that it runs in."""

    def ready(self) -> None:
        """Answers once it has them."""


@pytest.fixture
def held(local_ray: None) -> Iterator[Any]:
    """Takes CPUs of the 8 that this process's Ray has, until the test ends."""
    holders = []

    def hold(cpus: int) -> None:
        holder = Holder.options(num_cpus=cpus).remote()  # type: ignore[attr-defined]
        ray.get(holder.ready.remote())
        holders.append(holder)

    yield hold
    for holder in holders:
        ray.kill(holder)


def test_scoring_in_a_ray_with_too_few_cpus_says_so_at_once(held: Any, tmp_path: Path) -> None:
    """Its actors would hold them all, and what reads, writes and filters would wait for ever."""
    held(6)
    folder = str(gates.write_world(tmp_path, 40, 83))
    told = r"8 CPUs, 2 of them free, and 6 must be free; start it with ray.init\(num_cpus=12\)"
    with pytest.raises(StageError, match=told):
        job.run(ScoreConfig(data=folder, model=CHECKPOINT, out=folder, engine="tests.engines.own:burning"))


def test_a_ray_that_runs_is_used_by_its_own_address_only(local_ray: None) -> None:
    running = ray.get_runtime_context().gcs_address
    port = running.rpartition(":")[2]
    for address in (None, "auto", "local", running, f"127.0.0.1:{port}", f"localhost:{port}"):
        with machines(address, actors=1) as ray_has:
            assert ray_has.cores is not None
    for address in ("127.0.0.1:1", f"192.0.2.1:{port}", "ray://127.0.0.1:10001"):
        with (
            pytest.raises(StageError, match=f"--address {address}: this process uses the Ray at {running} already"),
            machines(address, actors=1),
        ):
            pass
    with pytest.raises(StageError, match="--metrics-port: "), machines(None, actors=1, metrics_port=1234):
        pass


def test_a_ray_of_this_process_is_made_of_what_it_needs(local_ray: None) -> None:
    """Ray's dashboard, autoscaler and log monitor are programs of their own, which each take a second to start."""
    lines = [" ".join(process.cmdline()) for process in psutil.Process().children()]
    assert [line for line in lines if "raylet/raylet" in line]
    helpers = ("dashboard/dashboard.py", "monitor.py")
    assert not [line for line in lines if any(name in line for name in helpers)]


def test_a_ray_of_this_process_scans_only_when_asked_to(local_ray: None) -> None:
    for address, on_ray in ((None, False), ("local", True), ("auto", True)):
        with scans_on_ray(address) as answer:
            assert answer == on_ray


def test_a_ray_that_does_not_start_in_time_is_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ray itself gives up after 30 seconds, on a machine that is busy with something else."""
    tries: list[tuple[str, int]] = []
    late = 2

    def init(address: str, num_cpus: int, **_: Any) -> None:
        tries.append((address, num_cpus))
        if len(tries) <= late:
            raise Exception("The current node timed out during startup. This could\nhappen because ...")

    monkeypatch.setattr(ray, "init", init)
    start(num_cpus=3)
    assert tries == [("local", 3)] * 3
    assert caplog.text.count("Ray didn't start; again: ") == 2
    tries.clear()
    late = 3
    with pytest.raises(StageError, match="no Ray starts on this machine; in 3 tries: The current node timed out"):
        start(num_cpus=3)
