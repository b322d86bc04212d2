"""Vega-Lite specifications of the figures that hold kept columns against VIG."""

from __future__ import annotations

from typing import Any

from vig_ray.report.chart_style import ZERO_LINE, spec
from vig_ray.report.colours import LIGHT
from vig_ray.report.format import correlation_text, format_gain, kept_value_names

Json = dict[str, Any]
_LABELS = 150  # pixels, of a row's name
_ROOM = {"left": 25, "top": 5, "right": 5, "bottom": 5}  # a page's font may be wider than the one that is measured


def correlations(kept: Json, width: int) -> Json:
    """The rank correlation of each column with VIG, a row each, between -1 and 1."""
    rows = sorted((row for row in kept["columns"] if row["spearman"] is not None), key=lambda row: -row["spearman"])
    values = [
        {"name": row["column"], "zero": 0, "rho": row["spearman"],
         "say": f"{row['column']}: {correlation_text(row)} over {row['correlated']:,} samples"}
        for row in rows
    ]  # fmt: skip
    y = {"field": "name", "type": "nominal", "sort": [row["name"] for row in values], "title": None,
         "axis": {"labelLimit": _LABELS - 10, "labelColor": LIGHT["text"]}}  # fmt: skip
    x = {"field": "rho", "type": "quantitative", "title": "rank correlation with VIG", "scale": {"domain": [-1, 1]},
         "axis": {"gridColor": ZERO_LINE, "tickCount": 5}}  # fmt: skip
    return spec(
        data={"values": values},
        padding=_ROOM,
        width=width - _LABELS - 30,
        height={"step": 20},
        layer=[
            {"mark": {"type": "rule", "color": LIGHT["p2"], "strokeWidth": 4, "aria": False},
             "encoding": {"y": y, "x": x, "x2": {"field": "zero"}}},
            {"mark": {"type": "point", "filled": True, "size": 80, "opacity": 1, "color": LIGHT["p3"]},
             "encoding": {"y": y, "x": x, "description": {"field": "say"}}},
        ],
    )  # fmt: skip


def boxes(kept: Json, width: int) -> Json:
    """Box plots of VIG by the values of each column, one below the other on one axis."""
    return spec(
        vconcat=[_boxes_of(row, width) for row in kept["columns"] if row["values"]],
        resolve={"scale": {"x": "shared"}},
        spacing=24,
        padding=_ROOM,
    )


def _boxes_of(column: Json, width: int) -> Json:
    names = kept_value_names(column)
    values = [
        {"name": name, **{word: row[word] for word in ("q05", "q1", "median", "q3", "q95", "mean")},
         "say": f"{column['column']} {name}: {row['samples']:,} samples, median {format_gain(row['median'])}, middle "
                f"half {format_gain(row['q1'])} to {format_gain(row['q3'])}, mean {format_gain(row['mean'])}"}
        for name, row in zip(names, column["values"], strict=True)
    ]  # fmt: skip
    y = {"field": "name", "type": "nominal", "sort": names, "title": None,
         "axis": {"labelLimit": _LABELS - 10, "labelColor": LIGHT["text"]}}  # fmt: skip

    def x(name: str) -> Json:
        return {"field": name, "type": "quantitative", "title": "sample VIG, nats",
                "axis": {"gridColor": ZERO_LINE, "tickCount": 7}}  # fmt: skip

    plot, wide = width - _LABELS - 30, width > 400
    told = f": {correlation_text(column)}" if column["spearman"] is not None and wide else ""
    title = {"frame": "group", "limit": round(0.85 * plot)} if wide else {"frame": "bounds", "limit": plot + 30}
    return {
        "title": {"text": f"{column['column']}{told}", **title},
        "data": {"values": values},
        "width": plot,
        "height": {"step": 20},
        "layer": [
            {"mark": {"type": "rule", "color": LIGHT["soft"], "strokeWidth": 1.5, "aria": False},
             "encoding": {"y": y, "x": x("q05"), "x2": {"field": "q95"}}},
            {"mark": {"type": "bar", "height": 12, "color": LIGHT["p2"], "stroke": LIGHT["soft"], "strokeWidth": 0.7},
             "encoding": {"y": y, "x": x("q1"), "x2": {"field": "q3"}, "description": {"field": "say"}}},
            {"mark": {"type": "tick", "size": 12, "thickness": 2.5, "color": LIGHT["text"], "aria": False},
             "encoding": {"y": y, "x": x("median")}},
            {"mark": {"type": "point", "filled": True, "size": 30, "opacity": 1, "color": LIGHT["ground"],
                      "stroke": LIGHT["text"], "strokeWidth": 1, "aria": False},
             "encoding": {"y": y, "x": x("mean")}},
        ],
    }  # fmt: skip
