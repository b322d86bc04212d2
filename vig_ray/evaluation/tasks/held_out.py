"""Samples of one's own that the models weren't trained on: what the right answers cost them, how much of that the image
saves, and whether they say the same.

`--data held-out=...`: samples/ of a finished `vig import`, or any dataset file that it reads (docs/data.md). Each
exchange of a conversation is a question, with the true turns before it; those of one sample are one unit.

    loss           mean negative log-prob of the answers' tokens, nats a token
    gain           how much the image lowers an answer's mean loss (VIG, equation 7), mean over answers; nats
    active loss    the loss of the tokens that a selection trains on, by their weights
    active gain    the mean gain of these tokens
    exact          the written answer is the one of the sample (`vig_ray.evaluation.text`)
    contains       the written answer says the one of the sample

`held-out.selection=DIR` asks about the samples of a selection alone, and has the active tokens. `held-out.tail=N` asks
about the last N in its order, which `vig train --held-out N` doesn't train on. Active tokens are those of the model
that scored: for one with another tokenizer they are an error. Losses and gains are by token, so that those of models
with other tokenizers can't be compared, which is told; no number here counts for relative performance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vig_ray.errors import StageError
from vig_ray.evaluation.outcomes import Marked, other_tokens
from vig_ray.evaluation.own_samples import OwnSample, own_samples
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean, ratio
from vig_ray.evaluation.text import same, says
from vig_ray.model.prompt import PromptError

_REFERENCES = ("blur", "blind", "no-image", "mean", "noise", "vcd")


class HeldOut:
    """See the module."""

    name = "held-out"
    source = "one's own samples: loss, VIG (arXiv 2602.17186, equation 7), exact match and containment"
    options: Mapping[str, str] = {
        "reference": "what stands for no image in the gain: blur (default), blind, no-image, mean, noise, vcd",
        "selection": "selection/ whose samples and active tokens are asked about",
        "tail": "ask about the last N samples of the selection's order alone",
        "write": "no: compute log-probs alone, and write no answers",
    }
    max_new_tokens = 64
    metrics_of = (
        Metric("loss", percent=False, higher_is_better=False),
        Metric("gain", percent=False),
        Metric("active loss", percent=False, higher_is_better=False),
        Metric("active gain", percent=False),
        Metric("exact"),
        Metric("contains"),
    )

    def read(self, given: Given) -> Iterator[Question]:
        """See `Task.read`."""
        reference = given.choice(self.name, "reference", _REFERENCES)
        writes = given.choice(self.name, "write", ("yes", "no")) == "yes"
        tail = given.whole(self.name, "tail", 0, least=0)
        if tail and "selection" not in given.options:
            raise StageError(f"--task-options {self.name}.tail={tail}: of which order? {self.name}.selection says it")
        for sample in own_samples(given, given.options.get("selection"), tail or None):
            yield from _questions(sample, ("clean", reference), writes=writes)

    def mark(self, question: Question, answer: Answer) -> Marks:
        """See `Task.mark`."""
        clean_T = answer.passes["clean"].astype(np.float64)
        without = [logp_T for name, logp_T in answer.passes.items() if name != "clean"]
        gain_T = clean_T - without[0] if without else np.full(len(clean_T), np.nan)
        marks = {"tokens": len(clean_T), "loss": -clean_T.sum(), "gain": gain_T.mean()}
        marks |= {"exact": np.nan, "contains": np.nan, "active": 0.0, "active loss": 0.0, "active gain": 0.0}
        weights_T = _active(question, answer)
        if weights_T is not None:
            marks |= {"active": weights_T.sum(), "active loss": -(weights_T * clean_T).sum()}
            marks["active gain"] = (weights_T * gain_T).sum()
        if question.writes:
            marks["exact"] = same(answer.text, question.expected)
            marks["contains"] = says(answer.text, question.expected)
        return {"score": marks["exact"]} | {name: float(value) for name, value in marks.items()}

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """See `Task.metrics`."""
        seen_N = weights_N * ~np.isnan(marks["gain"])  # those with an image
        return {
            "loss": ratio(marks["loss"], marks["tokens"], weights_N),
            "gain": mean(marks["gain"], weights_N),
            "active loss": ratio(marks["active loss"], marks["active"], weights_N),
            "active gain": ratio(marks["active gain"], marks["active"], seen_N),
            "exact": mean(marks["exact"], weights_N),
            "contains": mean(marks["contains"], weights_N),
        }

    def told(self, marked: Mapping[str, Marked], baseline: str) -> Iterator[str]:
        """See `vig_ray.evaluation.outcomes.other_tokens`."""
        return other_tokens(self.name, marked, baseline, "tokens")


def _questions(sample: OwnSample, passes: tuple[str, ...], *, writes: bool) -> Iterator[Question]:
    """The exchanges of a conversation: a user's turn, and the assistant's after it."""
    more: dict[str, Any] = {}
    if sample.token_ids is not None:
        more = {"token_ids": sample.token_ids, "token_weights": sample.token_weights}
    number = 0
    for place, turn in enumerate(sample.conversation):
        if turn.role != "assistant":
            continue
        number += 1
        if not place or sample.conversation[place - 1].role != "user":
            continue  # nothing asks for it
        before = sample.conversation[: place - 1]
        prompt = sample.conversation[place - 1].text
        yield Question(
            id=f"{sample.key}#{number}",
            prompt=prompt,
            images=sample.images_of((*before, sample.conversation[place - 1])),
            expected=turn.text,
            answer=turn.text,
            group=sample.source,
            unit=sample.key,
            more=more,
            before=before,
            passes=passes,
            writes=writes,
        )


def _active(question: Question, answer: Answer) -> npt.NDArray[np.float64] | None:
    """The weights of the answer's tokens in the selection; None without one. Raises PromptError where the selection is
    of other tokens."""
    if "token_ids" not in question.more:
        return None
    first, past = answer.tokens_before, answer.tokens_before + len(answer.token_ids)
    if question.more["token_ids"][first:past] != answer.token_ids.tolist():
        raise PromptError("OtherTokens", "the selection's tokens aren't this model's; leave out held-out.selection")
    weights = question.more["token_weights"]
    return np.ones(past - first) if weights is None else np.asarray(weights[first:past], dtype=np.float64)
