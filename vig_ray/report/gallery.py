"""The samples that a report shows: their questions, images, blurred images, and answers token by token."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image

from vig_ray.dataset.images import ImageError, load_image
from vig_ray.dataset.schema import IMAGE_MARK, KEPT
from vig_ray.report.detokenize import token_texts
from vig_ray.report.tally import SHOWN, Candidates
from vig_ray.scoring.blur import blur_fast
from vig_ray.scoring.gain import token_gain
from vig_ray.tables.directories import rows_of
from vig_ray.tables.passes import View

_QUALITY = 82
_THREADS = 4  # each may hold a large image and its blur
PICTURES = 4
"""The most images of a sample that are shown."""
_SCORES = [
    "source", "vig", "clean_loss", "reference_loss", "num_truncated_tokens", "token_ids", "clean_logprobs",
    "reference_logprobs", "turn",
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A sample's place in a group. `of_all`: it is among the first of all sources, not only of its own source."""

    key: str
    of_all: bool


@dataclass(frozen=True)
class Picture:
    """An image and its blurred version as data URIs, or the reason why there is none."""

    clear: str | None = None
    blurred: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Shown:
    """One sample. `row`: its scores. `pieces`, `gain`: one entry an answer token.

    `more_pictures`: how many of its images aren't shown. `weights`: its tokens' weights in the selection, None where
    they are all 1. `kept`: whether it is in the selection, None without a selection.
    """

    key: str
    row: dict[str, Any]
    pieces: list[str]
    gain: np.ndarray[Any, np.dtype[np.float64]]
    conversation: list[dict[str, str]]
    pictures: list[Picture]
    more_pictures: int = 0
    kept: bool | None = None
    weights: list[float] | None = None


@dataclass(frozen=True)
class Gallery:
    """The samples shown. `groups`: the places of each group in order. `samples`: by key, each once."""

    groups: dict[str, list[Place]]
    samples: dict[str, Shown] = field(default_factory=dict)


def arranged(candidates: Mapping[tuple[str, int | None], Candidates]) -> dict[str, list[Place]]:
    """The places of each group: the best of all sources, then those that are only among the best of their source."""
    groups: dict[str, list[Place]] = {}
    for name in SHOWN:
        first = candidates[name, None].key.tolist()
        of_sources = [part for (group, source), part in candidates.items() if group == name and source is not None]
        others = []
        if of_sources:
            value, key_hash, keys = (
                np.concatenate([getattr(part, column) for part in of_sources]) for column in ("value", "hash", "key")
            )
            others = [key for key in keys[np.lexsort((key_hash, value))].tolist() if key not in set(first)]
        groups[name] = [*(Place(key, True) for key in first), *(Place(key, False) for key in others)]
    return groups


def fetch(
    groups: dict[str, list[Place]],
    *,
    scores: str,
    samples: str | None,
    selection: str | None,
    tokenizer: Any,
    view: View,
    side: int,
    max_pixels: int,
    kept: bool = False,
) -> Gallery:
    """Read the samples that are shown. `samples` None: without images and questions. `kept`: with kept columns.

    `side`: the longer side of the images, in pixels. `view`: the reference; where it is the blur, it is shown as well.
    """
    keys = list(dict.fromkeys(place.key for places in groups.values() for place in places))
    rows = rows_of(scores, keys, [*_SCORES, *([KEPT.name] if kept else [])], view)
    originals = rows_of(samples, keys, ["conversation", "images"]) if samples else {}
    selected = rows_of(selection, keys, ["token_weights"]) if selection else None

    def shown(key: str) -> Shown:
        row, original = rows[key], originals.get(key, {})
        images = original.get("images") or []
        return Shown(
            key=key,
            row=row,
            pieces=[f"#{token}" for token in row["token_ids"]]
            if tokenizer is None
            else token_texts(tokenizer, row["token_ids"], row["turn"]),
            gain=token_gain(row["clean_logprobs"], row["reference_logprobs"]),
            conversation=original.get("conversation") or [],
            pictures=[picture(image, view.reference == "blur", side, max_pixels) for image in images[:PICTURES]],
            more_pictures=max(0, len(images) - PICTURES),
            kept=None if selected is None else key in selected,
            weights=None if selected is None or key not in selected else selected[key]["token_weights"],
        )

    with ThreadPoolExecutor(_THREADS) as pool:
        return Gallery(groups, dict(zip(keys, pool.map(shown, keys), strict=True)))


def misspelled(gallery: Gallery) -> bool:
    """Whether most answers differ from the text of their tokens, so that the tokenizer must be another one."""
    wrong = checked = 0
    for shown in gallery.samples.values():
        answers = [turn["text"] for turn in shown.conversation if turn["role"] == "assistant"]
        if answers and not shown.row["num_truncated_tokens"]:
            text = "".join("".join(shown.pieces).split())
            checked += 1
            wrong += not any("".join(answer.split()) in text for answer in answers)
    return wrong > checked / 2


def picture(image: Mapping[str, Any], blurred: bool, side: int, max_pixels: int) -> Picture:
    """An image of samples/ made small, and its blur, which is taken at full size as in the reference pass."""
    try:
        pixels = load_image(image, max_pixels=max_pixels)
    except ImageError as error:
        return Picture(error=str(error))
    return Picture(small(pixels, side), small(blur_fast(pixels), side) if blurred else None)


def small(pixels: np.ndarray[Any, np.dtype[np.uint8]], side: int) -> str:
    """uint8 [H, W, 3] as the data URI of a JPEG whose longer side is at most `side` pixels."""
    thumbnail = PIL.Image.fromarray(pixels)
    thumbnail.thumbnail((side, side))
    buffer = BytesIO()
    thumbnail.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)  # colours are what many questions are about
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def question_text(text: str) -> str:
    """A turn's text without the marks of its images."""
    return text.replace(IMAGE_MARK, " ").strip()
