"""Vega-Lite specifications to SVG and PNG, and SVG with the colours of the page that holds it."""

from __future__ import annotations

import re
from typing import Any

import vl_convert

from vig_ray.report.colours import LIGHT
from vig_ray.report.detokenize import escape_unprintable

_VERSION = "6.4"
_BY_VALUE = {value: name for name, value in LIGHT.items()}


def to_svg(spec: dict[str, Any]) -> str:
    """A specification as SVG in the light colours; nothing in it is fetched from elsewhere."""
    svg: str = vl_convert.vegalite_to_svg(_printable(spec), vl_version=_VERSION, allowed_base_urls=[])
    return svg


def _printable(part: Any) -> Any:
    """The same without control characters, at which vl-convert 1.9 ends the whole process."""
    if isinstance(part, dict):
        return {name: _printable(value) for name, value in part.items()}
    if isinstance(part, list):
        return [_printable(value) for value in part]
    return escape_unprintable(part) if isinstance(part, str) else part


def to_png(svg: str) -> bytes:
    """An SVG as a PNG on white, at twice its size in pixels."""
    width, height = re.findall(r'(?:width|height)="([\d.]+)"', svg)[:2]
    background = f'<rect width="{width}" height="{height}" fill="{LIGHT["ground"]}"/>'
    inside = svg.index(">") + 1
    png: bytes = vl_convert.svg_to_png(svg[:inside] + background + svg[inside:], scale=2)
    return png


def for_page(svg: str, label: str) -> str:
    """An SVG to stand in a page: its colours are the page's CSS variables, and `label` is what screen readers say."""
    svg = re.sub(
        r'(fill|stroke)="(#[0-9a-f]{6})"',
        lambda match: f'{match[1]}="var(--{_BY_VALUE.get(match[2], "text")})"',
        svg,
    )
    for name in ("xmlns:xlink", "xmlns"):
        svg = re.sub(rf' {name}="[^"]*"', "", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
