"""How lmms-eval asks a model: through vLLM's OpenAI-compatible server, or by its own wrapper of transformers' class.

The server is the vLLM of the Python that runs `vig eval`, started for one model and all its tasks. The wrappers answer
one question after the other; lmms-eval has one for each family, and most run in bfloat16 whatever is asked for.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vig_ray.errors import StageError
from vig_ray.evaluation.lmms.child import last_words, running
from vig_ray.model.checkpoint import config_of, local_folder

WRAPPERS = {
    "llava": "llava_hf",
    "llava_next": "llava_hf",
    "llava_onevision": "llava_hf",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "qwen3_vl_moe": "qwen3_vl",
    "qwen3_5": "qwen3_5",
    "internvl": "internvl_hf",
    "mllama": "llama_vision",
    "mistral3": "mistral3_vl",
}
"""lmms-eval's wrapper of each `model_type` whose wrapper runs with our transformers."""
_TAKE_DTYPE = ("llava_hf", "llama_vision")
_TAKE_TRUST = ("llava_hf", "llama_vision", "internvl_hf")
_SERVED = "vig-ray"  # the model's name at its server
_AT_ONCE = 64  # requests
_SPECIAL = frozenset(",'\"{}[]")  # lmms-eval takes its arguments apart at these


@dataclass(frozen=True)
class Server:
    """vLLM's server with a model. `log`: the file that has what it says."""

    address: str
    process: subprocess.Popen[bytes]
    log: str

    @property
    def ended(self) -> str | None:
        """Why nobody answers any more, in one line; None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        how = f"status {status}" if status >= 0 else f"signal {-status}"
        return f"vLLM's server ended with {how}: {last_words(self.log)} (all of it: {self.log})"


@dataclass(frozen=True)
class Asked:
    """How a model is asked: lmms-eval's name of its class, and the arguments that it gets. `server`: that answers, if
    one does."""

    wrapper: str
    arguments: Mapping[str, Any]
    device: str
    batch_size: str = "1"
    server: Server | None = None

    def words(self) -> list[str]:
        """As lmms-eval's command has it."""
        given = ",".join(f"{name}={value}" for name, value in self.arguments.items())
        words = {"model": self.wrapper, "model_args": given, "device": self.device, "batch_size": self.batch_size}
        return [word for name, value in words.items() for word in (f"--{name}", value)]


def wrapped(checkpoint: str, given: str | None, *, device: str, dtype: str | None, trust_remote_code: bool) -> Asked:
    """A model asked by lmms-eval's own wrapper. `given`: "NAME[,ARGUMENT=VALUE...]", the user's choice of it.

    Raises StageError where lmms-eval has none for the model, or can't take what is asked for.
    """
    folder = local_folder(checkpoint, weights=True)
    if _SPECIAL & set(folder):
        raise StageError(f"{folder}: lmms-eval takes no path with a comma, quote or bracket in it; rename or link it")
    name, _, rest = (given or "").partition(",")
    if not name:
        kind = str(config_of(folder).model_type)
        if kind not in WRAPPERS:
            raise StageError(
                f"{checkpoint}: no wrapper of lmms-eval is known to run {kind} models here; take --engine vllm, or "
                "name one, --lmms-wrapper NAME"
            )
        name = WRAPPERS[kind]
    # In lmms-eval's default, "", transformers 5 sees no device.
    arguments: dict[str, Any] = {"pretrained": folder, "device_map": device}
    if name in _TAKE_DTYPE:
        arguments["dtype"] = dtype or "auto"
    elif dtype not in (None, "bfloat16") and not given:
        raise StageError(
            f"--dtype {dtype}: lmms-eval's {name} runs in bfloat16 alone; leave it out, or take --engine vllm"
        )
    if trust_remote_code and name in _TAKE_TRUST:
        arguments["trust_remote_code"] = True
    for each in filter(None, rest.split(",")):
        option, equals, value = each.partition("=")
        if not equals:
            raise StageError(f"--lmms-wrapper {given}: {each}: takes NAME[,ARGUMENT=VALUE...]")
        arguments[option] = value
    return Asked(name, arguments, device, arguments.pop("batch_size", "1"))


def served(server: Server) -> Asked:
    """A model that answers at a server."""
    arguments = {"model_version": _SERVED, "base_url": server.address, "api_key": "none", "num_cpus": _AT_ONCE}
    return Asked("async_openai", arguments, "cpu", server=server)


@contextmanager
def serving(
    checkpoint: str,
    log: str,
    *,
    dtype: str | None,
    trust_remote_code: bool,
    options: Mapping[str, Any],
    patience: float,
) -> Iterator[Server]:
    """vLLM's server with a model until the end of the block.

    `options`: of vLLM's engine. `patience`: seconds to start in. Raises StageError where it doesn't start.
    """
    folder = local_folder(checkpoint, weights=True)
    port = _free_port()
    # `vllm serve` asks for the package's name, which the build for CPUs hasn't got.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", _SERVED, "--no-enable-log-requests"]
    if dtype is not None:
        command += ["--dtype", dtype]
    if trust_remote_code:
        command += ["--trust-remote-code"]
    for name, value in options.items():
        command += _flag(name, value)
    environment = {"VLLM_NO_USAGE_STATS": "1"} if "VLLM_NO_USAGE_STATS" not in os.environ else {}
    with running(command, log, environment) as process:
        _wait(process, f"http://127.0.0.1:{port}/health", log, patience)
        yield Server(f"http://127.0.0.1:{port}/v1", process, log)


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], health: str, log: str, patience: float) -> None:
    """Until the server answers. Raises StageError where it ends first, or takes too long."""
    until = time.monotonic() + patience
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < until:
        if process.poll() is not None:
            raise StageError(f"vLLM's server ended before it was ready: {last_words(log)} (all of it: {log})")
        try:
            with opener.open(health, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, http.client.HTTPException, OSError):
            pass
        time.sleep(0.5)
    raise StageError(f"vLLM's server wasn't ready after {patience:.0f} s: {last_words(log)} (all of it: {log})")
