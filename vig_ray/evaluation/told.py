"""What a person is told of data, once."""

from __future__ import annotations

import functools
import logging

log = logging.getLogger(__name__)


@functools.cache
def warn_once(line: str) -> None:
    """Log a line once in this process, though the data is read more than once."""
    log.warning("%s", line)
