"""Runs in lmms-eval's environment, by its path, since nothing of ours needs to be installed there:

    python -P inside.py REPORT tasks [--include_path DIR]         the names of all tasks
    python -P inside.py REPORT run ARGUMENTS-OF-LMMS-EVAL ...     tasks, as lmms-eval's own command

What came of it is written to the file REPORT, as JSON. lmms-eval's own command ends with status 0 whatever happens,
and counts answers that a model failed to give as wrong; so here exceptions are kept, and such failures counted.
"""

from __future__ import annotations

import json
import os
import re
import sys
from types import ModuleType
from typing import Any

_NOT_ANSWERED = re.compile(r"Error (.*) in generating|All \d+ attempts failed\. Last error: (.*)", re.DOTALL)


def main() -> int:
    """Do what the arguments say; the exit status."""
    report, what, *arguments = sys.argv[1:]
    # Behind everything that is installed there.
    sys.path.append(os.path.abspath(os.path.join(__file__, *[os.pardir] * 4)))
    import vig_ray  # noqa: F401 - lets torchvision be imported beside any torch

    _without_decord()
    sys.argv = ["lmms-eval", *arguments]
    outcome: dict[str, Any] = {"error": None}
    try:
        outcome |= _tasks() if what == "tasks" else _run()
    except (Exception, SystemExit) as error:
        outcome["error"] = _cause(error)
        raise
    finally:
        with open(f"{report}.part", "w", encoding="utf-8") as file:
            json.dump(outcome, file)
        os.replace(f"{report}.part", report)
    return 0


def _without_decord() -> None:
    """Several wrappers import decord, of which there are no wheels for most machines; only videos need it."""
    try:
        import decord  # noqa: F401
    except ImportError:
        sys.modules["decord"] = ModuleType("decord")
        sys.modules["decord"].__dict__.update(VideoReader=None, cpu=None)


def _tasks() -> dict[str, Any]:
    from lmms_eval.__main__ import parse_eval_args
    from lmms_eval.tasks import TaskManager

    _, args = parse_eval_args()
    return {"tasks": TaskManager("ERROR", include_path=args.include_path).all_tasks}


def _run() -> dict[str, Any]:
    from lmms_eval.__main__ import cli_evaluate_single, parse_eval_args
    from loguru import logger

    failures: list[str] = []

    def count(message: Any) -> None:
        if found := _NOT_ANSWERED.search(message.record["message"]):
            failures.append(found[1] or found[2])

    _, args = parse_eval_args()
    logger.add(count, level="ERROR")
    cli_evaluate_single(args)
    return {"not_answered": len(failures), "why": failures[0] if failures else None}


def _cause(error: BaseException) -> str:
    """The exception at the bottom: lmms-eval tries much again, and raises what says only that."""
    while error.__cause__ is not None:
        error = error.__cause__
    if "messages is used for generation only" in str(error):
        return "it compares likelihoods, which lmms-eval asks none of these models for"
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
