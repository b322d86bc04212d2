"""Ray is as vig_ray/compat/ray.py takes it to be. What fails here names what a release has changed. Starts no Ray."""

from __future__ import annotations

import inspect
import logging
import mmap
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pytest
import ray

from vig_ray.compat import ray as compat
from vig_ray.errors import StageError


def test_it_is_known_whether_this_process_started_ray() -> None:
    from ray._private import node, worker

    assert hasattr(worker, "_global_node"), "ray._private.worker._global_node is gone: see started_here"
    assert list(inspect.signature(node.Node.is_head).parameters) == ["self"], "Node.is_head has changed"
    assert compat.started_here() is ray.is_initialized()  # no test joins another's Ray


def test_what_ray_prints_of_lost_machines_goes_to_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from ray._private import worker

    stop = threading.Event()

    class Subscriber:
        """Has one message for Ray's own thread, and then ends it."""

        def subscribe(self) -> None: ...

        def poll(self) -> tuple[None, dict[str, Any]]:
            stop.set()
            return None, {"job_id": None, "error_message": "a machine was lost"}

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)  # put back at the end
    compat.log_node_messages(logging.getLogger("canary"))
    ours = SimpleNamespace(gcs_error_subscriber=Subscriber(), current_job_id=ray.JobID.nil())
    with caplog.at_level(logging.DEBUG, logger="canary"):
        worker.listen_error_messages(ours, stop)
    assert "a machine was lost" in caplog.text, "listen_error_messages doesn't print by print_to_stdstream any more"
    assert "a machine was lost" not in capsys.readouterr().out


def test_ray_init_takes_a_metrics_port() -> None:
    """It refuses arguments that it doesn't know before it starts anything, and names them."""
    with pytest.raises(RuntimeError, match="Unknown keyword") as refused:
        ray.init("local", **compat.metrics_port_option(1), _no_such_argument=1)
    assert "_no_such_argument" in str(refused.value)
    assert "metrics" not in str(refused.value), "ray.init has no _metrics_export_port any more"


