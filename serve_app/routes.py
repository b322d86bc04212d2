"""The routes over HTTP, and the OpenAPI document."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

import vig_ray
from serve_app import arrow
from serve_app.api import Api
from serve_app.auth import Auth
from serve_app.body import batch_items, score_request
from serve_app.clients import current
from serve_app.connection import CloseUnread, while_connected
from serve_app.errors import RequestError, error_response
from serve_app.key_ring import KeyRing
from serve_app.limits import time_limit
from serve_app.observe import Observe
from serve_app.quota import Admission, admitted
from serve_app.request import current_request
from serve_app.schema import (
    EXAMPLE_MESSAGES,
    EXAMPLE_QA,
    BatchRequest,
    BatchScores,
    Failure,
    Loading,
    ModelInfo,
    Readiness,
    Score,
    ScoreRequest,
    StreamEnd,
    StreamItem,
    StreamRequest,
    TextOnly,
)
from serve_app.stream import NDJSON, READERS, ScoreStream, content_type_of
from serve_app.traces import Traces, span
from vig_ray import report

PAGE = Path(__file__).parent / "page"
# The page takes scripts and styles from its own files and asks nobody else, whatever a text in it says.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}

_REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": text}
    for status, text in {
        401: "no key, or a wrong one",
        403: "from another machine, or another site's page",
        408: "the body did not come within the time limit",
        413: "a body, its images or their pixels beyond the limit",
        421: "asked under a name that this server doesn't have",
        415: "neither JSON nor a form",
        422: "something is wrong with the sample",
        429: "beyond a limit of the key: try again after Retry-After seconds",
        503: "busy, or no engine ready: try again after Retry-After seconds",
        504: "no answer within the time limit",
    }.items()
}
for _status in (429, 503):
    _REFUSED[_status]["headers"] = {"Retry-After": {"schema": {"type": "string"}}}
_LOADING = {**_REFUSED[503], "model": Loading, "description": "the model is being loaded"}
_FORM = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "format": "binary"},
        "question": {"type": "string"},
        "answer": {"type": "string"},
        "messages": {"type": "string", "description": "JSON"},
        "tau": {"type": "number"},
        "policy": {"type": "string"},
        "model": {"type": "string"},
        "reference": {"type": "string"},
        "reference_images": {"type": "boolean"},
    },
    "required": ["image"],
}
_SCORE_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/ScoreRequest"},
            "examples": {"question and answer": {"value": EXAMPLE_QA}, "messages": {"value": EXAMPLE_MESSAGES}},
        },
        "multipart/form-data": {"schema": _FORM},
    },
}
_BATCH_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/BatchRequest"}}},
}
_STREAM_BODY = {
    "required": True,
    "content": {
        NDJSON: {"schema": {"$ref": "#/components/schemas/StreamRequest"}},
        arrow.CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}},
    },
}
_STREAM_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "a StreamItem a line, then a StreamEnd",
        "content": {NDJSON: {"schema": {"$ref": "#/components/schemas/StreamItem"}}},
    }
}


class Routes:
    """The routes' functions, over `api`. They read the bodies themselves, within the limits."""

    def __init__(self, api: Api) -> None:
        self._api = api

    @asynccontextmanager
    async def _accepted(self, route: str) -> AsyncIterator[tuple[Admission, float]]:
        """A place for a request, and when its time is up, on the event loop's clock. Raises RequestError."""
        began, status = time.monotonic(), 200
        until = asyncio.get_running_loop().time() + self._api.config.timeout
        try:
            self._api.check_open()
            with admitted(current(), self._api.quotas, self._api.places) as place:
                current_request().place = place
                yield place, until
        except RequestError as refusal:
            status = refusal.status
            raise
        except Exception:
            status = 500
            raise
        finally:
            self._api.backend.record(route, status, time.monotonic() - began)

    def _in_time(self, until: float) -> AbstractAsyncContextManager[None]:
        seconds = self._api.config.timeout
        return time_limit(until, RequestError(504, "Timeout", f"no score within {seconds:g} seconds, the limit"))

    async def score(self, request: Request) -> Response:
        """Score one sample."""
        async with self._accepted("/v1/score") as (_, until):
            with span("read body"):
                sample, image = await score_request(request, self._api.config, until)
            async with self._in_time(until), while_connected(request.receive):
                score = await self._api.score(sample, image)
        return Response(score.model_dump_json(), media_type="application/json")

    async def score_batch(self, request: Request) -> Response:
        """Score several samples; one result or error each, in order."""
        async with self._accepted("/v1/score/batch") as (place, until):
            with span("read body"):
                items = await batch_items(request, self._api.config, until)
            place.grow(len(items))
            async with self._in_time(until), while_connected(request.receive):
                scores = BatchScores(results=await self._api.score_batch(items))
        return Response(scores.model_dump_json(), media_type="application/json")

    async def score_stream(self, request: Request) -> Response:
        """Score samples of any number, a line or a row each; the answer has a line for each in their order."""
        if content_type_of(request) not in READERS:
            raise RequestError(
                415, "Invalid", f"the body is {NDJSON}, a JSON object a line, or {arrow.CONTENT_TYPE}, Arrow IPC"
            )
        await self._api.facts()
        return ScoreStream(request, self._api, partial(self._accepted, "/v1/score/stream"))

    async def model(self, model: str | None = None, reference: str | None = None) -> Response:
        """What scores, and within which limits: the model and the reference of these names, by default the first."""
        info = await self._api.model_info(model, reference)
        return Response(info.model_dump_json(), media_type="application/json")

    async def healthz(self) -> dict[str, str]:
        """Alive."""
        return {"status": "alive"}

    async def readyz(self) -> Response:
        """A model is loaded and answers."""
        loading = await self._api.loading()
        if loading is None:
            return Response(Readiness(status="ready").model_dump_json(), media_type="application/json")
        current_request().error = "Loading"
        return Response(loading.model_dump_json(), 503, {"Retry-After": "1"}, "application/json")


