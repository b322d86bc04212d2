"""Gauges that are told again and again: Ray forgets what a gauge was set to after two of its reports."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_EVERY_S = 1.0  # the shortest time between two of Ray's reports


def keep_telling(gauge: Any, owner: T, value: Callable[[T], float]) -> None:
    """Set `gauge` to `value(owner)` every second, from a thread of its own, as long as anybody else has `owner`."""
    reference = weakref.ref(owner)

    def tell() -> None:
        while (there := reference()) is not None:
            gauge.set(value(there))
            del there
            time.sleep(_EVERY_S)

    threading.Thread(target=tell, name="gauge", daemon=True).start()
