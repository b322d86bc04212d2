"""Faults of vLLM's engine: noticing that its process is gone, and telling why in one line."""

from __future__ import annotations

import os
import re
import stat
import threading
import time
import weakref
from typing import Any

from vig_ray.compat.vllm import has_process, process_died, wake
from vig_ray.storage import one_line

_TOLD = re.compile(r"\b(\w+(?:\.\w+)*(?:Error|Exception)): (.+)")
_SPREAD = "or spread the model over GPUs with --vllm tensor_parallel_size=2"
_ADVICE = (
    (
        re.compile(r"No available memory for the cache|KV cache is needed"),
        f"lower --max-length or --batch-tokens, raise --vllm gpu_memory_utilization=0.95, {_SPREAD}",
    ),
    (
        re.compile(r"desired (?:GPU|CPU) memory utilization"),
        "set --vllm gpu_memory_utilization to the share that is free, or end the other programs",
    ),
    (
        re.compile(r"out of memory|OutOfMemory|can't allocate memory", re.IGNORECASE),
        f"lower --batch-tokens, or --vllm gpu_memory_utilization=0.8, which leaves more outside the cache, {_SPREAD}",
    ),
)
_READ_BACK = 1 << 18
_LOOK_EVERY_S = 0.5
_NO_CAUSE = ("See stack trace", "See root cause", "EngineCore encountered")


OWNER = "VIG_RAY_VLLM_OWNER"
"""Environment variable: the process that an engine works for, and ends with."""


def wake_when_dead(core: Any) -> None:
    """Make a dead engine process raise EngineDeadError in whoever waits for its next output.

    It would wait for ever otherwise. An in-process engine needs no watching.
    """
    if has_process(core):
        threading.Thread(target=_watch, args=(weakref.ref(core),), daemon=True, name="vllm-death").start()


def _watch(reference: weakref.ref[Any]) -> None:
    while (core := reference()) is not None:
        if process_died(core):
            wake(core)
            return
        del core  # it may be garbage by the next look
        time.sleep(_LOOK_EVERY_S)


def cause_of(error: BaseException) -> str:
    """One line for an error of vLLM's, with the options to change where memory ran out.

    An engine in a process of its own says why it died on standard error only; under Ray that is a file, and the
    last error in it is the cause.
    """
    text = f"{type(error).__name__}: {one_line(error)}"
    if any(words in text for words in _NO_CAUSE):
        text = _logged_soon() or "its process ended without a word, as when the kernel kills for want of memory"
    advice = next((f"; {advice}" for pattern, advice in _ADVICE if pattern.search(text)), "")
    return text[:500] + advice


def _logged_soon() -> str | None:
    """The last error logged, waiting a little: an engine may announce its death before it has told everything."""
    for _ in range(5):
        if (cause := _last_error_logged()) is not None:
            return cause
        time.sleep(_LOOK_EVERY_S)
    return None


def _last_error_logged() -> str | None:
    """The last "SomethingError: why" in this process's standard error, where that is a file."""
    try:
        if not stat.S_ISREG(os.fstat(2).st_mode):
            return None
        with open("/proc/self/fd/2", "rb") as file:
            file.seek(max(0, os.fstat(2).st_size - _READ_BACK))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        match = _TOLD.search(line)
        if match and not any(words in line for words in _NO_CAUSE):
            return f"{match[1].rpartition('.')[2]}: {' '.join(match[2].split())}"
    return None
