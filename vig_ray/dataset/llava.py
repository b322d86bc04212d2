"""LLaVA, ShareGPT4V and ShareGPT rows: `{"conversations": [{"from": "human", "value": ...}], "image": ...}`.

LLaMA-Factory's ShareGPT rows are the same with an `images` list, and may hold the turns under `messages`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vig_ray.dataset.fields import identifier, role, row_images, source, turn_list, type_name, with_system
from vig_ray.dataset.schema import RowError, Sample, Turn


def parse(row: Mapping[str, Any], key: str = "conversations") -> Sample:
    """The sample in a row whose turns, under `key`, have `from` and `value`.

    The text is kept unchanged, with its `<image>` marks. Raises RowError.
    """
    turns = []
    for index, turn in enumerate(turn_list(row.get(key), key)):
        text = turn.get("value")
        if not isinstance(text, str):
            raise RowError("BadConversation", f"turn {index}: 'value' is {type_name(text)}, not a string")
        turns.append(Turn(role(turn.get("from"), f"turn {index}"), text))
    images = row_images(row)
    return Sample(identifier(row), source(row, images), images, with_system(row, tuple(turns)))
