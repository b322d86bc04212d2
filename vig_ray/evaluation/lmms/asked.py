"""What a command asks of lmms-eval, from the options of `vig eval`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vig_ray.errors import StageError
from vig_ray.evaluation.asked import LMMS, Model
from vig_ray.evaluation.lmms.run import FOLDER, LmmsOptions, check
from vig_ray.scoring.engines.load import choose_engine, vllm_installed


def planned(config: Any, models: Sequence[Model]) -> LmmsOptions | None:
    """How the tasks of lmms-eval are asked; None where there are none. Raises StageError where they can't be."""
    tasks = of_lmms(config.tasks)
    if not tasks:
        return None
    _check_words(config, models)
    options = options_of(config)
    check(tasks, [model.checkpoint for model in models], options)
    return options


def _check_words(config: Any, models: Sequence[Model]) -> None:
    if FOLDER in (model.name for model in models):
        raise StageError(f"--model {FOLDER}: no model can be called {FOLDER}; name it, as in --model mine={FOLDER}")
    all_of_lmms = all(task.startswith(LMMS) for task in config.tasks)
    for option in ("data", "images", "task_options"):
        for name, value in getattr(config, option).items():
            if name.startswith(LMMS) or all_of_lmms:
                raise StageError(
                    f"--{option.replace('_', '-')} {name or value}: not for tasks of lmms-eval, which finds its data "
                    "by itself; --lmms-include DIR takes tasks of your own"
                )


def of_lmms(tasks: Sequence[str]) -> list[str]:
    """Those that are lmms-eval's, without their prefix."""
    return [task.removeprefix(LMMS) for task in tasks if task.startswith(LMMS)]


def options_of(config: Any) -> LmmsOptions:
    """What an EvalConfig says of them. Raises StageError for options that lmms-eval can't follow."""
    if config.decoding is not None:
        raise StageError(
            f"--decoding {config.decoding}: not with tasks of lmms-eval ({LMMS}...), which writes by itself"
        )
    if config.engine not in ("auto", "torch", "vllm"):
        raise StageError(f"--engine {config.engine}: tasks of lmms-eval ({LMMS}...) take torch or vllm")
    device = _device(config.device)
    engine = "torch" if config.lmms_wrapper else choose_engine(config.engine, device=device, references=())[0]
    if engine == "vllm" and not vllm_installed():
        raise StageError("--engine vllm: vLLM isn't installed here; take --engine torch, lmms-eval's own wrappers")
    return LmmsOptions(
        through=engine,
        device=device,
        environment=config.lmms_environment,
        include=config.lmms_include,
        wrapper=config.lmms_wrapper,
        dtype=config.dtype,
        vllm=config.vllm if engine == "vllm" else {},
        trust_remote_code=config.trust_remote_code,
        limit=config.limit,
        seed=config.seed % (1 << 32),
        generation=_generation(config),
        timeout=config.lmms_timeout,
    )


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _generation(config: Any) -> dict[str, Any]:
    """What of the command replaces the tasks' own way to write."""
    found: dict[str, Any] = {}
    if config.max_new_tokens is not None:
        found["max_new_tokens"] = config.max_new_tokens
    if config.temperature:
        found |= {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p}
    return found
