"""The application that replaces the real one while it finishes the requests it has accepted."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from serve_app.errors import busy, error_response


class Draining:
    """Answers every request with 503: without it Serve's proxy would answer 404, which a client may take for final."""

    async def __call__(self, _: Request) -> Response:
        """The same response for every path."""
        return error_response(busy("this server is stopping"))
