"""PixMo's sets that aren't plain questions and answers: points, and questions that hold a whole conversation.

Points are written as Molmo's own loader does (`olmo/data/data_formatter.py` and `pixmo_datasets.py` of
github.com/allenai/molmo): in per cent of the image's width and height, to one decimal, from left to right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from math import isfinite
from typing import Any

from vig_ray.dataset.fields import structs, type_name
from vig_ray.dataset.layouts import conversations, exchanges
from vig_ray.dataset.schema import RowError, Sample

POINT_QUESTION = "Point to the {label} in the image."
"""One of the questions that Molmo's loader draws from."""
NO_POINTS = "There are none."
_TAG = re.compile(r"(?:^|(?<=\s))\[(USER|ASSISTANT)\](?=\s|$)")


def points(row: Mapping[str, Any]) -> Sample:
    """The sample in a row of PixMo-Points: a question after `label`, and its points as the answer. Raises RowError."""
    label = row.get("label")
    if not isinstance(label, str):
        raise RowError("BadConversation", f"'label' is {type_name(label)}, not a string")
    label = label.lower()
    answer = points_text(structs(row.get("points"), "points", "point"), label)
    return exchanges.exchange(row, [(POINT_QUESTION.format(label=label), answer)])


def points_text(found: list[dict[str, Any]], label: str) -> str:
    """Points, each with `x` and `y` in per cent, as Molmo's loader writes them. Raises RowError."""
    places = []
    for index, point in enumerate(found):
        x, y = (_per_cent(point.get(name), index, name) for name in ("x", "y"))
        places.append((x, y))
    places.sort(key=lambda place: place[0] * 10_000 + place[1])
    if not places:
        return NO_POINTS
    if len(places) == 1:
        ((x, y),) = places
        return f'<point x="{x:.1f}" y="{y:.1f}" alt="{label}">{label}</point>'
    told = " ".join(f'x{number}="{x:.1f}" y{number}="{y:.1f}"' for number, (x, y) in enumerate(places, 1))
    return f'<points {told} alt="{label}">{label}</points>'


def caption_questions(row: Mapping[str, Any]) -> Sample:
    """The sample in a row of PixMo-CapQA: its `messages` by user and assistant in turn, else its tagged question."""
    messages = row.get("messages")
    if not messages:
        return tagged_question(row)
    if not isinstance(messages, list) or not all(isinstance(text, str) for text in messages):
        return conversations.parse(row, "messages")
    if len(messages) % 2:
        raise RowError(
            "BadConversation", f"'messages' holds {len(messages)} texts, not a user's and an assistant's each"
        )
    return exchanges.exchange(row, zip(messages[::2], messages[1::2], strict=True))


def tagged_question(row: Mapping[str, Any]) -> Sample:
    """The sample in a row whose question may hold earlier turns, after `[USER]` and `[ASSISTANT]` (PixMo-CapQA)."""
    question = row.get("question")
    if not isinstance(question, str) or not question.startswith("[USER]"):
        return exchanges.question(row)
    pieces = _TAG.split(question)[1:]  # USER, its text, ASSISTANT, its text, ...
    speakers, texts = pieces[::2], [text.strip() for text in pieces[1::2]]
    if speakers[-1] == "ASSISTANT" and not texts[-1]:
        speakers, texts = speakers[:-1], texts[:-1]
    if speakers != ["USER", "ASSISTANT"] * (len(speakers) // 2) + ["USER"]:
        raise RowError("BadConversation", "'question' has [USER] and [ASSISTANT] in another order than by turns")
    texts.append(exchanges.one_answer(row.get("answer"), "answer"))
    return exchanges.exchange(row, zip(texts[::2], texts[1::2], strict=True))


def _per_cent(value: object, index: int, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or not isfinite(value):
        raise RowError("BadConversation", f"point {index}: '{name}' is {type_name(value)}, not a finite number")
    if not 0 <= value <= 100:
        raise RowError("BadConversation", f"point {index}: '{name}' is {value}, not in per cent of the image's size")
    return (
        round(float(value) * 10) / 10
    )  # as numpy's round, which the loader uses: not the nearest decimal of the exact value
