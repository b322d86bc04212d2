"""Where the labels of points stand in a figure, so that they cover nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from vig_ray.report.colours import LIGHT

Json = dict[str, Any]
LETTER = 6.2
"""Mean width of a letter of a label at 11 pixels, pixels."""
_LINE = 13

_SIDES: dict[str, Json] = {
    "right": {"align": "left", "dx": 9}, "left": {"align": "right", "dx": -9},
    "above": {"align": "center", "dy": -13}, "below": {"align": "center", "dy": 13},
    "above right": {"align": "left", "dx": 5, "dy": -11}, "below right": {"align": "left", "dx": 5, "dy": 11},
    "above left": {"align": "right", "dx": -5, "dy": -11}, "below left": {"align": "right", "dx": -5, "dy": 11},
}  # fmt: skip
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, pixels."""


def stairs(line: Sequence[tuple[float, float]]) -> Iterator[Box]:
    """What a stepped line through these places covers."""
    for (left, level), (right, next_level) in itertools.pairwise(line):
        yield left, level - 1, right, level + 1
        yield right - 1, min(level, next_level), right + 1, max(level, next_level)


def place_labels(
    places: Sequence[tuple[float, float]],
    texts: Sequence[str],
    order: Sequence[int],
    width: float,
    height: float,
    *,
    lines: Sequence[Box] = (),
    intervals: Sequence[Box] = (),
) -> list[str | None]:
    """The side of its point that each text stands on, so that it covers no other text, point or line, and if that can
    be no interval; None where there is no room. `places`: of points, pixels; `order`: who chooses first."""
    marks = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    taken: list[Box] = []
    found: list[str | None] = [None] * len(places)
    for number in order:
        own = [*lines, *(mark for at, mark in enumerate(marks) if at != number)]
        for around in ([*own, *intervals], own):
            fitting = (
                side for side in _SIDES
                if _free(box_of(places[number], texts[number], side), [*around, *taken], width, height)
            )  # fmt: skip
            found[number] = next(fitting, None)
            if found[number] is not None:
                taken.append(box_of(places[number], texts[number], str(found[number])))
                break
    return found


def box_of(place: tuple[float, float], text: str, side: str) -> Box:
    """What a text at a side of its point covers."""
    x, y = place[0] + _SIDES[side].get("dx", 0), place[1] + _SIDES[side].get("dy", 0)
    length = LETTER * len(text)
    left = {"left": x, "right": x - length, "center": x - length / 2}[_SIDES[side]["align"]]
    return left, y - _LINE / 2, left + length, y + _LINE / 2


def _free(box: Box, others: Sequence[Box], width: float, height: float) -> bool:
    left, top, right, bottom = box
    if left < 0 or right > width or top < 0 or bottom > height:
        return False
    return all(right <= one[0] or left >= one[2] or bottom <= one[1] or top >= one[3] for one in others)


def label_layers(
    values: Sequence[Json], texts: Sequence[str], sides: Sequence[str | None], x: Json, y: Json
) -> Iterator[Json]:
    """The layers that write the texts at their sides of the points `values`, which have a cost and a value."""
    for side, looks in _SIDES.items():
        some = [
            {"cost": value["cost"], "value": value["value"], "text": text}
            for value, text, at in zip(values, texts, sides, strict=True) if at == side
        ]  # fmt: skip
        if some:
            yield {
                "data": {"values": some},
                "mark": {"type": "text", "baseline": "middle", "fontSize": 11, "color": LIGHT["text"], "aria": False,
                         **looks},
                "encoding": {"x": x, "y": y, "text": {"field": "text"}},
            }  # fmt: skip
