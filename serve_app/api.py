"""The HTTP side: routes, who may ask, and how much. Knows nothing of Ray; `backend` scores."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

import vig_ray
from serve_app.answer import score_of
from serve_app.guard import Guard, failure
from serve_app.options import AppConfig
from serve_app.prepare import Ready, check_hosts, fetched, ready, sample_of
from serve_app.refusal import RefusalError, busy, not_valid
from serve_app.schema import (
    EXAMPLE_MESSAGES,
    EXAMPLE_QA,
    BatchRequest,
    BatchScores,
    Failure,
    Item,
    ModelFacts,
    ModelInfo,
    Problem,
    Score,
    ScoreRequest,
)
from vig_ray import report
from vig_ray.model.prompt import Formatter
from vig_ray.scoring.engines import LogProbs
from vig_ray.scoring.reference import REFERENCES

PAGE = Path(__file__).parent / "page"
_FORM_FIELDS = ("question", "answer", "messages", "tau", "reference_images", "image")


class Backend(Protocol):
    """What scores."""

    async def score(self, ready: Ready) -> tuple[LogProbs, LogProbs]:
        """Clean and reference log-probs, float32 [T] each. Raises RefusalError."""

    async def facts(self) -> ModelFacts | None:
        """What scores; None while no engine is ready."""

    def told(self, route: str, status: int, seconds: float, under_way: int) -> None:
        """A request was answered."""


async def _body_of(request: Request, most: int) -> bytes:
    """The whole body. Raises RefusalError as soon as it is known to be too long."""
    too_long = RefusalError(413, "TooLarge", f"the body is longer than {most / 2**20:g} MiB, the limit")
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > most:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_long
    return bytes(body)


async def _form_of(request: Request, body: bytes, most: int) -> tuple[dict[str, Any], bytes | None]:
    """The fields of a multipart body, and the uploaded image. Raises RefusalError."""

    async def once() -> Any:
        yield body

    try:
        form = await MultiPartParser(request.headers, once(), max_files=1, max_fields=16, max_part_size=most).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise RefusalError(422, "Invalid", "the multipart body can't be read") from error
    fields: dict[str, Any] = {}
    image: bytes | None = None
    try:
        for name, value in form.multi_items():
            if name not in _FORM_FIELDS or name in fields:
                raise RefusalError(422, "Invalid", f"a form has each of these fields once: {', '.join(_FORM_FIELDS)}")
            if isinstance(value, UploadFile):
                if name != "image":
                    raise RefusalError(422, "Invalid", f"{name}: a text, not a file")
                image, value = await value.read(), ""
            fields[name] = value
    finally:
        await form.close()
    if image is not None:
        fields.pop("image")
        if not image:
            raise RefusalError(422, "BadImage", "image: a file of 0 bytes")
    if "messages" in fields:
        try:
            fields["messages"] = json.loads(fields["messages"])
        except (ValueError, RecursionError) as error:
            raise RefusalError(422, "Invalid", "messages: not JSON") from error
    elif image is not None:
        fields["image"] = "upload"
    return fields, image


class Api:
    """What the routes share."""

    def __init__(self, config: AppConfig, formatter: Formatter, backend: Backend) -> None:
        self.config, self.formatter, self.backend = config, formatter, backend
        self.under_way = 0
        # One thread: tokenizers are not for several at once, and other processes take the other cores.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._tokenizer: Any = formatter.tokenizer  # type: ignore[attr-defined]

    async def facts(self) -> ModelFacts:
        """What scores. Raises RefusalError where nothing is ready yet."""
        found = await self.backend.facts()
        if found is None:
            raise busy("the model is being loaded")
        return found

    async def request_of(self, request: Request) -> tuple[ScoreRequest, bytes | None]:
        """The sample in a JSON or multipart body. Raises RefusalError."""
        most = int(self.config.max_body_mb * 2**20)
        body = await _body_of(request, most)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if kind == "multipart/form-data":
                fields, image = await _form_of(request, body, most)
                return ScoreRequest.model_validate(fields), image
            if kind not in ("", "application/json"):
                raise RefusalError(415, "Invalid", "the body is application/json or multipart/form-data")
            return ScoreRequest.model_validate_json(body), None
        except ValidationError as error:
            raise not_valid(error) from error

    async def score(self, request: ScoreRequest, image: bytes | None) -> Score:
        """One sample. Raises RefusalError."""
        sample = sample_of(request, image)
        check_hosts(sample, self.config.image_hosts)
        facts = await self.facts()
        sample = await fetched(sample, self.config)
        make = partial(ready, sample, self.formatter, self.config, reference_images=request.reference_images)
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._thread, make)
        clean, reference = await self.backend.score(made)
        return score_of(
            made,
            clean,
            reference,
            tokenizer=self._tokenizer,
            tau=request.tau if request.tau is not None else self.config.tau,
            model=facts,
            reference=self.config.reference,
        )

    async def limited(self, samples: int, work: Callable[[], Awaitable[Any]]) -> Any:
        """`work()` if there is room for its samples, within the time limit. Raises RefusalError."""
        if self.under_way >= self.config.queue:
            raise busy(f"{self.under_way} samples are under way; try again in a moment")
        self.under_way += samples
        try:
            async with asyncio.timeout(self.config.timeout):
                return await work()
        except TimeoutError as error:
            raise RefusalError(504, "Timeout", f"no score within {self.config.timeout:g} seconds, the limit") from error
        finally:
            self.under_way -= samples


_REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": text}
    for status, text in {
        401: "no key, or a wrong one",
        403: "from another machine, or another site's page",
        413: "a body or an image beyond the limit",
        415: "neither JSON nor a form",
        422: "something is wrong with the sample",
        503: "busy, or no engine ready: try again after Retry-After seconds",
        504: "no answer within the time limit",
    }.items()
}
_REFUSED[503]["headers"] = {"Retry-After": {"schema": {"type": "string"}}}


def _examples() -> dict[str, Any]:
    return {"question and answer": {"value": EXAMPLE_QA}, "messages": {"value": EXAMPLE_MESSAGES}}


def make_app(api: Api, *, hashes: Sequence[str] = ()) -> FastAPI:
    """The FastAPI application over `api`; `hashes`: of the keys, none for no keys."""
    app = FastAPI(
        title="vig-ray",
        version=vig_ray.__version__,
        docs_url=None,
        redoc_url=None,
        description="Visual information gain of a sample.",
    )

    @app.exception_handler(RefusalError)
    async def refused(_: Request, refusal: RefusalError) -> Response:
        return failure(refusal)

    @app.exception_handler(HTTPException)
    async def not_found(_: Request, error: HTTPException) -> Response:
        return failure(RefusalError(error.status_code, "Http", str(error.detail), error.headers))

    def answered(route: str, status: int, began: float) -> None:
        api.backend.told(route, status, time.monotonic() - began, api.under_way)

    async def observed(route: str, work: Callable[[], Awaitable[Response]]) -> Response:
        began = time.monotonic()
        try:
            response = await work()
        except RefusalError as refusal:
            answered(route, refusal.status, began)
            raise
        answered(route, response.status_code, began)
        return response

    form = {"type": "object", "properties": {
        "image": {"type": "string", "format": "binary"}, "question": {"type": "string"}, "answer": {"type": "string"},
        "messages": {"type": "string", "description": "JSON"}, "tau": {"type": "number"},
        "reference_images": {"type": "boolean"},
    }, "required": ["image"]}  # fmt: skip
    one = {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/ScoreRequest"},
                "examples": _examples(),
            },
            "multipart/form-data": {"schema": form},
        },
    }

    @app.post("/v1/score", response_model=Score, responses=_REFUSED, openapi_extra={"requestBody": one})
    async def score(request: Request) -> Response:
        """Score one sample."""

        async def work() -> Response:
            async def scored() -> Score:
                return await api.score(*await api.request_of(request))

            found: Score = await api.limited(1, scored)
            return Response(found.model_dump_json(), media_type="application/json")

        return await observed("/v1/score", work)

    many = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/BatchRequest"}}},
    }

    @app.post("/v1/score/batch", response_model=BatchScores, responses=_REFUSED, openapi_extra={"requestBody": many})
    async def score_batch(request: Request) -> Response:
        """Score several samples; one result or error each, in order."""

        async def one_of(item: Any) -> Item:
            try:
                return Item(result=await api.score(ScoreRequest.model_validate(item), None))
            except ValidationError as error:
                refusal = not_valid(error)
            except RefusalError as found:
                if found.status in (503, 504):
                    raise
                refusal = found
            return Item(error=Problem(kind=refusal.kind, message=refusal.message))

        async def work() -> Response:
            if api.under_way >= api.config.queue:  # before the body is read
                raise busy(f"{api.under_way} samples are under way; try again in a moment")
            body = await _body_of(request, int(api.config.max_body_mb * 2**20))
            try:
                items = BatchRequest.model_validate_json(body).items
            except ValidationError as error:
                raise not_valid(error) from error
            if len(items) > api.config.max_items:
                raise RefusalError(422, "TooMany", f"{len(items)} items, and the limit is {api.config.max_items}")

            async def all_of() -> BatchScores:
                tasks = [asyncio.create_task(one_of(item)) for item in items]
                try:
                    return BatchScores(results=await asyncio.gather(*tasks))
                finally:
                    for task in tasks:
                        task.cancel()

            found: BatchScores = await api.limited(len(items), all_of)
            return Response(found.model_dump_json(), media_type="application/json")

        return await observed("/v1/score/batch", work)

    @app.get("/v1/model", response_model=ModelInfo, responses={503: _REFUSED[503], 401: _REFUSED[401]})
    async def model() -> Response:
        """What scores, and within which limits."""
        config = api.config
        facts = await api.facts()
        found = ModelInfo(
            **facts.model_dump(),
            reference=config.reference,
            reference_parameters=REFERENCES[config.reference].parameters,
            tau=config.tau,
            max_length=api.formatter.max_length,
            max_body_mb=config.max_body_mb,
            max_image_pixels=config.max_image_pixels,
            max_answer_tokens=config.max_answer_tokens,
            max_items=config.max_items,
            image_hosts=list(config.image_hosts),
        )
        return Response(found.model_dump_json(), media_type="application/json")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: _REFUSED[503]})
    async def readyz() -> dict[str, str]:
        """A model is loaded and answers."""
        await api.facts()
        return {"status": "ready"}

    if (PAGE / "index.html").exists():

        @app.get("/page/gains.css", include_in_schema=False)
        async def gains() -> Response:
            return Response((report.PAGE / "gains.css").read_bytes(), media_type="text/css")

        app.mount("/page", StaticFiles(directory=PAGE), name="page")

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            return Response((PAGE / "index.html").read_bytes(), media_type="text/html")

    app.add_middleware(Guard, hashes=hashes, anyone=api.config.open)
    _with_schemas(app)
    return app


def _with_schemas(app: FastAPI) -> None:
    """Put the request models, which the routes read themselves, into the OpenAPI document."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        schemas = document["components"]["schemas"]
        for request in (ScoreRequest, BatchRequest):
            found = request.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(found.pop("$defs", {}))
            schemas[request.__name__] = found
        # Its items are checked one by one, so that a wrong one doesn't refuse the others.
        schemas["BatchRequest"]["properties"]["items"]["items"] = {"$ref": "#/components/schemas/ScoreRequest"}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
