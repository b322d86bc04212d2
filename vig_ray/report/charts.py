"""Vega-Lite specifications of the report's figures, with their data in them; made of the report's numbers alone."""

from __future__ import annotations

from typing import Any

from vig_ray.report.chart_style import ZERO_LINE, by_gain, legend_of, spec
from vig_ray.report.colours import LIGHT, WORDS, step_of
from vig_ray.report.format import (
    EVERYTHING,
    OTHERS,
    format_gain,
    format_interval,
    format_share,
    range_name,
    source_name,
)
from vig_ray.report.tally import GROUPS

Json = dict[str, Any]
_SQUARE = 400
_GROUP_COLOURS = (LIGHT["m3"], LIGHT["zero"], LIGHT["p3"])


def sample_gain(numbers: Json, width: int) -> Json:
    """Histograms of sample gain by source, a row each (VIG, Figure 2)."""
    bins, step = numbers["sample_gains"]["bins"], numbers["sample_gains"]["step"]
    shown = [row for row in numbers["sources"] if row["shown"]]
    names = [source_name(row["source"]) for row in sorted(shown, key=lambda row: -row["median"])]
    totals = {source_name(row["source"]): row["scored"] for row in shown}
    rest = sum(row["scored"] for row in numbers["sources"] if not row["shown"])
    if rest:
        names, totals = [*names, OTHERS], totals | {OTHERS: rest}
    lows = [part["low"] for part in bins if part["low"] is not None]
    far = bool(lows) and max(lows) - min(lows) < 0.05 * abs(min(lows))  # showing 0 would make the bars too narrow
    values: list[Json] = []
    tops: dict[tuple[str, float], float] = {}
    # In the order of GROUPS, so that the bars of groups that share a bin stand on each other.
    for part in bins:
        name = source_name(part["source"]) if "source" in part else OTHERS
        low = part["high"] - step if part["low"] is None else part["low"]
        high = part["low"] + step if part["high"] is None else part["high"]
        bound = f"below {high:g}" if part["low"] is None else f"{low:g} to {high:g}"
        bound = f"{low:g} and above" if part["high"] is None else bound
        bottom = tops.get((name, low), 0.0)
        tops[name, low] = bottom + part["samples"] / totals[name]
        say = f"{name}, {bound} nats: {part['samples']:,} {part['group']} samples"
        bar = {"source": name, "group": part["group"], "low": low, "high": high, "samples": part["samples"]}
        values.append({**bar, "bottom": bottom, "top": tops[name, low], "say": say})
    return spec(
        data={"values": values},
        facet={"row": {"field": "source", "type": "nominal", "sort": names, "title": None,
                       "header": {"labelOrient": "top", "labelAnchor": "start", "labelPadding": 2}}},
        spacing=6,
        resolve={"scale": {"y": "independent"}},
        spec={
            "width": width - 30, "height": 44,
            "mark": {"type": "bar", "binSpacing": 0.5},
            "encoding": {
                "x": {"field": "low", "type": "quantitative", "title": "sample VIG, nats",
                      "axis": {"gridColor": ZERO_LINE, "tickCount": 7}, "scale": {"nice": False, "zero": not far}},
                "x2": {"field": "high"},
                "y": {"field": "top", "type": "quantitative", "axis": None},
                "y2": {"field": "bottom"},
                "color": {"field": "group", **legend_of(GROUPS, _GROUP_COLOURS, "samples")},
                "description": {"field": "say"},
            },
        },
    )  # fmt: skip


def groups(numbers: Json, width: int) -> Json:
    """The share of each group in each source."""
    values, names = [], []
    rows = [row for row in numbers["sources"] if row["shown"]]
    everything = {"source": EVERYTHING, "groups": numbers["gain"]["groups"]}
    for row in [everything, *sorted(rows, key=lambda row: -row["groups"]["vision-critical"]["share"])]:
        name = row["source"] if row is everything else source_name(row["source"])
        names.append(name)
        for order, group in enumerate(reversed(GROUPS)):
            counts = row["groups"][group]
            say = f"{name}: {counts['samples']:,} {group} samples, {format_share(counts['share'])}"
            values.append({"source": name, "group": group, "order": order, "say": say, **counts})
    return spec(
        data={"values": values},
        width=width - 130,
        height={"step": 22},
        mark={"type": "bar"},
        encoding={
            "y": {"field": "source", "type": "nominal", "sort": names, "title": None,
                  "axis": {"labelLimit": 115, "labelColor": LIGHT["text"]}},
            "x": {"field": "share", "type": "quantitative", "stack": True, "scale": {"domain": [0, 1]},
                  "axis": {"format": "%", "tickCount": 5}, "title": "share of the source's samples"},
            "order": {"field": "order"},
            "color": {"field": "group", **legend_of(GROUPS, _GROUP_COLOURS, "samples")},
            "description": {"field": "say"},
        },
    )  # fmt: skip


