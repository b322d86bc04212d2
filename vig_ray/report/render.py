"""Vega-Lite specifications to SVG and PNG, and to SVG that takes its colours from the page that holds it."""

from __future__ import annotations

import re
from typing import Any

import vl_convert

from vig_ray.report.colours import LIGHT
from vig_ray.report.detokenize import visible

_VERSION = "6.4"
_BY_VALUE = {value: name for name, value in LIGHT.items()}


def svg(spec: dict[str, Any]) -> str:
    """Drawn in the light colours, with nothing that a reader would have to fetch."""
    drawn: str = vl_convert.vegalite_to_svg(_visible(spec), vl_version=_VERSION, allowed_base_urls=[])
    return drawn


def _visible(part: Any) -> Any:
    """Without control characters, which vl-convert 1.9 doesn't survive: it ends the whole process."""
    if isinstance(part, dict):
        return {name: _visible(value) for name, value in part.items()}
    if isinstance(part, list):
        return [_visible(value) for value in part]
    return visible(part) if isinstance(part, str) else part


def png(drawn: str) -> bytes:
    """An SVG as a PNG on white, two pixels for each of its own."""
    width, height = re.findall(r'(?:width|height)="([\d.]+)"', drawn)[:2]
    ground = f'<rect width="{width}" height="{height}" fill="{LIGHT["ground"]}"/>'
    at = drawn.index(">") + 1
    found: bytes = vl_convert.svg_to_png(drawn[:at] + ground + drawn[at:], scale=2)
    return found


def themed(drawn: str, label: str) -> str:
    """For a page: colours by its CSS variables, and a label for those who hear it."""
    drawn = re.sub(
        r'(fill|stroke)="(#[0-9a-f]{6})"',
        lambda found: f'{found[1]}="var(--{_BY_VALUE.get(found[2], "text")})"',
        drawn,
    )
    for name in ("xmlns:xlink", "xmlns"):
        drawn = re.sub(rf' {name}="[^"]*"', "", drawn, count=1)
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