def make_app(api: Api, *, id_answered: bool = False) -> FastAPI:
    """The FastAPI application over `api`. `id_answered`: see `Observe`."""
    app = FastAPI(
        title="vig-ray",
        version=vig_ray.__version__,
        docs_url=None,
        redoc_url=None,
        description="Visual information gain of a sample.",
    )

    @app.exception_handler(RequestError)
    async def refused(_: Request, refusal: RequestError) -> Response:
        return error_response(refusal)

    @app.exception_handler(HTTPException)
    async def not_found(_: Request, error: HTTPException) -> Response:
        return error_response(RequestError(error.status_code, "Http", str(error.detail), error.headers))

    routes = Routes(api)
    app.post(
        "/v1/score", response_model=Score | TextOnly, responses=_REFUSED, openapi_extra={"requestBody": _SCORE_BODY}
    )(routes.score)
    app.post(
        "/v1/score/batch", response_model=BatchScores, responses=_REFUSED, openapi_extra={"requestBody": _BATCH_BODY}
    )(routes.score_batch)
    app.post(
        "/v1/score/stream", response_model=None, responses=_REFUSED | _STREAM_ANSWER,
        openapi_extra={"requestBody": _STREAM_BODY},
    )(routes.score_stream)  # fmt: skip
    app.get(
        "/v1/model", response_model=ModelInfo, responses={code: _REFUSED[code] for code in (401, 403, 421, 422, 503)}
    )(routes.model)
    app.get("/healthz")(routes.healthz)
    app.get("/readyz", response_model=Readiness, responses={503: _LOADING})(routes.readyz)
    _add_page(app)
    keys, policies, _ = api.access
    ring = KeyRing(keys, path=api.config.keys, policies=policies) if keys is not None else None
    api.ring = ring
    app.add_middleware(Auth, keys=ring, anyone=api.config.open, hosts=api.config.hosts)
    app.add_middleware(CloseUnread, seconds=api.config.timeout, streams=["/v1/score/stream"])
    app.add_middleware(
        Observe,
        access=api.config.log_format == "json",
        traces=Traces(api.config.traces) if api.config.traces is not None else None,
        refused=api.backend.refused,
        id_answered=id_answered,
    )
    _add_schemas(app)
    return app


def _add_page(app: FastAPI) -> None:
    @app.get("/page/gains.css", include_in_schema=False)
    async def gains() -> Response:
        return Response((report.PAGE / "gains.css").read_bytes(), media_type="text/css")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response((PAGE / "index.html").read_bytes(), headers=_PAGE_HEADERS, media_type="text/html")


def _add_schemas(app: FastAPI) -> None:
    """Put the request models, which the routes read themselves, into the OpenAPI document."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        schemas = document["components"]["schemas"]
        for request in (ScoreRequest, BatchRequest, StreamRequest, StreamItem, StreamEnd):
            schema = request.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[request.__name__] = schema
        # Its items are checked one by one, so that a wrong one doesn't refuse the others.
        schemas["BatchRequest"]["properties"]["items"]["items"] = {"$ref": "#/components/schemas/ScoreRequest"}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
