"""Limits: samples under way, images and pixels of a request, and its time."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from serve_app.errors import RequestError, WholeRequestError, busy
from serve_app.prepare import image_error
from vig_ray.dataset.images import ImageError, image_size
from vig_ray.dataset.schema import Sample

_GONE_AFTER = 5.0
"""Seconds after which a client that was refused, and told to come again in one, is taken to have given up."""


class _Asking:
    """A client: places it holds, places it was refused, places set aside for it; when the last two lapse; its last turn
    at getting one, among those of all."""

    def __init__(self) -> None:
        self.held, self.refused, self.set_aside, self.until, self.turn = 0, 0, 0, 0.0, 0

    @property
    def share(self) -> int:
        """Places that nobody else can have."""
        return self.held + self.set_aside


class Place:
    """What one request holds: a place for one sample until it is known how many the request has. `client`: whose."""

    def __init__(self, places: Places, client: str) -> None:
        self._places, self._client, self.samples = places, client, 1

    def grow(self, samples: int) -> None:
        """Hold places for `samples`. Raises RequestError where the other requests have filled all meanwhile."""
        self._places.grow(self._client, self.samples, samples)
        self.samples = samples

    def take(self) -> bool:
        """Hold a place more; False where none is free for this client now, which is then kept one when it is."""
        taken = self._places.take(self._client)
        self.samples += taken
        return taken

    def give(self) -> None:
        """Hold one less."""
        self._places.give(self._client)
        self.samples -= 1


class Places:
    """The samples under way in this process, up to `total`, shared out among the clients that ask.

    A client that asks alone may have every place. Where all are taken a request is refused at once, since its body
    would have to be kept meanwhile, and its client is asked to come again. Whoever asks most often would then get every
    place that becomes free. So a free place is set aside for a client that was refused: for the one with the fewest
    places, held and set aside; of equal ones for the one whose last turn is longest ago. It stays set aside until that
    client comes again, or has not asked for five seconds. A client may also take a place that is set aside for another
    one, if it has fewer even then.

    So of n clients that want more each gets `total // n` places once as many have become free, and a client that wants
    fewer than that gets what it wants. One whose only obstacle is another's crowd of requests is refused until one of
    these is done, and let in when it next asks.

    A batch counts as all its samples once its body is read. The last request to come in may so go beyond `total`, or no
    batch could be larger than it; what is set aside for others stays so.
    """

    def __init__(self, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self.taken, self._clock = total, 0, clock
        self._set_aside = 0
        self._turns = itertools.count(1)
        self._clients: dict[str, _Asking] = {}

    @contextmanager
    def hold(self, client: str = "") -> Iterator[Place]:
        """A place, from before the body is read until the answer is there. Raises RequestError where none is free."""
        if not self._taken(client):
            raise self._refusal(client)
        place = Place(self, client)
        try:
            yield place
        finally:
            self._count(client, -place.samples)
            self._share_out()

    def grow(self, client: str, held: int, samples: int) -> None:
        """Count a request that held `held` places as `samples`. Raises RequestError where others have filled all."""
        self._share_out()
        if self.taken - held >= self._total:
            raise self._refusal(client)
        for _ in range(samples - held):
            self._take_set_aside(self._clients[client])
            self._count(client, 1)

    def take(self, client: str) -> bool:
        """A place more for a request that takes and gives them one by one; whether there was one."""
        taken = self._taken(client)
        if not taken:  # it asks again and again for the same one
            self._clients[client].refused = max(self._clients[client].refused, 1)
        return taken

    def give(self, client: str) -> None:
        """A place of such a request is free again."""
        self._count(client, -1)
        self._share_out()

    def _taken(self, client: str) -> bool:
        """Whether a place was free for this client, and is its own now."""
        self._share_out()
        asking = self._clients.setdefault(client, _Asking())
        asking.until = self._clock() + _GONE_AFTER
        if not self._take_set_aside(asking) and self.taken + self._set_aside >= self._total:
            return False
        asking.refused, asking.turn = max(0, asking.refused - 1), next(self._turns)
        self._count(client, 1)
        return True

    def _count(self, client: str, places: int) -> None:
        if places:  # who holds none may have been forgotten
            self._clients[client].held += places
            self.taken += places

    def _refusal(self, client: str) -> RequestError:
        asking = self._clients[client]
        asking.refused = min(asking.refused + 1, self._total)
        return busy(f"{self.taken} samples are under way; try again in a moment")

    def _take_set_aside(self, asking: _Asking) -> bool:
        """Whether a place that was set aside for this client, or for one with more, is this client's now."""
        owner = asking
        if not asking.set_aside:
            owner = max(
                (each for each in self._clients.values() if each.set_aside), key=lambda each: each.share, default=asking
            )
            if owner.share < asking.share + 2:
                return False
        owner.set_aside -= 1
        self._set_aside -= 1
        return True

    def _share_out(self) -> None:
        """Forget who has given up, and set free places aside for who was refused."""
        now = self._clock()
        for name, asking in list(self._clients.items()):
            if asking.until <= now:
                self._set_aside -= asking.set_aside
                asking.set_aside = asking.refused = 0
                if not asking.held:
                    del self._clients[name]
        waiting = [each for each in self._clients.values() if each.refused > each.set_aside]
        while waiting and self.taken + self._set_aside < self._total:
            asking = min(waiting, key=lambda each: (each.share, each.turn))
            asking.turn = next(self._turns)
            asking.set_aside += 1
            self._set_aside += 1
            if asking.refused <= asking.set_aside:
                waiting.remove(asking)


