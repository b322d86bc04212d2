"""Errors that a request is answered with: a status, and a message that says what to change."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError
from starlette.responses import JSONResponse

from serve_app.request import current_request
from serve_app.schema import Failure, Problem

TOO_MANY = "TooMany"
"""The name of the error of a batch with more samples than there may be, of which none is taken on."""

ENGINE_DIED = "EngineDied"
"""The name of the error of a sample that engines were lost over, as in the batch job's rows."""


class RequestError(Exception):
    """An HTTP status, a short name to count by, and a sentence for the caller. Holds no path and no key."""

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.headers = dict(headers or {})


class WholeRequestError(RequestError):
    """An error that a batch request as a whole is answered with, and not only the item where it came up."""


def error_response(error: RequestError) -> JSONResponse:
    """The response with this error."""
    current_request().error = error.kind
    problem = Failure(error=Problem(kind=error.kind, message=error.message))
    return JSONResponse(problem.model_dump(), error.status, error.headers)


def busy(message: str) -> WholeRequestError:
    """503, which says that the client may try again in a moment."""
    return WholeRequestError(503, "Busy", message, {"Retry-After": "1"})


def invalid_request(error: ValidationError) -> RequestError:
    """422 with pydantic's messages, without the values that were sent."""
    findings = error.errors(include_url=False, include_input=False, include_context=False)
    messages = []
    for finding in findings[:3]:
        # The names of the alternatives that pydantic tried mean nothing to the caller.
        where = ".".join(str(part) for part in finding["loc"] if "[" not in str(part))[:200]
        message = finding["msg"].removeprefix("Value error, ")
        messages.append(f"{where}: {message}" if where else message)
    more = f" (and {len(findings) - 3} more)" if len(findings) > 3 else ""
    return RequestError(422, "Invalid", "; ".join(messages)[:1000] + more)
