"""What a client raises: where no sample is at fault, but the server, the way to it, or who asks."""

from __future__ import annotations

from vig_ray.errors import StageError


class ClientError(StageError):
    """No answer, or one that isn't vig serve's; the message names the server."""


class ServerError(ClientError):
    """The server answered with an error: its HTTP status, a short name to count by, and a sentence.

    `retry_after`: the seconds that the server asks to wait before another try, None where it doesn't say.
    """

    def __init__(self, url: str, status: int, kind: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{url}: {status} {kind}: {message}")
        self.status, self.kind, self.message, self.retry_after = status, kind, message, retry_after


class CutOffError(ClientError):
    """A stream of answers ended before its last line. `answered`: the samples that were answered before."""

    def __init__(self, message: str, answered: int) -> None:
        super().__init__(message)
        self.answered = answered
