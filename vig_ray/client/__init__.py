"""A client of `vig serve`: `Client`, and `AsyncClient` for programs with an event loop.

    from vig_ray.client import Client, Score

    with Client("http://localhost:8000") as client:
        for outcome in client.score_many({"question": "...", "answer": "...", "image": path} for path in paths):
            print(outcome.vig if isinstance(outcome, Score) else outcome.message)

Importing this imports neither Ray nor torch. It rests on aiohttp, which reads an answer while it still sends the body
of its request; httpx 0.28 sends all of it first, and a stream would stand still.
"""

from vig_ray.client.answers import (
    Decision,
    Failed,
    ModelFacts,
    ModelInfo,
    Offer,
    Outcome,
    Reference,
    Score,
    TextOnly,
    Token,
)
from vig_ray.client.asynchronous import AsyncClient
from vig_ray.client.blocking import Client
from vig_ray.client.errors import ClientError, CutOffError, ServerError

__all__ = [
    "AsyncClient", "Client", "ClientError", "CutOffError", "Decision", "Failed", "ModelFacts", "ModelInfo", "Offer",
    "Outcome", "Reference", "Score", "ServerError", "TextOnly", "Token",
]  # fmt: skip
