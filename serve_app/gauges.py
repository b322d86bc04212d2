"""Gauges that are told again and again: Ray forgets what a gauge was set to after two of its reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

_EVERY_S = 1.0  # the shortest time between two of Ray's reports


def keep_telling(gauge: Any, value: Callable[[], float]) -> None:
    """Set `gauge` to what `value` returns every second, from a thread of its own, as long as this process lives."""

    def tell() -> None:
        while True:
            gauge.set(value())
            time.sleep(_EVERY_S)

    threading.Thread(target=tell, name="gauge", daemon=True).start()
