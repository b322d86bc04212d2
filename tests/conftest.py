"""Shared by all tests: the demo checkpoint, a tiny Qwen2.5-VL, and the oracle that every engine is held against."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("VIG_RAY_CACHE", os.path.join(tempfile.gettempdir(), f"vig-ray-tests-{os.getuid()}"))
# Where transformers copies code that comes with a checkpoint.
os.environ.setdefault("HF_MODULES_CACHE", os.path.join(os.environ["VIG_RAY_CACHE"], "modules"))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Before torch is loaded: two processes of tests and their workers share the cores (see vig_ray.cluster.start).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import hypothesis
import pytest
import torch

from tests import prefork, tiny_models
from vig_ray.demo import CHECKPOINT
from vig_ray.model.load import load_formatter, load_model
from vig_ray.scoring.engines.load import vllm_installed

# One of pytest-xdist's processes, which share the cores.
WORKER = "PYTEST_XDIST_WORKER" in os.environ
torch.set_num_threads(1 if WORKER else 2)

# No test is about time: these machines may be slow.
hypothesis.settings.register_profile("vig", deadline=None)
hypothesis.settings.load_profile("vig")

# What vLLM is told in tests: no compiler, which takes longer than the tests, and blocks so small that prompts of this
# size share them.
VLLM_OPTIONS = {"enforce_eager": True, "block_size": 32, "kv_cache_memory_bytes": 2**28}
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


# They import vLLM; `make test-vllm` runs them where it is.
collect_ignore_glob = [] if vllm_installed() else ["*/test_vllm*.py"]


def pytest_report_header() -> str:
    return "vLLM: here" if collect_ignore_glob == [] else "vLLM: not installed here, its tests are left to test-vllm"


# What takes long to make and is made once for all tests that use it, in the order in which these come.
SHARED = ("ray_head", "start_ray", "browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a Ray come one after the other, and a file's tests stay together.

    Files go to pytest-xdist's processes one by one in this order (`--dist loadfile --no-loadscope-reorder`), so that
    those which take longest don't begin last.
    """

    def first_shared(item: pytest.Item) -> int:
        used = getattr(item, "fixturenames", ())
        return next((number for number, name in enumerate(SHARED) if name in used), len(SHARED))

    of_file: dict[Path, int] = {}
    for item in items:
        of_file[item.path] = min(of_file.get(item.path, len(SHARED)), first_shared(item))
    items.sort(key=lambda item: (of_file[item.path], str(item.path), first_shared(item)))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` that `make` fills, once for all workers of pytest-xdist."""
    base = factory.getbasetemp()
    folder = (base.parent if WORKER else base) / name
    with filelock.FileLock(f"{folder}.lock"):
        if not Path(f"{folder}.made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            Path(f"{folder}.made").touch()
    return folder


@pytest.fixture(autouse=True)
def as_at_the_start(request: pytest.FixtureRequest) -> None:
    """No test sees what another left: torch's number of threads, or a Ray where it asks for none.

    A verb that finds a Ray in its process scans tables on it, in processes that know nothing of a monkeypatch here.
    """
    torch.set_num_threads(1 if WORKER else 2)
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and "local_ray" not in request.fixturenames:
        ray.shutdown()


@pytest.fixture(scope="session")
def demo_formatter():
    return load_formatter(CHECKPOINT)


@pytest.fixture(scope="session")
def demo_model():
    return load_model(CHECKPOINT, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def chosen(tmp_path_factory: pytest.TempPathFactory, demo_model: Any, demo_formatter: Any) -> Path:
    """300 demo samples: samples/, scores/ and selection/, of which p = 60 % are kept and masked. Not to be changed."""
    from tests.selection.made import write_selected

    def make(out: Path) -> None:
        write_selected(out, demo_model, demo_formatter, samples=300, p=60)

    return made_once(tmp_path_factory, "chosen", make)


@pytest.fixture(scope="session")
def gemma_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("models") / "gemma"
    tiny_models.write_gemma(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def qwen_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("models") / "qwen"
    tiny_models.write_qwen(str(folder), heads=2 if vllm_installed() else 4)
    return str(folder)


@pytest.fixture(scope="session")
def vllm_engine() -> Callable[[str], Any]:
    """The real vLLM over a checkpoint, one engine a checkpoint for the whole run."""
    from vig_ray.scoring.engines.load import load_engine

    engines: dict[str, Any] = {}

    def get(folder: str) -> Any:
        if folder not in engines:
            engines[folder] = load_engine(
                "vllm",
                model=folder,
                template="auto",
                max_length=1023,
                dtype="float32",
                device="cpu",
                batch_tokens=1024,
                vllm=VLLM_OPTIONS,
            )
        return engines[folder]

    return get


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window. Not longer than a module: its event loop is in the way of others."""
    from playwright.sync_api import sync_playwright

    from tests.browser import CHROMIUM, QUIET

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


@pytest.fixture(scope="session")
def preforked() -> Iterator[None]:
    """Ray's workers start at once; not vLLM's, which has its own order in which it loads things."""
    with contextlib.nullcontext() if vllm_installed() else prefork.server():
        yield


@pytest.fixture(scope="session")
def start_ray(preforked: None, s3: Any) -> Iterator[Callable[[], None]]:
    """Starts a Ray of 8 CPUs in this process where there is none; its workers know the object store `s3`."""
    import ray

    from vig_ray import cluster

    def start() -> None:
        if ray.is_initialized() and ray.cluster_resources().get("CPU") == 8:
            return
        ray.shutdown()
        cluster.start(num_cpus=8, object_store_memory=300 * 2**20)

    yield start
    ray.shutdown()


@pytest.fixture(scope="module")
def local_ray(start_ray: Callable[[], None]) -> None:
    """A Ray of 8 CPUs in this process: one for all tests, made again where a module left another or none."""
    start_ray()


@pytest.fixture(scope="session")
def s3() -> Iterator[Callable[[], Any]]:
    """An S3-compatible server on this machine; its address and keys are in the environment while it runs."""
    import boto3
    from moto.server import ThreadedMotoServer

    from vig_ray import storage

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    patch = pytest.MonkeyPatch()
    for name, value in settings.items():
        patch.setenv(name, value)
    storage._s3.cache_clear()
    yield lambda: boto3.client("s3", endpoint_url=settings["AWS_ENDPOINT_URL"], region_name="us-east-1")
    patch.undo()
    storage._s3.cache_clear()
    server.stop()
