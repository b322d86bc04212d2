"""The time that a stage has taken, over all its tries: OUT/runs/NAME/spent.json while it has no record.

It is written every few seconds while the stage runs, so that a kill loses no more of it than that. What the stage ends
with is in its record, and the file goes.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from vig_ray.errors import StageError
from vig_ray.storage import absolute, exists, join, one_line, read_bytes, write_bytes
from vig_ray.study import record as records
from vig_ray.study.record import folder_of

FILE = "spent.json"
EVERY_S = 5.0


@dataclass(frozen=True)
class Spent:
    """Seconds over all tries, and those times the GPUs that were held. `attempt`: the name of the last try, by which
    the one who asked for it sees that it has begun."""

    seconds: float = 0.0
    gpu_seconds: float = 0.0
    attempt: str = ""


def read(out: str, name: str) -> Spent:
    """What a stage without a record of its end, or with one of a failure, has taken so far. Raises StageError."""
    where = join(folder_of(out, name), FILE)
    if exists(where).name == "File":
        try:
            return Spent(**json.loads(read_bytes(where)))
        except (ValueError, TypeError) as error:
            raise StageError(f"{where}: can't be read ({one_line(error)}); delete it, and the stage's time counts from "
                             "0") from error  # fmt: skip
    found = records.read(out, name)
    return Spent() if found is None else Spent(found.seconds, found.on_gpus)


@contextlib.contextmanager
def counted(out: str, name: str, gpus: int, attempt: str = "") -> Iterator[Callable[[], Spent]]:
    """Count the time of a try, and keep it; what is given tells the time so far, earlier tries among it."""
    before, began, over = read(out, name), time.monotonic(), threading.Event()

    def so_far() -> Spent:
        seconds = time.monotonic() - began
        return Spent(before.seconds + seconds, before.gpu_seconds + gpus * seconds, attempt)

    def keep() -> None:
        write_bytes(join(folder_of(out, name), FILE), json.dumps(asdict(so_far())).encode())

    def keep_on() -> None:
        while not over.wait(EVERY_S):
            with contextlib.suppress(OSError, StageError):  # a full disk is told by the stage itself
                keep()

    keep()
    keeper = threading.Thread(target=keep_on, daemon=True)
    keeper.start()
    try:
        yield so_far
    finally:
        over.set()
        keeper.join()
        with contextlib.suppress(OSError, StageError):
            keep()


def forget(out: str, name: str) -> None:
    """Delete the file of a stage whose record has the time."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(absolute(join(folder_of(out, name), FILE)))
