"""How much models attend to the image, layer by layer: `attention` on one's own samples, `attention:TASK` on a task's
questions. VIG (arXiv 2602.17186), section 4.4, Figures 4 and D.1, after Kaduri et al. (arXiv 2411.17491).

    share                 of attention on image tokens, mean over the answer's tokens, heads, layers and answers
    early, middle, late   the same over the first, the middle and the last third of the layers

The queries are the tokens of the answer that the model writes, or of the right one: `queries=written` (the default of
`attention:TASK`) or `queries=answers` (of `attention`). The curves over layers, and over heads with `heads=yes`, are in
OUT/evaluation/attention.parquet, with intervals and differences to the baseline, and in the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import pyarrow as pa

from vig_ray.errors import StageError
from vig_ray.evaluation.attention import places_of
from vig_ray.evaluation.curves import curves
from vig_ray.evaluation.outcomes import Marked
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Task, Weights, mean
from vig_ray.evaluation.tasks.held_out import HeldOut
from vig_ray.evaluation.wrapped import LeftOut, told_of

_THIRDS = ("early", "middle", "late")


class Attention:
    """See the module. `inner`: the task whose questions are asked; by default those of one's own samples."""

    source = "VIG, section 4.4, https://arxiv.org/abs/2602.17186; Kaduri et al., https://arxiv.org/abs/2411.17491"
    metrics_of = (Metric("share"), *(Metric(third) for third in _THIRDS))

    def __init__(self, inner: Task | None = None) -> None:
        self.inner = cast(Task, HeldOut()) if inner is None else inner
        self.name = "attention" if inner is None else f"attention:{inner.name}"
        self.max_new_tokens = self.inner.max_new_tokens
        self._known = ("answers", "written") if inner is None else ("written", "answers")
        every = [name for name in self.inner.options if not name.startswith("judge")]  # nothing is judged
        kept = ("selection", "tail") if inner is None else tuple(every)
        self._inner_options = kept
        self.options: Mapping[str, str] = {
            **{name: self.inner.options[name] for name in kept},
            "queries": f"{self._known[0]} (default) or {self._known[1]}: the tokens of the right answers, or of those "
            "that the model writes",
            "heads": "no (default); yes: the share of each head, too",
        }

    def begin(self, given: Given) -> None:
        """Let the inner task read what its questions need, and its options."""
        getattr(self.inner, "begin", lambda _: None)(self._inner_given(given))
        self.max_new_tokens = self.inner.max_new_tokens

    def _inner_given(self, given: Given) -> Given:
        own = {name: value for name, value in given.options.items() if name in self._inner_options}
        return replace(given, options=own)

    def read(self, given: Given) -> Iterator[Question]:
        """The questions that have an image."""
        return told_of(self.name, self._read(given))

    def _read(self, given: Given) -> Iterator[Question | LeftOut]:
        written = given.choice(self.name, "queries", self._known) == "written"
        heads = given.choice(self.name, "heads", ("no", "yes")) == "yes"
        for question in self.inner.read(self._inner_given(given)):
            if not question.images:
                yield LeftOut("no image")
                continue
            if not written and question.answer is None:
                raise StageError(
                    f"--tasks {self.name}: question {question.id!r} has no right answer; {self.name}.queries=written "
                    "takes the model's own"
                )
            yield replace(
                question,
                choices=(),
                more={},
                writes=written,
                passes=() if written else ("clean",),
                attention="heads" if heads else "layers",
            )

    def mark(self, question: Question, answer: Answer) -> Marks:  # noqa: ARG002
        """The share of each layer, and of each head where they are asked for."""
        layers = [answer.attention[name] for place, name in places_of(answer.attention).items() if place.head is None]
        return {"score": float(np.mean(layers)) if layers else float("nan"), **answer.attention}

    def curves(self, marked: Mapping[str, Marked], baseline: str, *, draws: int, seed: int) -> pa.Table:
        """The share of each layer and head, by model: see `vig_ray.evaluation.curves`."""
        return curves(self.name, marked, baseline, draws=draws, seed=seed)

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """See the module."""
        names = [name for place, name in places_of(marks).items() if place.head is None]
        shares = np.asarray([mean(marks[name], weights_N) for name in names])
        thirds = zip(_THIRDS, np.array_split(shares, len(_THIRDS)), strict=True)
        nothing = float("nan")
        return {
            "share": float(shares.mean()) if len(shares) else nothing,
            **{third: float(part.mean()) if len(part) else nothing for third, part in thirds},
        }
