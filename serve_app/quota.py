"""Limits a key: requests and tokens a second, samples a day, samples under way. Beyond one of them 429."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from serve_app.clients import Client
from serve_app.errors import TOO_MANY, RequestError
from serve_app.keys import Key
from serve_app.limits import Place, Places

_ROUNDING = 1e-9  # seconds: less than clocks tell apart, more than the sums below lose


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class _Bucket:
    """A token bucket: it fills by `rate` a second, up to one second's worth and at least 1, and may be in debt.

    It is stored as the moment when it will be full.
    """

    full_at = float("-inf")

    def wait(self, rate: float, cost: float, now: float) -> float:
        """Seconds until there is `cost` in it; for a cost of 0 until no debt is left."""
        return max(0.0, self.full_at - (max(rate, 1.0) - cost) / rate - now)

    def take(self, rate: float, cost: float, now: float) -> None:
        """Take `cost` out of it, or put it back where it is below 0."""
        self.full_at = (max(self.full_at, now) if cost > 0 else self.full_at) + cost / rate


class _Usage:
    """What a key has asked for."""

    def __init__(self, day: datetime.date) -> None:
        self.requests, self.tokens = _Bucket(), _Bucket()
        self.day, self.samples, self.under_way = day, 0, 0


class _Exceeded(NamedTuple):
    seconds: float
    kind: str
    message: str


class Share:
    """What one request holds of its key's limits: one sample until it is known how many the request has.

    `samples`: under way; `counted`: of its day.
    """

    def __init__(self, quotas: Quotas, key: Key | None) -> None:
        self._quotas, self.key, self.samples, self.counted = quotas, key, 1, 1

    def grow(self, samples: int) -> None:
        """Hold `samples`. Raises RequestError where they are beyond a limit."""
        if self.key is not None:
            self._quotas.grow(self.key, self.samples, samples)
        self.samples = self.counted = samples

    def take(self) -> bool:
        """Hold one more under way; False where the key has as many as it may. A stream's, whose samples `count`
        counts."""
        taken = self.key is None or self._quotas.take(self.key)
        self.samples += taken
        return taken

    def give(self) -> None:
        """Hold one less."""
        if self.key is not None:
            self._quotas.give(self.key)
        self.samples -= 1

    def count(self) -> None:
        """Count one more sample of a stream. Raises RequestError, 429, where a day or what is owed has no room."""
        if self.key is not None:
            self._quotas.count(self.key)
        self.counted += 1


class Quotas:
    """What each key has used of its limits in this process, by the key's name, which outlives a change of its hash.

    Each of `processes` ingresses has an equal share of every limit, rounded down, but at least one sample. Tokens are
    known only once a sample is prepared: they are charged then, and what a key owes is paid before its next request.
    `clock`: seconds; `now`: the time of day, of which a day's end in UTC is told.
    """

    def __init__(
        self,
        *,
        processes: int = 1,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime.datetime] = _now,
    ) -> None:
        self._processes, self._clock, self._now = processes, clock, now
        self._usage: dict[str, _Usage] = {}

    @contextmanager
    def hold(self, client: Client) -> Iterator[Share]:
        """A client's request of one sample, while it is under way.

        It counts unless it is answered 503, its samples unless it is answered 429 or 503 or has too many. Raises
        RequestError, 429 with Retry-After, where it is beyond a limit.
        """
        share, key = Share(self, client.key), client.key
        if key is None:
            yield share
            return
        usage = self._usage_of(key)
        self._check(key, usage, more=1)
        day, rate = usage.day, self._rate(key.requests_per_second)
        if rate is not None:
            usage.requests.take(rate, 1, self._clock())
        usage.samples += 1
        usage.under_way += 1
        try:
            yield share
        except RequestError as refusal:
            # A batch is read before it is known to be beyond a limit, so with 429 it stays a request.
            if refusal.status == 503 and rate is not None:
                usage.requests.take(rate, -1, self._clock())
            not_taken_on = refusal.status in (429, 503) or refusal.kind == TOO_MANY
            if not_taken_on and usage.day == day:
                usage.samples -= share.counted
            raise
        finally:
            usage.under_way -= share.samples

    def grow(self, key: Key, held: int, samples: int) -> None:
        """Count a request that counted `held` samples as `samples`. Raises RequestError where they are too many."""
        for name, limit, kind in (
            ("concurrency", self._whole(key.concurrency), "under way"),
            ("samples_per_day", self._whole(key.samples_per_day), "a day"),
        ):
            if limit is not None and samples > limit:
                message = f"{samples} samples, and {name} lets key {key.name!r} have {limit} {kind}"
                raise RequestError(422, TOO_MANY, f"{message}{self._here()}; send fewer at a time")
        usage = self._usage_of(key)
        if samples > held:
            self._check(key, usage, more=samples - held, next_request=False)
        usage.samples += samples - held
        usage.under_way += samples - held

    def at_once(self, key: Key | None) -> float:
        """The samples that a key may have under way here."""
        limit = self._whole(key.concurrency) if key is not None else None
        return math.inf if limit is None else limit

    def take(self, key: Key) -> bool:
        """One more sample of a key is under way, if it may."""
        usage = self._usage_of(key)
        may = usage.under_way < self.at_once(key)
        usage.under_way += may
        return may

    def give(self, key: Key) -> None:
        """One less is."""
        self._usage_of(key).under_way -= 1

    def count(self, key: Key) -> None:
        """Count a sample of a request that goes on. Raises RequestError where the key's day has no room for it, or it
        owes tokens."""
        usage = self._usage_of(key)
        no_more_at_once = key.model_copy(update={"concurrency": None, "requests_per_second": None})
        self._check(no_more_at_once, usage, more=1)
        usage.samples += 1

    def spend(self, client: Client, tokens: int) -> None:
        """Charge the tokens of a sample's prompts, both passes."""
        rate = self._rate(client.key.tokens_per_second) if client.key is not None else None
        if client.key is not None and rate is not None:
            self._usage_of(client.key).tokens.take(rate, tokens, self._clock())

    def _check(self, key: Key, usage: _Usage, *, more: int, next_request: bool = True) -> None:
        """Raise RequestError where `more` samples of a key are beyond a limit, with the time until none stands in the
        way. `next_request`: whether a request begins, so that the limits a second count as well."""
        by_second = self._by_second(key, usage)
        in_the_way = self._by_sample(key, usage, more) + (by_second if next_request else [])
        if not in_the_way:
            return
        # The whole request has to come again, so all that it will need is waited for.
        exceeded = max(in_the_way, key=lambda each: each.seconds)
        seconds = max(each.seconds for each in (*in_the_way, *by_second))
        told = f"{math.ceil(seconds * 1000 - _ROUNDING) / 1000:.3f}".rstrip("0").rstrip(".")
        retry_after = {"Retry-After": str(max(1, math.ceil(seconds - _ROUNDING)))}
        message = f"{exceeded.message}{self._here()}; try again in {told} seconds"
        raise RequestError(429, exceeded.kind, message, retry_after)

    def _by_second(self, key: Key, usage: _Usage) -> list[_Exceeded]:
        now, found = self._clock(), []
        for name, kind, limit, bucket, cost in (
            ("requests_per_second", "RequestsPerSecond", key.requests_per_second, usage.requests, 1),
            ("tokens_per_second", "TokensPerSecond", key.tokens_per_second, usage.tokens, 0),
        ):
            rate = self._rate(limit)
            if rate is not None and (seconds := bucket.wait(rate, cost, now)) > _ROUNDING:
                found.append(_Exceeded(seconds, kind, f"{name}: key {key.name!r} has {rate:g}"))
        return found

    def _by_sample(self, key: Key, usage: _Usage, more: int) -> list[_Exceeded]:
        found, day, at_once = [], self._whole(key.samples_per_day), self._whole(key.concurrency)
        if day is not None and usage.samples + more > day:
            now = self._now()
            midnight = datetime.datetime.combine(now.date(), datetime.time(), now.tzinfo) + datetime.timedelta(days=1)
            message = f"samples_per_day: key {key.name!r} has {day}, of which {usage.samples} are used"
            found.append(_Exceeded((midnight - now).total_seconds(), "SamplesPerDay", message))
        if at_once is not None and usage.under_way + more > at_once:
            # When one of them is done is not known.
            message = f"concurrency: key {key.name!r} may have {at_once} samples under way"
            found.append(_Exceeded(1.0, "Concurrency", message))
        return found

    def _usage_of(self, key: Key) -> _Usage:
        today = self._now().astimezone(datetime.UTC).date()
        usage = self._usage.setdefault(key.name, _Usage(today))
        if usage.day != today:
            usage.day, usage.samples = today, 0
        return usage

    def _rate(self, limit: float | None) -> float | None:
        return limit / self._processes if limit is not None else None

    def _whole(self, limit: int | None) -> int | None:
        return max(1, limit // self._processes) if limit is not None else None

    def _here(self) -> str:
        return f" in this process, one of up to {self._processes}" if self._processes > 1 else ""


class Admission:
    """The place and the share of a key's limits that a request holds."""

    def __init__(self, place: Place, share: Share) -> None:
        self._place, self._share = place, share

    @property
    def samples(self) -> int:
        """Under way."""
        return self._share.samples

    def grow(self, samples: int) -> None:
        """Hold both for `samples`. Raises RequestError where a limit or the places are too few."""
        self._share.grow(samples)
        self._place.grow(samples)

    def take(self) -> bool:
        """Hold both for one more sample; False where either can't be had now."""
        if not self._share.take():
            return False
        if self._place.take():
            return True
        self._share.give()
        return False

    def give(self) -> None:
        """Hold both for one less."""
        self._share.give()
        self._place.give()

    def count(self) -> None:
        """Count one more sample of a stream, after its first. Raises RequestError where the key has no more."""
        self._share.count()


@contextmanager
def admitted(client: Client, quotas: Quotas, places: Places) -> Iterator[Admission]:
    """A client's request, from before its body is read until its answer is there. Raises RequestError, 429 or 503.

    Its own limits come first: who is beyond them doesn't ask for a place.
    """
    with quotas.hold(client) as share, places.hold(client.name) as place:
        yield Admission(place, share)
