"""Vega-Lite specifications of a study's figures: differences from the baseline, curves, cost against quality, scaling
laws, and where the time went."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vig_ray.report.chart_labels import LETTER, label_layers, place_labels, stairs
from vig_ray.report.chart_style import ZERO_LINE, legend_of, spec
from vig_ray.report.colours import LIGHT
from vig_ray.report.evaluation_charts import colours_of
from vig_ray.report.study_cost import MEASURES, Measure, Point, frontier, points
from vig_ray.report.study_numbers import Metric, Row, StudyNumbers, bounds
from vig_ray.report.study_words import needs, time_text

Json = dict[str, Any]
_LABELS, _ROW = 150, 20
_DASHES = ([1, 0], [6, 3], [2, 2])
_STROKE = {"symbolType": "stroke", "symbolStrokeWidth": 2}
_FEW = 3  # lines whose bands are told apart
_ACROSS = [1, 4]  # the dash of what isn't varied
_SAYS = {"better, settled": LIGHT["p3"], "worse, settled": LIGHT["m3"], "open": LIGHT["zero"]}
_LOG_FROM = 16  # how many times the least the greatest is, from which a scale is logarithmic


def differences(study: StudyNumbers, width: int) -> Json:
    """Each row's difference from the baseline with its interval, a panel a metric."""
    panels = [panel for metric in study.ranked if (panel := _differences_of(study, metric, width)) is not None]
    return spec(vconcat=panels, spacing=18, resolve={"scale": {"color": "shared", "shape": "shared"}})


def _differences_of(study: StudyNumbers, metric: Metric, width: int) -> Json | None:
    values, means = [], []
    for row in study.others:
        one = row.numbers[metric.name].difference
        if one is None or one.mean.value is None:
            continue
        says = "open"
        if one.settled:
            says = "better, settled" if metric.is_better(one.mean.value) else "worse, settled"
        means.append(one.mean)
        values.append({
            "row": row.label, "says": says, **_ends(one.mean, metric.scale),
            "say": f"{row.label} - {study.base_of(row)}, {metric.head}: {metric.told(one.mean, sign=True)}, "
            f"{needs(one)}",
        })  # fmt: skip
    if not values:
        return None
    names = [row.label for row in study.others]
    low, high = bounds([0, *(value["value"] for value in values)], means, metric.scale)
    y = {"field": "row", "type": "nominal", "sort": names, "title": None, "scale": {"domain": names},
         "axis": {"labelLimit": _LABELS - 15, "labelColor": LIGHT["text"], "grid": True}}  # fmt: skip
    x = {"type": "quantitative", "title": f"{metric.head}: difference from {study.compared_with}",
         "scale": {"domain": [low, high], "nice": False}, "axis": {"gridColor": ZERO_LINE, "tickCount": 6}}  # fmt: skip
    colour = {"field": "says", **legend_of(list(_SAYS), list(_SAYS.values()), "difference", columns=3)}
    shape = {"field": "says", "type": "nominal", "legend": {"title": "difference", "columns": 3},
             "scale": {"domain": list(_SAYS), "range": ["triangle-up", "triangle-down", "circle"]}}  # fmt: skip
    return {
        "data": {"values": values},
        "width": width - _LABELS - 10,
        "height": {"step": _ROW},
        "layer": [
            {
                "transform": [{"filter": "datum.low !== null"}],
                "mark": {"type": "rule", "strokeWidth": 2, "clip": True, "aria": False},
                "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": colour},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {"y": y, "x": {**x, "field": "value"}, "color": colour, "shape": shape,
                             "description": {"field": "say"}},
            },
        ],
    }  # fmt: skip


def _ends(mean: Any, scale: float) -> Json:
    return {name: None if (one := getattr(mean, name)) is None else scale * one for name in ("value", "low", "high")}


class Lines(NamedTuple):
    """What a chart of a metric over one varied number shows. `lines`: rows by the line's name, in the axis' order;
    `levels`: rows that have no place on it, an arm's only ones, by arm."""

    lines: dict[str, list[Row]]
    levels: dict[str, Row]


def lines_over(study: StudyNumbers, axis: str, metric: Metric) -> Lines:
    """A line an arm, and one for each value of what else is varied; those of the baseline's arm first."""
    lines: dict[str, list[Row]] = {}
    levels: dict[str, Row] = {}
    order = study.arms
    for row in sorted(study.rows, key=lambda row: order.index(row.arm)):
        if row.numbers[metric.name].mean.value is None:
            continue
        if axis in row.axes:
            lines.setdefault(row.without(axis), []).append(row)
        else:
            levels[row.without(axis)] = row
    return Lines({name: sorted(rows, key=lambda row: float(row.axes[axis])) for name, rows in lines.items()}, levels)


