"""The engine stage: prompts to answers, written by a generator or told from log-probs by an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow as pa

from vig_ray.evaluation.answering import load_answering
from vig_ray.evaluation.attention import last_answer, with_written
from vig_ray.evaluation.generation import Sampling, Written
from vig_ray.evaluation.likelihood import known_answer, measured
from vig_ray.evaluation.prepare import passes_of
from vig_ray.evaluation.question import Question
from vig_ray.evaluation.questions import from_row
from vig_ray.evaluation.schema import ANSWERED
from vig_ray.model.prompt import Prompt, PromptError
from vig_ray.scoring.engines import LogProbs
from vig_ray.scoring.mortal import Blocks, Rows
from vig_ray.scoring.prepared import unpack
from vig_ray.scoring.score import Outcome, run_passes


class Answerer:
    """A Ray Data callable that holds a model: rows of `GROUPS` to one of `ANSWERED` for each of their questions.

    `load`: the arguments of `load_answering`. `sampling`: of all answers, but for their length: `max_new_tokens`, by
    task. `progress`: a `RowCounter`, or None. Where the engine dies, `Blocks` says what happens.
    """

    def __init__(
        self, *, load: Mapping[str, Any], sampling: Sampling, max_new_tokens: Mapping[str, int], progress: Any = None
    ) -> None:
        self._model = load_answering(**load)
        self._sampling, self._max_new_tokens = sampling, dict(max_new_tokens)
        self._blocks = Blocks(self._rows, progress=progress, tokens=_tokens)
        if progress is not None:
            progress.ready.remote(self._model.description)

    def __call__(self, prepared: pa.Table) -> pa.Table:
        """Answer a block."""
        return pa.Table.from_pylist(self._blocks(unpack(prepared)), schema=ANSWERED)

    def _rows(self, rows: Rows) -> list[dict[str, Any]]:
        asked = [_Asked.of(row) for row in rows if row["prompts"] is not None]
        samplings = [
            replace(self._sampling, max_new_tokens=self._max_new_tokens[one.task]) for one in asked if one.to_write
        ]
        written = iter(self._model.generate([one.to_write for one in asked if one.to_write], samplings))
        told = run_passes(self._model, [one.to_score for one in asked])
        answers = iter(
            self._columns(one, next(written) if one.to_write else None, outcomes)
            for one, outcomes in zip(asked, told, strict=True)
        )
        out = []
        for row in rows:
            answered = {name: value for name, value in row.items() if name != "prompts"}
            out.append(answered if row["prompts"] is None else answered | next(answers))
        return out

    def _columns(
        self, asked: _Asked, written: Written | PromptError | None, outcomes: Sequence[Outcome]
    ) -> dict[str, Any]:
        """The columns of a row, with the shares of attention where they are asked for."""
        columns = _columns(asked, written, outcomes)
        if asked.question.attention is None or "error" in columns:
            return columns
        try:
            attention = self._model.attention(asked.answered(written), heads=asked.question.attention == "heads")
        except PromptError as error:
            return {"error": str(error)}
        return columns | {"attention": [{"name": name, "value": share} for name, share in attention.items()]}


class _Asked(NamedTuple):
    """A question with its prompts: the one to write an answer to, if any, and those of choices, then of passes."""

    task: str
    question: Question
    to_write: Prompt | None
    to_score: tuple[Prompt | PromptError, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> _Asked:
        question, prompts = from_row(row), row["prompts"]
        writes = question.writes and not question.choices
        to_write, to_score = (prompts[0], prompts[1:]) if writes else (None, prompts)
        return cls(row["source"], question, to_write, to_score)

    def answered(self, written: Any) -> Prompt:
        """The prompt with the answer that attention is asked of: the one written, else the known one."""
        if self.to_write is not None:
            return with_written(self.to_write, written.token_ids)
        known = self.to_score[0]
        assert isinstance(known, Prompt), "its log-probs are there"
        return last_answer(known)


def _columns(asked: _Asked, written: Written | PromptError | None, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The columns of a row that the model decides. `outcomes`: of what is scored."""
    prompts: list[Prompt] = []
    logprobs: list[LogProbs] = []
    if isinstance(written, PromptError):
        return {"error": str(written)}
    for prompt, outcome in zip(asked.to_score, outcomes, strict=True):
        if isinstance(prompt, PromptError):
            return {"error": str(prompt)}
        if isinstance(outcome, PromptError):
            return {"error": str(outcome)}
        prompts.append(prompt)
        logprobs.append(outcome)
    columns: dict[str, Any] = {"finished": True}
    if written is not None:
        columns |= {"answer": written.text, "finished": written.finished, "new_tokens": len(written.token_ids)}
    count = len(asked.question.choices)
    if count:
        told = zip(asked.question.choices, prompts, logprobs, strict=False)
        columns["choices"] = [measured(*each)._asdict() for each in told]
    if len(prompts) > count:
        try:
            known = known_answer(prompts[count])
        except PromptError as error:
            return {"error": str(error)}
        columns |= {"token_ids": known.token_ids, "tokens_before": known.before}
        columns["passes"] = [
            {"name": name, "logprobs": logp_T[known.before :]}
            for name, logp_T in zip(passes_of(asked.question), logprobs[count:], strict=True)
        ]
    return columns


def _tokens(rows: Rows) -> int:
    """Answer tokens that were written, or whose log-probs were computed."""
    return sum(
        (row.get("new_tokens") or 0)
        + len(row.get("token_ids", ()))
        + sum(choice["tokens"] for choice in row.get("choices", ()))
        for row in rows
    )
