"""Ray's workers as forks of one process that has imported torch and transformers.

A worker that prepares or scores imports them first, which takes longer than all else in most tests here. Ray starts
its workers with the `py_executable` of a job's runtime environment: here that is `stand_in.py`, which has this file's
server fork the worker in its place, hands it its arguments, environment and standard streams, and lives as long as it
does. Where the machine's Ray is started by a test's process or by `vig`, `setup_worker.py` has it done at once. What a
worker is and does stays Ray's own.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

SOCKET = "VIG_TESTS_PREFORK"
STAND_IN = os.path.join(os.path.dirname(__file__), "stand_in.py")
SETUP_WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "setup_worker.py")

# Not ray, nor what imports it: a worker loads it itself. Processes forked after it would all make the same random ids.
MODULES = (
    "vig_ray", "torch", "transformers.models.auto.modeling_auto", "transformers.models.llava.modeling_llava",
    "transformers.models.auto.processing_auto", "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama", "sklearn.metrics", "pandas", "pyarrow.parquet", "cv2", "PIL.Image",
    # What the stages' workers load of this project, and what ray itself does of others.
    "vig_ray.dataset.importing", "vig_ray.scoring.text_prepare", "vig_ray.scoring.score", "vig_ray.scoring.text_pass",
    "vig_ray.scoring.engines.check", "vig_ray.evaluation.prepare", "vig_ray.evaluation.answer",
    "vig_ray.evaluation.mark", "vig_ray.measuring.measure", "vig_ray.training.worker",
    "requests", "jsonschema", "google.protobuf.json_format", "click", "msgpack", "attr", "yaml",
)  # fmt: skip


def hook(runtime_env: dict[str, Any] | None) -> dict[str, Any]:
    """What RAY_RUNTIME_ENV_HOOK names: Ray calls it with the runtime environment of a job that begins, before it starts
    a Ray for it."""
    from ray._private import ray_constants

    ray_constants.SETUP_WORKER_FILENAME = SETUP_WORKER  # a name beside Ray's file, or another file's whole path
    return {"py_executable": f"{sys.executable} -I -S {STAND_IN} {os.environ[SOCKET]}"} | (runtime_env or {})


@contextlib.contextmanager
def server() -> Iterator[None]:
    """Serve forks to all jobs of this process, and of those that have its environment, from now on."""
    with tempfile.TemporaryDirectory(prefix="prefork-") as folder, pytest.MonkeyPatch.context() as patch:
        path = os.path.join(folder, "socket")
        patch.setattr("ray._private.ray_constants.SETUP_WORKER_FILENAME", SETUP_WORKER)  # of machines added to clusters
        running = subprocess.Popen([sys.executable, __file__, path], stdin=subprocess.PIPE)
        patch.setenv(SOCKET, path)
        patch.setenv("RAY_RUNTIME_ENV_HOOK", "tests.prefork.hook")
        # A Ray begins with as many workers as it has CPUs, which no job here takes: theirs are forks.
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        try:
            yield
        finally:
            running.communicate()  # closes its standard input, which ends it


def descendants(pid: int) -> list[psutil.Process]:
    """All processes that a process started, those that were forked in the place of others among them."""
    folder = os.path.dirname(os.environ.get(SOCKET, ""))
    processes = {}  # the server may itself be one of those that `pid` started
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError, ValueError), open(f"{folder}/{process.pid}") as file:
            process = psutil.Process(int(file.read()))
        processes[process.pid] = process
    return list(processes.values())


def serve(path: str) -> None:
    """Until standard input ends. One line of JSON and three file descriptors make a fork."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    ready = selectors.DefaultSelector()
    ready.register(sys.stdin.fileno(), selectors.EVENT_READ)
    ready.register(listener, selectors.EVENT_READ)
    forks: dict[int, socket.socket] = {}
    while True:
        for key, _ in ready.select(timeout=0.05):
            if key.fd == sys.stdin.fileno():
                for pid in forks:
                    os.kill(pid, signal.SIGKILL)
                return
            if key.fileobj is listener:
                client, _ = listener.accept()
                try:
                    pid = fork(client, listener, ready)
                except (OSError, ValueError):  # the program that stood for the worker was killed meanwhile
                    client.close()
                    continue
                forks[pid] = client
                (asked_by,) = struct.unpack("i8x", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                with open(f"{os.path.dirname(path)}/{asked_by}", "w") as file:  # for `descendants`
                    file.write(str(pid))
                ready.register(client, selectors.EVENT_READ, pid)
            else:  # the program that stands for the worker was killed
                ready.unregister(key.fileobj)
                if key.data in forks:
                    os.kill(key.data, signal.SIGKILL)
        while forks:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            client = forks.pop(pid)
            with contextlib.suppress(OSError, KeyError):
                ready.unregister(client)
            with contextlib.suppress(OSError):
                client.sendall(bytes([os.waitstatus_to_exitcode(status) % 256]))
            client.close()


def fork(client: socket.socket, listener: socket.socket, ready: selectors.BaseSelector) -> int:
    """The new process's id; in the new process, run what was asked for and end."""
    size, streams, _, _ = socket.recv_fds(client, 8, 3)
    text = b""
    while len(text) < int.from_bytes(size, "big"):
        part = client.recv(1 << 20)
        if not part:
            break
        text += part
    asked = json.loads(text)
    pid = os.fork()
    if pid:
        for descriptor in streams:
            os.close(descriptor)
        return pid
    status = 1
    try:
        os.setpgid(0, 0)  # Ray kills the process group of a worker that ends
        ready.close()
        listener.close()
        client.close()
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        sys.argv = asked["arguments"]
        searched = asked["environment"].get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [os.path.dirname(sys.argv[0]), *(folder for folder in searched if folder not in sys.path)]
        sys.modules.pop("__main__")
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:  # never back into the server
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # this checkout's vig_ray
    serve(sys.argv[1])
