"""Vega-Lite specifications of an evaluation's figures: numbers with their intervals, and relative performance."""

from __future__ import annotations

from typing import Any

from vig_ray.evaluation.statistics import Estimate
from vig_ray.evaluation.summary import estimate_text, metric_text
from vig_ray.evaluation.task import Metric
from vig_ray.report.chart_style import legend_of, spec
from vig_ray.report.colours import LIGHT

Json = dict[str, Any]
_PALETTE = (LIGHT["zero"], LIGHT["p3"], LIGHT["m3"], LIGHT["p2"], LIGHT["m2"], LIGHT["text"])
_ROW = 20


def told(one: Json, *, percent: bool, sign: bool = False) -> str:
    """A number with its interval as text."""
    value = float("nan") if one["value"] is None else one["value"]
    return estimate_text(Estimate(value, one["low"], one["high"]), percent=percent, sign=sign)


def metric_name(metric: Json) -> str:
    """A metric as the heads of tables have it."""
    return metric_text(Metric(metric["name"], metric["percent"], metric["higher_is_better"]))


def colours_of(models: list[str], **legend: Any) -> Json:
    """A colour for each model, the baseline's grey first; used again where they are more than colours."""
    return legend_of(models, [_PALETTE[place % len(_PALETTE)] for place in range(len(models))], "model", **legend)


def intervals(task: Json, models: list[str], width: int) -> Json:
    """A task's metrics below each other, each on a scale of its own: a point a model, with its interval."""
    parts = []
    for metric in task["metrics"]:
        scale = 100 if metric["percent"] else 1
        values = []
        for model in models:
            one = task["models"][model]["numbers"][metric["name"]]
            if one["value"] is not None:
                say = f"{model}: {metric_name(metric)} {told(one, percent=metric['percent'])}"
                values.append({"model": model, "say": say, **_scaled(one, scale)})
        if values:
            parts.append(_points(values, models, metric_name(metric), width))
    return spec(vconcat=parts, spacing=14)


def _scaled(one: Json, scale: float) -> Json:
    return {name: None if one[name] is None else scale * one[name] for name in ("value", "low", "high")}


def _points(values: list[Json], models: list[str], title: str, width: int) -> Json:
    y = {"field": "model", "type": "nominal", "sort": models, "title": None, "scale": {"domain": models},
         "axis": {"labelLimit": 130, "labelColor": LIGHT["text"], "grid": True}}  # fmt: skip
    x = {"field": "value", "type": "quantitative", "title": title, "scale": {"zero": False}, "axis": {"tickCount": 6}}
    return {
        "data": {"values": values},
        "width": width - 150,
        "height": {"step": _ROW},
        "layer": [
            {
                "transform": [{"filter": "datum.low !== null"}],
                "mark": {"type": "rule", "strokeWidth": 2, "color": LIGHT["soft"], "aria": False},
                "encoding": {
                    "y": y,
                    "x": {"field": "low", "type": "quantitative", "title": title},
                    "x2": {"field": "high"},
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {
                    "y": y,
                    "x": x,
                    "color": {"field": "model", **colours_of(models), "legend": None},
                    "description": {"field": "say"},
                },
            },
        ],
    }


def relative(summary: Json, width: int) -> Json:
    """Each model's performance relative to the baseline by task, and its average (VIG, Figure 6)."""
    models = list(summary["relative"])
    tasks = [task["name"] for task in summary["tasks"]]
    rows = [*tasks, "average"] if len(tasks) > 1 else tasks
    values = []
    for model, found in summary["relative"].items():
        ones = found["of_task"] | ({"average": found} if len(tasks) > 1 else {})
        for task, one in ones.items():
            if one["value"] is not None:
                say = f"{model}, {task}: {told(one, percent=True)} % of {summary['baseline']}"
                values.append({"model": model, "task": task, "say": say, **_scaled(one, 100)})
    y = {"field": "task", "type": "nominal", "sort": rows, "title": None,
         "axis": {"labelLimit": 130, "labelColor": LIGHT["text"], "grid": True}}  # fmt: skip
    offset = {"field": "model", "sort": models}
    title = f"relative to {summary['baseline']}, %: above 100 is better"
    color = {"field": "model", **colours_of([summary["baseline"], *models])}
    color["scale"] = {name: part[1:] for name, part in color["scale"].items()}
    return spec(
        data={"values": values},
        width=width - 150,
        height={"step": max(12, _ROW - 2 * len(models)) if len(models) > 1 else _ROW},
        layer=[
            {
                "data": {"values": [{"at": 100}]},
                "mark": {"type": "rule", "color": LIGHT["soft"], "strokeDash": [4, 3], "aria": False},
                "encoding": {"x": {"field": "at", "type": "quantitative"}},
            },
            {
                "transform": [{"filter": "datum.low !== null"}],
                "mark": {"type": "rule", "strokeWidth": 2, "aria": False},
                "encoding": {
                    "y": y,
                    "yOffset": offset,
                    "x": {"field": "low", "type": "quantitative"},
                    "x2": {"field": "high"},
                    "color": color,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {
                    "y": y,
                    "yOffset": offset,
                    "x": {"field": "value", "type": "quantitative", "title": title, "scale": {"zero": False}},
                    "color": color,
                    "description": {"field": "say"},
                },
            },
        ],
    )
