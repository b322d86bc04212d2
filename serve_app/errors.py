"""Why a request gets no score: a status and words that say what to change."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError
from starlette.responses import JSONResponse

from serve_app.schema import Failure, Problem


class RequestError(Exception):
    """An HTTP status, a short name to count by, and a sentence for the caller. Holds no path and no key."""

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.headers = dict(headers or {})


class WholeRequestError(RequestError):
    """An error that a batch request as a whole is answered with, and not only the item where it came up."""


def error_response(refusal: RequestError) -> JSONResponse:
    """A refusal as it is sent."""
    problem = Failure(error=Problem(kind=refusal.kind, message=refusal.message))
    return JSONResponse(problem.model_dump(), refusal.status, refusal.headers)


def busy(message: str) -> WholeRequestError:
    """503: try again in a moment."""
    return WholeRequestError(503, "Busy", message, {"Retry-After": "1"})


def invalid_request(error: ValidationError) -> RequestError:
    """422 from pydantic's findings, without the values that were sent."""
    findings = error.errors(include_url=False, include_input=False, include_context=False)
    told = []
    for finding in findings[:3]:
        # Names of the alternatives that pydantic tried tell the caller nothing.
        where = ".".join(str(part) for part in finding["loc"] if "[" not in str(part))[:200]
        message = finding["msg"].removeprefix("Value error, ")
        told.append(f"{where}: {message}" if where else message)
    more = f" (and {len(findings) - 3} more)" if len(findings) > 3 else ""
    return RequestError(422, "Invalid", "; ".join(told)[:1000] + more)