def test_rays_core_has_a_limit_on_starting_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("RAY_worker_maximum_startup_concurrency", raising=False)
    compat.allow_worker_starts(7)
    assert os.environ.pop("RAY_worker_maximum_startup_concurrency") == "7"
    raylet = Path(ray.__file__).parent / "core/src/ray/raylet/raylet"
    with open(raylet, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
        assert code.find(b"worker_maximum_startup_concurrency") >= 0, "Ray's core has no such setting any more"


def test_ray_init_can_be_kept_from_starting_what_nobody_needs() -> None:
    """tests/test_cluster.py sees what a Ray that is started so has."""
    from ray._private import node, parameter, services, worker

    before = parameter.RayParams, services.start_api_server
    with compat.without_helpers():
        params = parameter.RayParams(num_cpus=1)
        assert (params.num_cpus, params.no_monitor, params.include_log_monitor) == (1, True, False)
    assert (parameter.RayParams, services.start_api_server) == before
    taken = list(inspect.signature(services.start_api_server).parameters)[:5]
    assert taken == ["include_dashboard", "raise_on_failure", "host", "gcs_address", "cluster_id_hex"]
    assert "ray._private.parameter.RayParams(" in inspect.getsource(worker.init), "RayParams isn't ray.init's"
    assert "ray._private.services.start_api_server(" in inspect.getsource(node.Node.start_api_server)


def test_the_environment_bounds_the_actors_for_footers(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.data._internal.datasource_v2.formats.parquet.footer_file_indexer import FooterFileIndexer

    monkeypatch.delenv("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", raising=False)
    assert FooterFileIndexer(ignore_missing_paths=False)._num_actors == 32, "cluster.footer_readers never asks for more"
    with compat.parquet_footer_actors(3):
        assert FooterFileIndexer(ignore_missing_paths=False)._num_actors == 3


def test_checkpoints_and_files_of_blocks_are_named_as_they_were(tmp_path: Path) -> None:
    """A block as Ray Data writes it: a pending checkpoint, the data, the commit."""
    from ray.data._internal.datasource.parquet_datasink import ParquetDatasink
    from ray.data._internal.execution.interfaces import TaskContext
    from ray.data._internal.planner.checkpoint.plan_write_op import _generate_base_filename
    from ray.data._internal.planner.plan_write_op import WRITE_UUID_KWARG_NAME
    from ray.data.checkpoint import CheckpointConfig
    from ray.data.checkpoint.checkpoint_writer import CheckpointWriter

    rows = pa.table({"sample_key": ["a", "b"]})
    local = pyarrow.fs.LocalFileSystem()
    (tmp_path / "checkpoint").mkdir()
    config = CheckpointConfig("sample_key", str(tmp_path / "checkpoint"), override_filesystem=local)
    sink = ParquetDatasink(str(tmp_path / "data"), filesystem=local, filename_provider=compat.file_names("run"))
    context = TaskContext(task_idx=3, op_name="write", kwargs={WRITE_UUID_KWARG_NAME: "of-this-write"})

    def file(folder: str) -> str:
        (found,) = (tmp_path / folder).iterdir()
        return str(found)

    writer = CheckpointWriter.create(config)
    pending = writer.write_pending_checkpoint(rows["sample_key"], _generate_base_filename(sink, context))
    assert compat.committed_block(file("checkpoint")) is None, f"not seen as pending: {file('checkpoint')}"
    sink.on_write_start(schema=rows.schema)
    sink.write([rows], context)
    assert Path(file("data")).name.startswith("run_"), "files don't begin with the FilenameProvider's dataset_uuid"
    writer.commit_checkpoint(pending)
    assert compat.committed_block(file("checkpoint")) == compat.written_block(file("data"))


def test_the_text_of_rays_errors_is_made_of_tracebacks() -> None:
    """In a worker a StageError led to another error; the driver has the text, and the cause."""
    try:
        try:
            raise StageError("--model: not there")
        except StageError as error:
            raise ValueError("two\n    lines of it") from error
    except ValueError as error:
        cause, text = error, traceback.format_exc()
    raised = ray.exceptions.RayTaskError("work", text, cause, ip="127.0.0.1").as_instanceof_cause()
    assert isinstance(raised, ray.exceptions.RayError)
    assert compat.errors_in_text(raised) == [
        "vig_ray.errors.StageError: --model: not there",
        "ValueError: two lines of it",
    ]
    assert compat.cause_of(raised) is cause, "RayTaskError.cause isn't what the worker raised"
    assert compat.cause_of(cause) is cause.__cause__


def test_ray_train_tells_what_workers_raised() -> None:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus

    first, later = ValueError("why"), RuntimeError("a worker was lost")
    status = {
        1: WorkerStatus(running=False, error=UserExceptionWithTraceback(first, "a traceback")),
        2: WorkerStatus(running=False, error=later),
    }
    error = WorkerGroupPollStatus(status).get_worker_group_error()
    assert compat.worker_errors(error) == [first, later], "WorkerGroupError.worker_failures holds something else"
    assert compat.worker_errors(ValueError("of the driver")) == []


def test_what_is_alpha_in_ray_train_and_data_is_still_there() -> None:
    import ray.train
    from ray.data.exceptions import ExecutionTimeoutError

    assert not inspect.signature(ray.train.get_preemption_info).parameters, "get_preemption_info: see being_preempted"
    assert ray.train.ScalingConfig(num_workers=(1, 2), elastic_resize_monitor_interval_s=5).num_workers == (1, 2)
    assert issubclass(ExecutionTimeoutError, Exception)
    assert hasattr(ray.data.DataContext(), "execution_no_progress_timeout_s"), "a DataContext: see pipeline.py"


def test_uploads_are_logged_by_the_modules_that_are_hidden() -> None:
    from ray._private.runtime_env import packaging
    from ray.dashboard.modules import dashboard_sdk
    from ray.dashboard.modules.job import sdk

    compat.hide_uploads()
    for logger in (packaging.default_logger, dashboard_sdk.logger, sdk.logger):
        assert not logger.isEnabledFor(logging.INFO), f"{logger.name} isn't one that hide_uploads names"


def test_serve_asks_the_ingress_for_its_application() -> None:
    from ray import serve
    from ray.serve._private.replica import SERVE_BUILD_ASGI_APP_METHOD

    class Ingress:
        def build(self) -> None: ...

    with pytest.raises(ValueError, match=SERVE_BUILD_ASGI_APP_METHOD):
        serve.ingress()(Ingress)
    made = compat.asgi_ingress("build")(Ingress)
    asked = getattr(made, SERVE_BUILD_ASGI_APP_METHOD, None)
    assert asked is Ingress.build, f"Serve asks {SERVE_BUILD_ASGI_APP_METHOD} now: see asgi_ingress"