def density(density: Json, what: str) -> Json:
    """Losses with and without the image, coloured by mean gain (VIG, Figure 3)."""
    step, open_from = density["step"], density["open_from"]
    last = max(max(cell["with"], cell["without"]) for cell in density["cells"]) + step
    most = max(cell["count"] for cell in density["cells"])
    side = _SQUARE * step / last
    values = []
    for cell in density["cells"]:
        bounds = [
            f"{low:g} and above" if low >= open_from else f"{low:g} to {low + step:g}"
            for low in (cell["with"], cell["without"])
        ]
        say = f"loss with the image {bounds[0]}, without {bounds[1]}: {cell['count']:,} {what}"
        values.append({
            "x": cell["with"] + step / 2, "y": cell["without"] + step / 2, "count": cell["count"],
            "gain": WORDS[int(step_of(cell["mean_gain"]))],
            "say": f"{say}, mean gain {cell['mean_gain']:+.2f}",
        })  # fmt: skip
    scale = {"domain": [0, last], "nice": False}
    return spec(
        width=_SQUARE,
        height=_SQUARE,
        layer=[
            {
                "data": {"values": [{"x": 0, "y": 0}, {"x": last, "y": last}]},
                "mark": {"type": "line", "color": LIGHT["soft"], "strokeDash": [4, 3], "strokeWidth": 1, "aria": False},
                "encoding": {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}},
            },
            {
                "data": {"values": values},
                "mark": {"type": "square", "opacity": 1, "stroke": LIGHT["zero"], "strokeWidth": 0.3},
                "encoding": {
                    "x": {"field": "x", "type": "quantitative", "scale": scale, "title": "loss with the image, nats"},
                    "y": {"field": "y", "type": "quantitative", "scale": scale, "title": "loss without it, nats"},
                    "size": {"field": "count", "type": "quantitative", "title": what,
                             "scale": {"type": "log", "domain": [1, max(10, most)],
                                       "range": [max(2.0, side**2 * 0.06), side**2 * 0.95]},
                             "legend": {"symbolFillColor": LIGHT["zero"], "symbolStrokeColor": LIGHT["zero"],
                                        "values": [10**power for power in range(len(str(most)))], "format": "~s"}},
                    "color": {"field": "gain", **by_gain(4, symbolType="square")},
                    "description": {"field": "say"},
                },
            },
        ],
    )  # fmt: skip


def _mean(row: Json) -> str:
    return f"mean gain {format_gain(row['mean'])}" + (f" ({format_interval(row)})" if row["low"] is not None else "")


def _means(values: list[Json], title: str, width: int, labels: int) -> Json:
    """A chart of means with their intervals, one a row, as points coloured by gain."""
    y = {"field": "name", "type": "nominal", "sort": [row["name"] for row in values], "title": None,
         "axis": {"labelLimit": labels - 10, "labelColor": LIGHT["text"], "grid": True}}  # fmt: skip
    return {
        "data": {"values": values},
        "width": width - labels - 10,
        "height": {"step": 18},
        "title": title,
        "layer": [
            {
                "mark": {"type": "rule", "color": LIGHT["soft"], "strokeWidth": 2, "aria": False},
                "encoding": {"y": y, "x": {"field": "low", "type": "quantitative"}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "stroke": LIGHT["soft"],
                         "strokeWidth": 0.7},
                "encoding": {
                    "y": y,
                    "x": {"field": "mean", "type": "quantitative", "title": "mean gain, nats",
                          "axis": {"gridColor": ZERO_LINE, "tickCount": 6}},
                    "color": {"field": "gain", **by_gain(7 if width > 400 else 4)},
                    "description": {"field": "say"},
                },
            },
        ],
    }  # fmt: skip


def tokens(numbers: Json, width: int) -> Json:
    """Mean gains of the tokens with the highest and the lowest (VIG, Table 2)."""
    parts = []
    for name in ("highest", "lowest"):
        rows = numbers["tokens"][name]
        texts = [row["text"] for row in rows]
        values = [
            {
                **row,
                "name": row["text"] if texts.count(row["text"]) == 1 else f"{row['text']} #{row['id']}",
                "gain": WORDS[int(step_of(row["mean"]))],
                "say": f"{row['text']}: {_mean(row)}, {row['count']:,} times",
            }
            for row in rows
        ]
        parts.append(_means(values, name, width, 110))
    return spec(vconcat=[part for part in parts if part["data"]["values"]], resolve={"scale": {"x": "shared"}})


