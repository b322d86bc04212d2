"""What all figures share: colours, sizes, legends; parts of Vega-Lite specifications."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vig_ray.report.colours import LIGHT, NAMES, WORDS

Json = dict[str, Any]
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # names the version; nothing asks for it


def spec(**parts: Any) -> Json:
    """A whole specification: its parts, with the colours and sizes that all figures share."""
    axis = {
        "labelColor": LIGHT["soft"], "titleColor": LIGHT["soft"], "gridColor": LIGHT["line"],
        "domainColor": LIGHT["line"], "tickColor": LIGHT["line"], "titleFontWeight": "normal", "labelFontSize": 11,
        "titleFontSize": 11, "gridOpacity": 0.6,
    }  # fmt: skip
    legend = {
        "labelColor": LIGHT["text"], "titleColor": LIGHT["soft"], "titleFontWeight": "normal", "orient": "top",
        "labelFontSize": 11, "titleFontSize": 11, "labelLimit": 240,
    }  # fmt: skip
    header = {"labelColor": LIGHT["text"], "titleColor": LIGHT["soft"], "labelFontSize": 12, "labelFontWeight": "bold"}
    config = {
        "axis": axis, "legend": legend, "header": header, "background": None, "view": {"stroke": None},
        "font": "sans-serif", "title": {"color": LIGHT["text"], "fontSize": 12, "anchor": "start"},
    }  # fmt: skip
    return {"$schema": _SCHEMA, "config": config, **parts}


def legend_of(names: Sequence[str], colours: Sequence[str], title: str, **more: Any) -> Json:
    """The encoding of a nominal colour and its legend: values, their colours, and what they are."""
    return {
        "type": "nominal", "scale": {"domain": list(names), "range": list(colours)}, "legend": {"title": title, **more},
    }  # fmt: skip


ZERO_LINE = {"condition": {"test": "datum.value === 0", "value": LIGHT["soft"]}, "value": LIGHT["line"]}
"""The colour of an axis' grid lines: the one at 0 stands out."""


def by_gain(columns: int, **legend: Any) -> Json:
    """A colour for each step of mean gain, with its legend."""
    return {
        "type": "ordinal",
        "sort": list(WORDS),
        "scale": {"domain": list(WORDS), "range": [LIGHT[name] for name in NAMES]},
        "legend": {"title": "mean gain, nats", "columns": columns, "symbolOpacity": 1, **legend},
    }
