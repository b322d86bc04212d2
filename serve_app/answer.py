"""Log-probs to the answer of a request."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from serve_app.prepare import PreparedSample
from serve_app.schema import ModelFacts, Reference, Score, TextOnly, Token
from vig_ray.model.prompt import Prompt
from vig_ray.scoring import reference as made
from vig_ray.scoring.engines import LogProbs
from vig_ray.scoring.gain import loss, perplexity, token_gain
from vig_ray.selection.weights import mask


def score_of(
    sample: PreparedSample,
    clean_T: LogProbs,
    reference_T: LogProbs,
    *,
    tokenizer: Any,
    tau: float | None,
    model: ModelFacts,
    reference: made.Reference,
) -> Score:
    """What the image contributes; `clean_T` and `reference_T` are float32 [T]."""
    prompt = sample.pair[0]
    gain_T = token_gain(clean_T, reference_T)
    clean_loss, reference_loss = loss(clean_T), loss(reference_T)
    vig = reference_loss - clean_loss
    active_T = mask(gain_T, np.full(len(gain_T), tau)).astype(bool).tolist() if tau is not None else None
    answers = [turn.text for turn in sample.sample.conversation if turn.role == "assistant"]
    ids, turns = prompt.answer_ids.tolist(), prompt.turns.tolist()
    names = tokenizer.convert_ids_to_tokens(ids)
    tokens = [
        Token(
            text=answers[turns[place]][start:end] or names[place],
            id=ids[place],
            turn=turns[place],
            start=start,
            end=end,
            clean_logprob=float(clean_T[place]),
            reference_logprob=float(reference_T[place]),
            gain=float(gain_T[place]),
            active=active_T[place] if active_T is not None else None,
        )
        for place, (start, end) in enumerate(prompt.answer_chars.tolist())
    ]
    return Score(
        vig=vig,
        clean_loss=clean_loss,
        reference_loss=reference_loss,
        clean_perplexity=_finite(perplexity(clean_T)),
        reference_perplexity=_finite(perplexity(reference_T)),
        num_answer_tokens=len(tokens),
        tokens=tokens,
        tau=tau,
        kept=vig >= tau if tau is not None else None,
        active_tokens=sum(active_T) if active_T is not None else None,
        note=prompt.note,
        model=model,
        reference=Reference(name=reference.name, parameters=reference.parameters, kernels=sample.kernels),
        reference_images=sample.reference_images,
    )


def text_only_of(prompt: Prompt, *, model: ModelFacts) -> TextOnly:
    """What a sample without an image is answered."""
    return TextOnly(token_ids=prompt.answer_ids.tolist(), turns=prompt.turns.tolist(), note=prompt.note, model=model)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
