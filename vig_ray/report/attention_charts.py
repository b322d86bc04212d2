"""Figures of the shares of attention on image tokens, of rows of OUT/evaluation/attention.parquet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vig_ray.report.chart_style import ZERO_LINE, legend_of, spec
from vig_ray.report.colours import LIGHT
from vig_ray.report.evaluation_charts import colours_of, told
from vig_ray.report.figures import Figure
from vig_ray.report.tables import table

Json = dict[str, Any]
_SHARE, _DIFFERENCE = ("share", "low", "high"), ("difference", "difference_low", "difference_high")
_DASHES = ([1, 0], [6, 3], [2, 2])
_ROOM = {"left": 25, "top": 5, "right": 15, "bottom": 5}


def figures_of(curves: Sequence[Json], name: str, task: str) -> list[tuple[Figure, str]]:
    """The figures of a task, called after `name`, with their tables; none where it has no curves."""
    rows = [row for row in curves if row["task"] == task]
    if not rows:
        return []
    found = [
        (
            Figure(
                f"{name}-layers",
                f"{task}: attention on the image by layer",
                "What share of its attention an answer's token gives to image tokens, mean over heads, tokens and "
                "answers. Bands are 95 % intervals of the paired bootstrap; below, the difference to the baseline.",
                lambda width: by_layer(rows, width),
            ),
            _table(rows),
        )
    ]
    if any(row["head"] is not None for row in rows):
        figure = Figure(
            f"{name}-heads",
            f"{task}: attention on the image by head",
            "The same share of each head: a row a head, a column a layer.",
            lambda width: by_head(rows, width),
        )
        found.append((figure, _heads_table(rows)))
    return found


def _table(rows: Sequence[Json]) -> str:
    cells = [
        (row["layer"], row["model"], _told(row, _SHARE, sign=False),
         "" if row["difference"] is None else _told(row, _DIFFERENCE, sign=True), f"{row['answers']:,}")
        for row in sorted(rows, key=lambda row: row["layer"]) if row["head"] is None
    ]  # fmt: skip
    return table(("layer", "model", "share %", "difference %", "answers"), cells)


def _heads_table(rows: Sequence[Json]) -> str:
    """A row a model and layer, its heads beside each other."""
    heads = sorted({row["head"] for row in rows if row["head"] is not None})
    shares = {(row["model"], row["layer"], row["head"]): f"{100 * row['share']:.1f}" for row in rows}
    lines = dict.fromkeys((row["model"], row["layer"]) for row in rows if row["head"] is not None)
    cells = [(*line, *(shares.get((*line, head), "") for head in heads)) for line in lines]
    return table(("model", "layer", *(f"head {head} %" for head in heads)), cells)


def by_layer(rows: Sequence[Json], width: int) -> Json:
    """The share by layer, a line a model with its interval, and below it the difference to the baseline (VIG, Figure
    4). `rows`: of one task; a model whose layers have no difference is the baseline."""
    layers = [row for row in rows if row["head"] is None]
    models = list(dict.fromkeys(row["model"] for row in layers))
    shown = [_panel(layers, models, _SHARE, "attention on image tokens", width)]
    apart = [row for row in layers if row["difference"] is not None]
    if apart:
        shown.append(_panel(apart, models, _DIFFERENCE, "difference to the baseline", width))
    return spec(vconcat=shown, padding=_ROOM, resolve={"scale": {"color": "shared", "strokeDash": "shared"}})


def _panel(rows: Sequence[Json], models: list[str], names: tuple[str, str, str], title: str, width: int) -> Json:
    value, low, high = names
    signed = value == "difference"
    values = [
        {"model": row["model"], "layer": row["layer"], "value": row[value], "low": row[low], "high": row[high],
         "say": f"{row['model']}, layer {row['layer']}: {_told(row, names, sign=signed)} %"}
        for row in rows
    ]  # fmt: skip
    dashes = [_DASHES[number % len(_DASHES)] for number in range(len(models))]
    colour = {"field": "model", **colours_of(models, columns=2, symbolOpacity=1)}
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


def _told(row: Json, names: tuple[str, str, str], *, sign: bool) -> str:
    return told(
        dict(zip(("value", "low", "high"), (row[name] for name in names), strict=True)), percent=True, sign=sign
    )


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