def speech(numbers: Json, width: int) -> Json:
    """Mean gains by part of speech."""
    values = [
        {
            **row,
            "name": row["words"],
            "gain": WORDS[int(step_of(row["mean"]))],
            "say": f"{row['words']}: {_mean(row)}, {row['tokens']:,} tokens",
        }
        for row in numbers["speech"]["tags"]
    ]
    return spec(**{name: part for name, part in _means(values, "", width, 170).items() if name != "title"})


def ranges(rows: list[Json], what: str, axis: str, width: int) -> Json:
    """Mean gains by ranges of places or lengths (PRIOR, Figure 8)."""
    values = [
        {
            **row,
            "name": range_name(row),
            "say": f"{range_name(row)}: {_mean(row)}, {row[what]:,} {what}",
        }
        for row in rows
    ]
    x = {"field": "name", "type": "ordinal", "sort": None, "title": axis, "axis": {"labelAngle": -45}}
    return spec(
        data={"values": values},
        width=width - 60,
        height=220,
        layer=[
            {
                "mark": {"type": "rule", "color": LIGHT["soft"], "strokeWidth": 2, "aria": False},
                "encoding": {"x": x, "y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "color": LIGHT["p3"], "strokeWidth": 2, "aria": False},
                "encoding": {"x": x, "y": {"field": "mean", "type": "quantitative"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1, "color": LIGHT["p3"]},
                "encoding": {
                    "x": x,
                    "y": {"field": "mean", "type": "quantitative", "title": "mean gain, nats",
                          "axis": {"gridColor": ZERO_LINE}},
                    "description": {"field": "say"},
                },
            },
        ],
    )  # fmt: skip


_KEPT = {"samples": "samples kept", "sample_tokens": "their tokens", "active_tokens": "active tokens"}


def thresholds(numbers: Json, width: int) -> Json:
    """What is kept at each p, and tau_p (VIG, Tables C.1, E.2 and E.3)."""
    rows = numbers["thresholds"]
    values = [
        {
            "p": row["p"],
            "what": words,
            "share": row[f"{name}_share"],
            "count": row[name],
            "say": f"p = {row['p']:g} %: {row[name]:,} {words}, {format_share(row[f'{name}_share'])}",
        }
        for row in rows
        for name, words in _KEPT.items()
    ]
    names = list(_KEPT.values())
    x = {"field": "p", "type": "quantitative", "title": "p, per cent of the samples", "scale": {"domain": [0, 100]},
         "axis": {"values": list(range(0, 101, 10))}}  # fmt: skip
    colours = legend_of(names, (LIGHT["soft"], LIGHT["m3"], LIGHT["p3"]), "share of all", columns=3)
    shares = {
        "data": {"values": values},
        "width": width - 60,
        "height": 200,
        "encoding": {
            "x": x,
            "y": {"field": "share", "type": "quantitative", "axis": {"format": "%"}, "title": "share kept",
                  "scale": {"domain": [0, 1]}},
            "color": {"field": "what", **colours},
            "shape": {"field": "what", "type": "nominal", "scale": {"domain": names},
                      "legend": {"title": "share of all"}},
        },
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 2, "aria": False},
             "encoding": {"strokeDash": {"field": "what", "type": "nominal", "legend": None,
                                         "scale": {"domain": names, "range": [[1, 0], [6, 3], [2, 2]]}}}},
            {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
             "encoding": {"description": {"field": "say"}}},
        ],
    }  # fmt: skip
    # At 100 % tau_p is the least gain of all, which would flatten the rest.
    taus = [
        {"p": row["p"], "tau": row["tau"], "say": f"p = {row['p']:g} %: τ = {row['tau']:+.4f}"}
        for row in rows
        if row["p"] < 100 or len(rows) == 1
    ]
    threshold = {
        "data": {"values": taus},
        "width": width - 60,
        "height": 130,
        "encoding": {"x": x, "y": {"field": "tau", "type": "quantitative", "title": "threshold, nats",
                                   "axis": {"gridColor": ZERO_LINE, "tickCount": 5}}},
        "layer": [
            {"mark": {"type": "line", "color": LIGHT["text"], "strokeWidth": 1.5, "aria": False}},
            {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1, "color": LIGHT["text"]},
             "encoding": {"description": {"field": "say"}}},
        ],
    }  # fmt: skip
    return spec(vconcat=[shares, threshold])
