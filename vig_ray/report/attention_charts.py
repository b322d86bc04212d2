"""Vega-Lite specifications of the shares of attention on image tokens, of rows of OUT/evaluation/attention.parquet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vig_ray.report.chart_style import ZERO_LINE, legend_of, spec
from vig_ray.report.colours import LIGHT

Json = dict[str, Any]
_COLOURS = ("m3", "p3", "soft", "m2", "p2", "text")
_DASHES = ([1, 0], [6, 3], [2, 2])
_ROOM = {"left": 25, "top": 5, "right": 15, "bottom": 5}


def by_layer(rows: Sequence[Json], width: int) -> Json:
    """The share by layer, a line a model with its interval, and below it the difference to the baseline (VIG, Figure
    4). `rows`: of one task; a model whose layers have no difference is the baseline."""
    layers = [row for row in rows if row["head"] is None]
    models = list(dict.fromkeys(row["model"] for row in layers))
    shown = [_panel(layers, models, ("share", "low", "high"), "attention on image tokens", width)]
    apart = [row for row in layers if row["difference"] is not None]
    if apart:
        names = ("difference", "difference_low", "difference_high")
        shown.append(_panel(apart, models, names, "difference to the baseline", width))
    return spec(vconcat=shown, padding=_ROOM, resolve={"scale": {"color": "shared", "strokeDash": "shared"}})


def _panel(rows: Sequence[Json], models: Sequence[str], names: tuple[str, str, str], title: str, width: int) -> Json:
    value, low, high = names
    signed = value == "difference"
    values = [
        {"model": row["model"], "layer": row["layer"], "value": row[value], "low": row[low], "high": row[high],
         "say": f"{row['model']}, layer {row['layer']}: {_told(row, names, signed=signed)}"}
        for row in rows
    ]  # fmt: skip
    colours = [LIGHT[_COLOURS[number % len(_COLOURS)]] for number in range(len(models))]
    dashes = [_DASHES[number % len(_DASHES)] for number in range(len(models))]
    colour = {"field": "model", **legend_of(models, colours, "model", columns=2, symbolOpacity=1)}
    dash = {"field": "model", "type": "nominal", "legend": None, "scale": {"domain": list(models), "range": dashes}}
    x = {"field": "layer", "type": "quantitative", "title": "layer", "axis": {"tickMinStep": 1, "format": "d"},
         "scale": {"nice": False}}  # fmt: skip
    y = {"field": "value", "type": "quantitative", "title": title,
         "axis": {"format": "+%" if signed else "%", "gridColor": ZERO_LINE, "tickCount": 5}}  # fmt: skip
    return {
        "data": {"values": values},
        "width": width - 80,
        "height": 130 if signed else 220,
        "layer": [
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "area", "opacity": 0.22, "aria": False},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
            },
            {
                "mark": {"type": "line", "strokeWidth": 2, "aria": False},
                "encoding": {"x": x, "y": y, "color": colour, "strokeDash": dash},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 30, "opacity": 1},
                "encoding": {"x": x, "y": y, "color": colour, "description": {"field": "say"}},
            },
        ],
    }


def _told(row: Json, names: tuple[str, str, str], *, signed: bool) -> str:
    value, low, high = (row[name] for name in names)
    sign = "+" if signed else ""
    between = "" if low is None else f" ({low:{sign}.1%} to {high:{sign}.1%})"
    return f"{value:{sign}.1%}{between}"


_STEPS = {"under 5 %": (0.0, "ground"), "5 %": (0.05, "p1"), "20 %": (0.2, "p2"), "50 %": (0.5, "p3")}
"""Shares from which the next colour is taken; a page has its own in place of these, so there is no scale between."""


def by_head(rows: Sequence[Json], width: int) -> Json:
    """The share of each head, a field of layers by heads for each model. `rows`: of one task, with heads."""
    heads = [row for row in rows if row["head"] is not None]
    layers = 1 + max(row["layer"] for row in heads)
    side = max(4, min(24, (width - 80) // layers))
    colours = [LIGHT[colour] for _, colour in _STEPS.values()]
    fields = []
    for model in dict.fromkeys(row["model"] for row in heads):
        values = [
            {"layer": row["layer"], "head": row["head"], "step": _step(row["share"]),
             "say": f"{model}, layer {row['layer']}, head {row['head']}: {row['share']:.1%}"}
            for row in heads if row["model"] == model
        ]  # fmt: skip
        fields.append({
            "title": model,
            "data": {"values": values},
            "width": {"step": side},
            "height": {"step": side},
            "mark": {"type": "rect", "stroke": LIGHT["line"], "strokeWidth": 0.5},
            "encoding": {
                "x": {"field": "layer", "type": "ordinal", "title": "layer",
                      "axis": {"labelAngle": 0, "labelOverlap": True}},
                "y": {"field": "head", "type": "ordinal", "title": "head", "axis": {"labelOverlap": True}},
                "color": {"field": "step", **legend_of(list(_STEPS), colours, "attention on image tokens, from",
                                                       columns=4, symbolStrokeColor=LIGHT["line"])},
                "description": {"field": "say"},
            },
        })  # fmt: skip
    return spec(vconcat=fields, padding=_ROOM, resolve={"scale": {"color": "shared"}})


def _step(share: float) -> str:
    return [name for name, (least, _) in _STEPS.items() if share >= least][-1]
