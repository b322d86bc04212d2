"""In the place of Ray's own setup_worker.py: it has a worker forked (`stand_in.py`) without loading ray first.

Ray starts a worker that has a runtime environment by `setup_worker.py`, which applies it and runs the worker. Loading
ray for that takes longer than all else of a forked worker's start. Here an environment that names `stand_in.py` and
nothing else needs no ray; any other one is left to Ray's program.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import stand_in

_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="


def main() -> None:
    """setup_worker.py WORKER ARGUMENTS..., two of which are the environment and the language."""
    given = sys.argv[1:]
    context = {name: value for name, value in _only(given, _CONTEXT, json.loads).items() if value}
    program = context.pop("py_executable", "").split()
    ours = len(program) > 1 and os.path.basename(program[-2]) == "stand_in.py"
    if ours and not context and _only(given, _LANGUAGE, str) == "PYTHON":
        worker = [each for each in given if not each.startswith((_CONTEXT, _LANGUAGE))]
        sys.argv = [program[-2], program[-1], *worker]
        stand_in.main()
    # Ray's lies beside the worker's program, which is the first argument but for the interpreter's own.
    folder = os.path.dirname(next(each for each in given if each.endswith(".py")))
    os.execv(sys.executable, [sys.executable, os.path.join(folder, "setup_worker.py"), *given])


def _only(given: Sequence[str], begin: str, read: Callable[[str], Any]) -> Any:
    """What `read` makes of the one argument that begins so; of none, what it makes of "{}"."""
    found = [each.removeprefix(begin) for each in given if each.startswith(begin)]
    return read(found[0] if len(found) == 1 else "{}")


if __name__ == "__main__":
    main()
