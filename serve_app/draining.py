"""What stands at the door while the application stops."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from serve_app.errors import busy, error_response


class Draining:
    """Answers 503 to all: Serve's proxy would say 404, which a client may take for an answer."""

    async def __call__(self, _: Request) -> Response:
        """One answer for every path."""
        return error_response(busy("this server is stopping"))
