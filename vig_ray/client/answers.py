"""What a server answers, as types. Fields that a later server adds are let through unread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Token(_Answer):
    """One answer token. Log-probs are natural logarithms, gains are in nats.

    `start`, `end`: its characters in the text of assistant turn `turn`, counted from 0. `active`: gain >= tau, None
    without tau.
    """

    text: str
    id: int
    turn: int
    start: int
    end: int
    clean_logprob: float
    reference_logprob: float
    gain: float
    active: bool | None = None


class Reference(_Answer):
    """What stood for 'no image'. `kernels`: the blur's kernel for each image, pixels."""

    name: str
    parameters: dict[str, Any]
    kernels: list[int] = []


class ModelFacts(_Answer):
    """What scores: name, fingerprints of the model and its template, precision, engine and those of its options that
    decide its numbers."""

    name: str
    fingerprint: str
    template: str
    dtype: str
    engine: str
    vllm: dict[str, Any] | None = None


class Offer(_Answer):
    """A model that a sample may name, under `model`, with the references that it may name, under `reference`."""

    name: str
    references: list[str]


class ModelInfo(ModelFacts):
    """What scores, and within which limits: the server's first model and reference, for samples that name none.

    `models`: all of them. `version`: of vig-ray there; None where it doesn't tell.
    """

    models: list[Offer] = []
    reference: str
    reference_parameters: dict[str, Any]
    tau: float | None
    max_length: int
    max_body_mb: float
    max_image_pixels: int
    max_images: int
    max_answer_tokens: int
    max_items: int
    version: str | None = None


class Decision(_Answer):
    """What a policy decided.

    `verdict`: "kept" or "dropped". A dry run's is always "kept", and `would` says what it would have been.
    """

    policy: str
    verdict: str
    reason: str
    dry_run: bool = False
    would: str | None = None


class Score(_Answer):
    """What the image contributes to one sample. Losses and `vig` are in nats.

    `kept`, `active_tokens`: None without tau. `decision`: None without a policy. `note`: what the model's authors' own
    training does otherwise. `reference_images`: data URIs, where they were asked for.
    """

    vig: float
    clean_loss: float
    reference_loss: float
    clean_perplexity: float | None = None
    reference_perplexity: float | None = None
    num_answer_tokens: int
    tokens: list[Token]
    tau: float | None = None
    kept: bool | None = None
    decision: Decision | None = None
    active_tokens: int | None = None
    note: str | None = None
    model: ModelFacts
    reference: Reference
    reference_images: list[str] | None = None


class TextOnly(_Answer):
    """A sample without an image that was asked about with `text_only`: its answer tokens, and no gain."""

    token_ids: list[int]
    turns: list[int]
    note: str | None = None
    model: ModelFacts


@dataclass(frozen=True)
class Failed:
    """Why one sample has no score: a short name to count by, and a sentence."""

    kind: str
    message: str


Outcome = Score | TextOnly | Failed
"""What became of one sample."""


def outcome_of(item: Mapping[str, Any]) -> Outcome:
    """One item of a batch's answer, or one line of a stream's: {"result": ...} or {"error": {"kind", "message"}}.

    Raises ValueError where it is neither.
    """
    error = item.get("error")
    if isinstance(error, Mapping):
        return Failed(str(error.get("kind", "Unknown")), str(error.get("message", "")))
    return score_of(item.get("result"))


def score_of(result: Any) -> Score | TextOnly:
    """A score, or what a sample without an image is answered. Raises ValueError where it is neither."""
    if isinstance(result, Mapping) and "token_ids" in result:
        return TextOnly.model_validate(result)
    return Score.model_validate(result)
