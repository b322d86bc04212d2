"""Shares of attention by layer as curves of several models, with their intervals and differences: OUT/evaluation/
attention.parquet, a row a model, layer and head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vig_ray.evaluation.attention import Place, places_of
from vig_ray.evaluation.outcomes import Marked, Mask
from vig_ray.evaluation.statistics import Estimate, Floats, estimate, generator_of, unit_weights

CURVES = pa.schema(
    [
        # as --tasks has it
        pa.field("task", pa.string(), nullable=False),
        # its name in the table
        pa.field("model", pa.string(), nullable=False),
        # of the language model, from 0; layers that don't attend have no row
        pa.field("layer", pa.int32(), nullable=False),
        # from 0; null for the mean over heads
        pa.field("head", pa.int32()),
        # of attention on image tokens, mean over answers; from 0 to 1
        pa.field("share", pa.float64()),
        # its 95 % interval; null without draws
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        # to the baseline's share at the same place, on the answers that both have; null for the baseline
        pa.field("difference", pa.float64()),
        pa.field("difference_low", pa.float64()),
        pa.field("difference_high", pa.float64()),
        # how many there are
        pa.field("answers", pa.int64()),
    ]
)


class _Sums(NamedTuple):
    """Of U units at P places: the sums of shares and their counts, float64 [U, P]."""

    shares: Floats
    counts: Floats

    def means(self, weights_DU: Floats) -> Floats:
        """Of answers that count so often, float64 [D, P]; NaN of none."""
        with np.errstate(invalid="ignore"):
            found: Floats = (weights_DU @ self.shares) / (weights_DU @ self.counts)
        return found


@dataclass(frozen=True)
class _Curve:
    """The mean shares of one model's answers at these places. `of_draws`: of all answers, float64 [1, P], and then of
    the draws, [some draws, P] at a time."""

    places: tuple[Place, ...]
    sums: _Sums
    of_draws: list[Floats]

    def means(self) -> dict[Place, Floats]:
        """By place, float64 [1 + D]: of all answers, and then in every draw."""
        means_DP = np.concatenate(self.of_draws)
        return {place: means_DP[:, column] for column, place in enumerate(self.places)}


def curves(name: str, marked: Mapping[str, Marked], baseline: str, *, draws: int, seed: int) -> pa.Table:
    """The curves of a task's answers by model, in the table's order; rows of `CURVES`.

    Intervals and differences are by the paired bootstrap, of the same draws as the task's other numbers.
    """
    unit_Q = marked[baseline].units.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    units = int(unit_Q.max(initial=-1)) + 1
    own = {
        model: _curve(one, list(places_of(one.columns)), one.answered, unit_Q, units) for model, one in marked.items()
    }
    pairs = {model: _pair(one, marked[baseline], unit_Q, units) for model, one in marked.items() if model != baseline}
    every = [*own.values(), *(curve for pair in pairs.values() for curve in pair)]
    # Some draws at a time: all of them, a number a unit each, can be more than memory holds.
    for weights_DU in _weights(units, draws, seed, name):
        for curve in every:
            curve.of_draws.append(curve.sums.means(weights_DU))
    rows: list[dict[str, Any]] = []
    for model, one in marked.items():
        differences = {} if model == baseline else _differences(*pairs[model])
        rows += _rows(name, model, one, own[model].means(), differences)
    return pa.Table.from_pylist(rows, schema=CURVES)


def _weights(units: int, draws: int, seed: int, name: str) -> Iterator[Floats]:
    """How often units count, float64 [some, U]: once each, and then as they are drawn."""
    yield np.ones((1, units))
    if draws:
        yield from unit_weights(units, draws, generator_of(seed, name))


def _curve(marked: Marked, places: Sequence[Place], mask: Mask, unit_Q: npt.NDArray[np.integer], units: int) -> _Curve:
    """Of the answers in `mask`, before any draw."""
    sums = _Sums(*(np.zeros((units, len(places))) for _ in range(2)))
    if places:
        names = places_of(marked.columns)
        shares_QP = np.stack([np.where(mask, marked.columns[names[place]], np.nan) for place in places], axis=1)
        known_QP = ~np.isnan(shares_QP)
        np.add.at(sums.shares, unit_Q, np.where(known_QP, shares_QP, 0))
        np.add.at(sums.counts, unit_Q, known_QP)
    return _Curve(tuple(places), sums, [])


def _pair(marked: Marked, baseline: Marked, unit_Q: npt.NDArray[np.integer], units: int) -> tuple[_Curve, _Curve]:
    """A model's curve and the baseline's, at the places and of the answers that both have."""
    theirs = places_of(baseline.columns)
    places = [place for place in places_of(marked.columns) if place in theirs]
    common = marked.answered & baseline.answered
    return _curve(marked, places, common, unit_Q, units), _curve(baseline, places, common, unit_Q, units)


def _differences(ours: _Curve, theirs: _Curve) -> dict[Place, Estimate]:
    others = theirs.means()
    return {place: _estimate(means_D - others[place]) for place, means_D in ours.means().items()}


def _estimate(means_D: Floats) -> Estimate:
    return estimate(float(means_D[0]), means_D[1:])


def _rows(
    name: str, model: str, marked: Marked, own: Mapping[Place, Floats], differences: Mapping[Place, Estimate]
) -> Iterator[dict[str, Any]]:
    names = places_of(marked.columns)
    for place, means_D in own.items():
        share, difference = _estimate(means_D), differences.get(place)
        apart = {} if difference is None else difference.json()
        yield {
            "task": name,
            "model": model,
            "layer": place.layer,
            "head": place.head,
            "share": share.json()["value"],
            "low": share.low,
            "high": share.high,
            "difference": apart.get("value"),
            "difference_low": apart.get("low"),
            "difference_high": apart.get("high"),
            "answers": int((~np.isnan(marked.columns[names[place]])).sum()),
        }
