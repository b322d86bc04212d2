"""The layouts that are recognised by their columns: rows by their keys, files of columns once by their schema."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa

from vig_ray.dataset.fields import shorten
from vig_ray.dataset.layouts import conversations, exchanges, pixmo
from vig_ray.dataset.layouts.layout import TOLD, Layout, holds
from vig_ray.dataset.layouts.unfit import ambiguous, row_paths, schema_paths, unfit
from vig_ray.dataset.schema import RowError, Sample
from vig_ray.errors import StageError


def _by_turns(row: Mapping[str, Any], *, keys: tuple[str, ...]) -> Sample:
    return conversations.parse(row, *keys)


def _asked(row: Mapping[str, Any], *, asked: str, answered: str) -> Sample:
    return exchanges.question(row, asked, answered)


LAYOUTS = (
    Layout(
        name="conversations",
        needs={"conversations": "turns"},
        parse=partial(_by_turns, keys=("conversations",)),
        rank=1,
        columns="conversations=conversations",
    ),
    Layout(
        name="messages",
        needs={"messages": "turns"},
        parse=partial(_by_turns, keys=("messages",)),
        rank=1,
        columns="messages=messages",
    ),
    Layout(
        name="texts",
        needs={"texts": "turns"},
        parse=exchanges.pairs,
        rank=1,
        columns="texts=texts",
        image=True,
    ),
    Layout(
        name="prompt-completion",
        needs={"prompt": "turns", "completion": "turns"},
        parse=partial(_by_turns, keys=("prompt", "completion")),
        rank=2,
        columns="question=prompt,answer=completion",
    ),
    Layout(
        name="question-answer",
        needs={"question": "texts", "answer": "texts"},
        parse=exchanges.question,
        rank=4,
        columns="question=question,answer=answer",
        more=exchanges.CHOICES,
        image=True,
    ),
    Layout(
        name="question-answers",
        needs={"question": "texts", "answers": "texts"},
        parse=partial(_asked, asked="question", answered="answers"),
        rank=5,
        columns="question=question,answer=answers",
        more=exchanges.CHOICES,
        image=True,
    ),
    Layout(
        name="vqa-v2",
        needs={"question": "text", "multiple_choice_answer": "text"},
        parse=partial(_asked, asked="question", answered="multiple_choice_answer"),
        rank=3,
        columns="question=question,answer=multiple_choice_answer",
        image=True,
    ),
    Layout(
        name="chart-qa",
        needs={"query": "text", "label": "texts"},
        parse=partial(_asked, asked="query", answered="label"),
        rank=4,
        columns="question=query,answer=label",
        more=exchanges.CHOICES,
        image=True,
    ),
    Layout(
        name="query-response",
        needs={"query": "text", "response": "texts"},
        parse=exchanges.query,
        rank=4,
        columns="question=query,answer=response",
        more=("history",),
    ),
    Layout(
        name="alpaca",
        needs={"instruction": "text", "output": "text"},
        parse=exchanges.instruction,
        rank=4,
        columns="question=instruction,answer=output",
        more=("input", "history"),
    ),
    Layout(
        name="pixmo-points",
        # PixMo-Count, which has no collection_method, tells its points in pixels.
        needs={"image_url": "text", "label": "text", "points": "turns", "collection_method": "text"},
        parse=pixmo.points,
        rank=0,
        columns="question=label,answer=count",
    ),
    Layout(
        name="pixmo-cap-qa",
        needs={"image_url": "text", "question": "text", "answer": "text", "messages": "any"},
        parse=pixmo.caption_questions,
        rank=0,
        columns="question=question,answer=answer",
    ),
    Layout(
        name="pixmo-qa",
        needs={"image_url": "text", "question": "text", "answer": "text"},
        parse=pixmo.tagged_question,
        rank=3,
        columns="question=question,answer=answer",
        more=exchanges.CHOICES,
    ),
    Layout(
        name="caption",
        needs={"caption": "text"},
        parse=exchanges.caption,
        rank=6,
        columns="answer=caption",
        image=True,
    ),
)


ALL = tuple(layout.name for layout in LAYOUTS)
"""The names of all layouts."""


class AmbiguousError(RowError):
    """A row is of two layouts alike."""


def recognise(row: Mapping[str, Any], *, image: bool = False, among: tuple[str, ...] = ALL) -> Layout:
    """The layout of a row by its keys, those with null left out; `image`: it comes with an image in any case.

    `among`: the names of the layouts that it may be of. Raises RowError where it is of none, AmbiguousError where it is
    of two.
    """
    found = _of_keys(tuple(row), tuple([value is None for value in row.values()]), image, among)
    if len(found) == 1:
        return found[0]
    if found:
        raise AmbiguousError("UnknownFormat", ambiguous(found))
    filled, keys = _filled(row), _with_image(row, image)
    lacking = [(layout, layout.lacks(filled, keys)) for layout in LAYOUTS if layout.name in among]
    raise RowError("UnknownFormat", unfit("the row's keys", filled, lacking, row_paths(row)))


def recognise_columns(uri: str, schema: pa.Schema) -> list[Layout]:
    """The layouts that rows of the file at `uri` may be of, by its columns: one, or several that each row decides.

    Raises StageError where there is none.
    """
    lacking = [(layout, _lacking(layout, schema)) for layout in LAYOUTS]
    fitting = [layout for layout, missing in lacking if not missing]
    if not fitting:
        raise StageError(f"{uri}: {unfit('the columns', schema.names, lacking, schema_paths(schema))}")
    return fitting


@lru_cache(maxsize=1024)  # a file's rows have few sets of keys, and a layout is looked for once for each
def _of_keys(keys: tuple[str, ...], null: tuple[bool, ...], image: bool, among: tuple[str, ...]) -> tuple[Layout, ...]:
    """The layouts of the lowest rank that fit rows with these keys."""
    filled = [key for key, is_null in zip(keys, null, strict=True) if not is_null]
    allowed = [layout for layout in LAYOUTS if layout.name in among]
    fitting = [layout for layout in allowed if not layout.lacks(filled, _with_image(keys, image))]
    lowest = min((layout.rank for layout in fitting), default=0)
    return tuple(layout for layout in fitting if layout.rank == lowest)


def _filled(row: Mapping[str, Any]) -> list[str]:
    return [key for key, value in row.items() if value is not None]


def _with_image(keys: Collection[str], image: bool) -> Collection[str]:
    return [*keys, "image"] if image else keys


def _lacking(layout: Layout, schema: pa.Schema) -> list[str]:
    """What a file lacks to be of a layout; a column that holds something else is lacking."""
    missing = layout.lacks(schema.names, schema.names)
    for name, kind in layout.needs.items():
        if name in schema.names:
            held = schema.types[schema.names.index(name)]
            if not holds(held, kind):
                missing.append(f"'{name}' as {TOLD[kind]} (it is {shorten(str(held))})")
    return missing