@asynccontextmanager
async def time_limit(until: float, error: RequestError) -> AsyncIterator[None]:
    """Raise `error` where the block isn't done at `until`, on the event loop's clock."""
    try:
        async with asyncio.timeout_at(until):
            yield
    except TimeoutError as timeout:
        raise error from timeout


def check_images(images: int, max_images: int) -> None:
    """Raise WholeRequestError where a request has more than `max_images` images."""
    if images > max_images:
        raise WholeRequestError(413, "TooLarge", f"{images} images, and a request may have {max_images} (--max-images)")


def check_text(sample: Sample, most: int) -> None:
    """Raise RequestError where the texts of a sample have more than `most` bytes of UTF-8: known before they are
    tokenised, which takes a hundred times their memory."""
    size = sum(len(turn.text.encode("utf-8", "surrogatepass")) for turn in sample.conversation)
    if size > most:
        raise RequestError(
            422, "TooLong", f"{size:,} bytes of text, and no {most:,} fit into the model's limit of tokens"
        )


def pixels_of(sample: Sample, *, max_image_pixels: int, max_decoded_pixels: int) -> int:
    """The pixels that a sample's images take once decoded, by their headers. Raises RequestError.

    An image counts as the square of its longer side, since processors pad to one. All images of a sample are decoded at
    a time, and one sample at a time: so `max_decoded_pixels` bounds what is decoded at a time.
    """
    pixels = 0
    for image in sample.images:
        assert image.bytes is not None
        try:
            pixels += max(image_size(image.bytes, max_pixels=max_image_pixels)) ** 2
        except ImageError as error:
            raise image_error(error) from error
    if pixels > max_decoded_pixels:
        raise RequestError(
            413,
            "TooLarge",
            f"the sample's images have {pixels:,} pixels, each image counted as a square, and the limit of what is "
            f"decoded at a time is {max_decoded_pixels:,} (--max-decoded-pixels)",
        )
    return pixels


def check_pixels(pixels: int, max_pixels: int) -> None:
    """Raise WholeRequestError where a request's images have more than `max_pixels` pixels together."""
    if pixels > max_pixels:
        raise WholeRequestError(
            413,
            "TooLarge",
            f"the images have {pixels:,} pixels, each image counted as a square, and a request may have {max_pixels:,} "
            "(--max-request-pixels)",
        )