def curve(study: StudyNumbers, axis: str, metric: Metric, width: int) -> Json:
    """A metric over one varied number: a line an arm, with its interval as a band; dotted where an arm isn't varied."""
    found = lines_over(study, axis, metric)
    names = [*found.lines, *found.levels]
    values = [
        {"line": name, "at": float(row.axes[axis]), **_told(row, metric, f"{name}, {axis} = {row.axes[axis]}")}
        for name, rows in found.lines.items() for row in rows
    ]  # fmt: skip
    levels = [{"line": name, **_told(row, metric, name)} for name, row in found.levels.items()]
    means = [row.numbers[metric.name].mean for rows in found.lines.values() for row in rows]
    at = sorted({value["at"] for value in values})
    low, high = bounds([value["value"] for value in [*values, *levels]], means, metric.scale)
    x = {"field": "at", "type": "quantitative", "title": study.in_words(axis),
         "scale": _scale(at, room=0.03, linear=study.is_share(axis)),
         "axis": {"values": at, "labelOverlap": True, "labelExpr": "'' + datum.value", "grid": False}}  # fmt: skip
    y = {"field": "value", "type": "quantitative", "title": metric.head,
         "scale": {"domain": [low, high], "nice": False}, "axis": {"tickCount": 6}}  # fmt: skip
    arm_of = {name: rows[0].arm for name, rows in found.lines.items()}
    arm_of |= {name: row.arm for name, row in found.levels.items()}
    by_arm = len({*arm_of.values()}) == len(names)  # else an arm's lines need colours of their own
    shown = (
        _colours(study.arms, arm_of, width, **_STROKE) if by_arm else _colours(names, _same(names), width, **_STROKE)
    )
    colour = {"field": "line", **shown}
    dashes = [_DASHES[(number + number // 6) % len(_DASHES)] for number in range(len(found.lines))]
    dash = {"field": "line", "type": "nominal", "legend": colour["legend"],
            "scale": {"domain": names, "range": [*dashes, *[_ACROSS] * len(found.levels)]}}  # fmt: skip
    layers: list[Json] = [
        {
            "transform": [{"filter": "isValid(datum.low)"}],
            "mark": {
                "type": "area",
                "opacity": 0.16 if len(found.lines) <= _FEW else 0.08,
                "clip": True,
                "aria": False,
            },
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
        },
        {
            "mark": {"type": "line", "strokeWidth": 2, "aria": False},
            "encoding": {"x": x, "y": y, "color": colour, "strokeDash": dash},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, "description": {"field": "say"}},
        },
    ]
    if levels:
        layers.insert(0, {
            "data": {"values": levels},
            "mark": {"type": "rule", "strokeWidth": 2, "clip": True},
            "encoding": {"y": y, "color": colour, "strokeDash": dash, "description": {"field": "say"}},
        })  # fmt: skip
    return spec(data={"values": values}, width=width - 70, height=250, layer=layers)


def _colours(names: Sequence[str], shown: Mapping[str, str], width: int, **legend: Any) -> Json:
    """A colour for each of the names, and a legend of what is shown: by its text, the name whose colour it has."""
    found = colours_of(list(names))["scale"]
    colour_of = dict(zip(found["domain"], found["range"], strict=True))
    columns = max(1, int((width - 80) // (LETTER * max(map(len, shown)) + 30)))
    colours = [colour_of[name] for name in shown.values()]
    return legend_of(list(shown), colours, "arm", columns=columns, symbolOpacity=1, **legend)


def _same(names: Sequence[str]) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


def _told(row: Row, metric: Metric, who: str) -> Json:
    mean = row.numbers[metric.name].mean
    say = f"{who}: {metric.head} {metric.told(mean)}, {mean.seeds} seed{'s' if mean.seeds != 1 else ''}"
    return {**_ends(mean, metric.scale), "say": say}


def _scale(values: Sequence[float], room: float = 0.06, *, linear: bool = False) -> Json:
    """A scale with some room at both ends; logarithmic where values are of several magnitudes, unless `linear`."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= _LOG_FROM and not linear:
        by = (high / low) ** room
        return {"type": "log", "domain": [low / by, high * by], "nice": False}
    pad = room * (high - low) or 0.05 * abs(high) or 0.5
    return {"domain": [low - pad, high + pad], "nice": False}


def _ticks(scale: Json) -> Json:
    """Few ticks: on a logarithmic scale at 1, 2 and 5, which would get one at each digit."""
    if scale.get("type") != "log":
        return {"tickCount": 6}
    low, high = scale["domain"]
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return {"values": [at for ten in tens for digit in (1, 2, 5) if low <= (at := digit * 10.0**ten) <= high]}


def cost(study: StudyNumbers, metric: Metric, width: int) -> Json:
    """What rows reach against what they cost, a panel for each measure of cost, with the frontier drawn."""
    of_measure = {measure: points(study, metric, measure) for measure in MEASURES}
    shown = {point.row.arm for found in of_measure.values() for point in found}
    arms = [arm for arm in study.arms if arm in shown]
    panels = [_cost_panel(study, metric, measure, found, arms, width) for measure, found in of_measure.items() if found]
    return spec(vconcat=panels, spacing=18, resolve={"scale": {"color": "shared"}})


def _cost_panel(
    study: StudyNumbers, metric: Metric, measure: Measure, found: Sequence[Point], arms: Sequence[str], width: int
) -> Json:
    best = frontier(found, higher_is_better=metric.higher_is_better is True)
    inner, height = width - 80, 260
    means = [point.row.numbers[metric.name].mean for point in found]
    low, high = bounds([metric.scale * point.quality for point in found], means, metric.scale)
    x_scale = _scale([point.cost for point in found])
    values = [
        {
            "arm": point.row.arm, "cost": point.cost, "best": point in best,
            **_told(point.row, metric, f"{point.row.label}, {point.cost:,.0f} {measure.words}"),
        }
        for point in found
    ]  # fmt: skip
    x = {"field": "cost", "type": "quantitative", "title": measure.words, "scale": x_scale,
         "axis": {**_ticks(x_scale), "labelExpr": "format(datum.value, '~s')", "labelOverlap": True}}  # fmt: skip
    y = {"field": "value", "type": "quantitative", "title": metric.head,
         "scale": {"domain": [low, high], "nice": False}, "axis": {"tickCount": 6}}  # fmt: skip
    colour = {"field": "arm", **_colours(study.arms, _same(arms), width)}
    step = [{"cost": point.cost, "value": metric.scale * point.quality} for point in best]
    step.append({"cost": x_scale["domain"][1], "value": step[-1]["value"]})
    places = [(_place(point.cost, x_scale, inner), _y_place(metric.scale * point.quality, low, high, height))
              for point in found]  # fmt: skip
    ends = [[_y_place(metric.scale * end, low, high, height) for end in (mean.high, mean.low) if end is not None]
            for mean in means]  # fmt: skip
    rules = [(at - 1, two[0], at + 1, two[1]) for (at, _), two in zip(places, ends, strict=True) if two]
    texts = [_point_name(study, point.row) for point in found]
    first = sorted(range(len(found)), key=lambda number: found[number] not in best)
    line = [(_place(one["cost"], x_scale, inner), _y_place(one["value"], low, high, height)) for one in step]
    sides = place_labels(places, texts, first, inner, height, lines=[*stairs(line)], intervals=rules)
    return {
        "width": inner,
        "height": height,
        "layer": [
            {
                "data": {"values": step},
                "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.5, "strokeDash": [6, 3],
                         "color": LIGHT["soft"], "aria": False},
                "encoding": {"x": x, "y": y},
            },
            {
                "data": {"values": [value for value in values if value["low"] is not None]},
                "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.55, "clip": True, "aria": False},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
            },
            *_points_of(values, x, y, colour),
            *label_layers(values, texts, sides, x, y),
        ],
    }  # fmt: skip


def _points_of(values: Sequence[Json], x: Json, y: Json, colour: Json) -> Iterator[Json]:
    """Those on the frontier filled, the others rings."""
    for best in (False, True):
        some = [value for value in values if value["best"] is best]
        if some:
            yield {
                "data": {"values": some},
                "mark": {"type": "point", "filled": best, "size": 90, "opacity": 1, "strokeWidth": 2},
                "encoding": {"x": x, "y": y, "color": colour, "description": {"field": "say"}},
            }


def _point_name(study: StudyNumbers, row: Row) -> str:
    """What is written beside a point: of an arm that has several only what is varied, since its colour says the arm."""
    several = sum(other.arm == row.arm for other in study.rows) > 1
    return row.label.removeprefix(f"{row.arm} ") if several and row.axes else row.label


def _place(value: float, scale: Json, length: float) -> float:
    low, high = map(float, scale["domain"])
    if scale.get("type") == "log":
        value, low, high = math.log(value), math.log(low), math.log(high)
    return length * (value - low) / (high - low)


def _y_place(value: float, low: float, high: float, height: float) -> float:
    return min(height, max(0.0, height * (high - value) / (high - low)))


def scaling(study: StudyNumbers, width: int) -> Json:
    """Loss over size by arm, both logarithmic: means as points, the fitted law as a line, and a ring where it says that
    the largest comes out (PRIOR, section 4)."""
    asked = study.study.scaling
    assert asked is not None
    metric = study.metric(asked.of)
    arms = [arm for arm in study.arms if any(each.arm == arm for each in study.scaling)]
    found, fitted, said = [], [], []
    for each in study.scaling:
        for row in study.rows:
            if row.arm == each.arm and asked.over in row.axes and (row.numbers[asked.of].mean.value or 0) > 0:
                at = f"{each.arm}, {asked.over} = {row.axes[asked.over]}"
                found.append({"arm": each.arm, "size": float(row.axes[asked.over]), **_told(row, metric, at)})
        ends = (min(each.sizes), each.largest)
        for part in range(21):
            size = ends[0] * (ends[1] / ends[0]) ** (part / 20)
            value = metric.scale * (size / each.scale) ** each.exponent
            fitted.append({"arm": each.arm, "size": size, "value": value})
        say = f"{each.arm}, {asked.over} = {each.largest:g}: predicted {metric.text(each.predicted)}"
        said.append({"arm": each.arm, "size": each.largest, "value": metric.scale * each.predicted, "say": say})
    everything = [one["value"] for one in [*found, *fitted, *said]]
    x = {"field": "size", "type": "quantitative", "title": asked.over,
         "axis": {"values": sorted({one["size"] for one in found}), "labelExpr": "format(datum.value, '~s')",
                  "labelOverlap": True},
         "scale": {"type": "log", "nice": False, "domain": _wide([one["size"] for one in found], 0.04)}}  # fmt: skip
    y = {"field": "value", "type": "quantitative", "title": metric.head,
         "scale": {"type": "log", "nice": False, "domain": _wide(everything, 0.15)},
         "axis": {"tickCount": 5, "format": "~r"}}  # fmt: skip
    colour = {"field": "arm", **_colours(study.arms, _same(arms), width)}
    return spec(
        width=width - 80,
        height=260,
        layer=[
            {
                "data": {"values": fitted},
                "mark": {"type": "line", "strokeWidth": 1.5, "strokeDash": [6, 3], "aria": False},
                "encoding": {"x": x, "y": y, "color": colour},
            },
            {
                "data": {"values": [one for one in found if one["low"] is not None and one["low"] > 0]},
                "mark": {"type": "rule", "strokeWidth": 1.5, "clip": True, "aria": False},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
            },
            {
                "data": {"values": found},
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {"x": x, "y": y, "color": colour, "description": {"field": "say"}},
            },
            {
                "data": {"values": said},
                "mark": {"type": "point", "filled": False, "size": 160, "opacity": 1, "strokeWidth": 2},
                "encoding": {"x": x, "y": y, "color": colour, "description": {"field": "say"}},
            },
        ],
    )


def _wide(values: Sequence[float], room: float) -> list[float]:
    """The ends of a logarithmic scale."""
    low, high = min(values), max(values)
    by = max((high / low) ** room, 1.01)
    return [low / by, high * by]


def time_by_stage(study: StudyNumbers, width: int) -> Json:
    """The seconds that the runs of each stage took together, the longest first."""
    stages = sorted(study.cost.by_stage.items(), key=lambda one: -one[1].seconds)
    most = max(of.seconds for _, of in stages)
    unit, words = next((size, word) for size, word in ((3600, "hours"), (60, "minutes"), (1, "seconds"))
                       if most >= 2 * size or size == 1)  # fmt: skip
    values = [
        {
            "stage": name, "time": of.seconds / unit,
            "say": f"{name}: {time_text(of.seconds)} in {of.runs:,} run{'s' if of.runs != 1 else ''}",
        }
        for name, of in stages
    ]  # fmt: skip
    return spec(
        data={"values": values},
        width=width - _LABELS - 10,
        height={"step": 22},
        mark={"type": "bar", "color": LIGHT["p2"]},
        encoding={
            "y": {"field": "stage", "type": "nominal", "sort": [name for name, _ in stages], "title": None,
                  "axis": {"labelLimit": _LABELS - 15, "labelColor": LIGHT["text"]}},
            "x": {"field": "time", "type": "quantitative", "title": words, "axis": {"tickCount": 6}},
            "description": {"field": "say"},
        },
    )  # fmt: skip
