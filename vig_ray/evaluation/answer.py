"""The engine stage: prompts to answers, written by a generator or told from log-probs by an engine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from vig_ray.evaluation.generation import Sampling, Written
from vig_ray.evaluation.likelihood import known_answer, measured
from vig_ray.evaluation.load import load_answering
from vig_ray.evaluation.prepare import passes_of
from vig_ray.evaluation.question import Question
from vig_ray.evaluation.questions import from_row
from vig_ray.evaluation.schema import ANSWERED
from vig_ray.model.prompt import Prompt, PromptError
from vig_ray.scoring.mortal import Blocks, Rows
from vig_ray.scoring.prepared import unpack
from vig_ray.scoring.score import Outcome, run_passes


def sampling_of(sampling: Sampling, key: str, max_new_tokens: int) -> Sampling:
    """How one question is answered: by a seed of its own, the same whatever else is asked."""
    if not sampling.temperature:
        return replace(sampling, max_new_tokens=max_new_tokens)
    own = hashlib.blake2b(f"{sampling.seed} {key}".encode(), digest_size=7).digest()
    return replace(sampling, max_new_tokens=max_new_tokens, seed=int.from_bytes(own))


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
        asked = [(row, from_row(row), row["prompts"]) for row in rows if row["prompts"] is not None]
        writes = [question.writes and not question.choices for _, question, _ in asked]
        written = self._write(
            [(row, prompts[0]) for (row, _, prompts), writing in zip(asked, writes, strict=True) if writing]
        )
        told = run_passes(self._model, [prompts[writing:] for (*_, prompts), writing in zip(asked, writes, strict=True)])
        answers = iter(
            _answer(question, prompts[writing:], next(written) if writing else None, outcomes)
            for (_, question, prompts), writing, outcomes in zip(asked, writes, told, strict=True)
        )
        out = []
        for row in rows:
            answered = {name: value for name, value in row.items() if name != "prompts"}
            out.append(answered if row["prompts"] is None else answered | next(answers))
        return out

    def _write(self, asked: Sequence[tuple[Mapping[str, Any], Prompt]]) -> Any:
        """What is written to each prompt, in order."""
        samplings = [
            sampling_of(self._sampling, row["sample_key"], self._max_new_tokens[row["source"]]) for row, _ in asked
        ]
        return iter(self._model.generate([prompt for _, prompt in asked], samplings) if asked else [])


def _answer(
    question: Question, prompts: Sequence[Prompt], written: Written | PromptError | None, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """The columns of a row that the model decides. `prompts`, `outcomes`: of choices, then of passes."""
    failed = next((one for one in (written, *prompts, *outcomes) if isinstance(one, PromptError)), None)
    if failed is not None:
        return {"error": str(failed)}
    columns: dict[str, Any] = {"finished": True}
    if isinstance(written, Written):
        columns |= {"answer": written.text, "finished": written.finished, "new_tokens": len(written.token_ids)}
    count = len(question.choices)
    if count:
        told = zip(question.choices, prompts, outcomes, strict=False)
        columns["choices"] = [measured(*each)._asdict() for each in told]
    if question.passes:
        try:
            known = known_answer(prompts[count])
        except PromptError as error:
            return {"error": str(error)}
        names = passes_of(question)
        columns |= {"token_ids": known.token_ids, "tokens_before": known.before}
        columns["passes"] = [
            {"name": name, "logprobs": outcome[known.before :]}
            for name, outcome in zip(names, outcomes[count:], strict=True)
        ]
    return columns


def _tokens(rows: Rows) -> int:
    """Answer tokens that were written, or whose log-probs were computed."""
    return sum(
        (row.get("new_tokens") or 0) + len(row.get("token_ids") or ()) + sum(c["tokens"] for c in row.get("choices") or ())
        for row in rows
    )
