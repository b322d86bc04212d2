"""How often, and after which wait, a request is made again."""

from __future__ import annotations

import email.utils
import random
import time
from dataclasses import dataclass

from vig_ray.client.errors import ServerError

# Busy, or a proxy whose server is being replaced. A score asked for twice is the same score, so nothing speaks against
# asking again whatever became of the first request.
LATER = frozenset({429, 502, 503})
# No answer in time: a large request is rather made smaller, a small one is made again.
IN_TIME = frozenset({408, 504})

# No answer in time to a sample alone, so often: it's the sample's.
TRIES_IN_TIME = 5
# Of vig serve's 503 the one that would come again, and would cost it as many engines.
ENGINE_DIED = "EngineDied"

_FIRST_WAIT = 0.5
_LONGEST_WAIT = 30.0
_LONGEST_ASKED = 300.0


@dataclass(frozen=True)
class Retries:
    """`times`: tries after the first one."""

    times: int

    def wait(self, tries: int, error: Exception) -> float | None:
        """Seconds to wait after `tries` tries of which the last failed with `error`; None where it is not to be tried
        again: none is left, or the server asks to wait for longer than five minutes.

        What the server asks for is the least; beyond it waits double up to half a minute, and are shortened by chance,
        so that clients which were refused together don't come back together.
        """
        asked = error.retry_after or 0.0 if isinstance(error, ServerError) else 0.0
        if tries > self.times or asked > _LONGEST_ASKED:
            return None
        doubled = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(tries - 1, 16))
        return asked + doubled * random.uniform(0.5, 1.0)


def retry_after(header: str | None) -> float | None:
    """The seconds in a Retry-After header, which has a number or a date; None for none, and for what is neither."""
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        then = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, then.timestamp() - time.time())
