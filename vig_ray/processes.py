"""Work for several processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from vig_ray.errors import StageError


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def processes(count: int, option: str) -> Iterator[Callable[[Sequence[Callable[[], Any]]], Iterator[Any]]]:
    """Gives a function that calls each of a list, which can be pickled, and gives what they return as it comes.

    `option`: which a message names where a process ends by itself; then, and where a call raises, StageError.
    """
    # A process that has threads or an S3 client can't be forked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_die_by_interrupt) as pool:

        def call_all(work: Sequence[Callable[[], Any]]) -> Iterator[Any]:
            with _no_main_module():
                waiting = [pool.submit(each) for each in work]  # which starts the processes
            try:
                for done in as_completed(waiting):
                    yield done.result()
            except BrokenProcessPool as error:
                raise StageError(
                    f"a process of {option} ended by itself: there may be too little memory; {option} 1 needs the least"
                ) from error
            finally:
                for each in waiting:
                    each.cancel()

        yield call_all


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Processes that are started meanwhile don't import the caller's script, which needn't be made for that.

    What they call lies in modules of ours.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _die_by_interrupt() -> None:
    # Ctrl-C reaches every process of the terminal; this one needn't print where it was.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
