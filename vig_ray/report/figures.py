"""The figures of a report: what each shows, and the one sentence that says how to read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vig_ray.report import charts, kept_charts, render
from vig_ray.report.charts import Json

NAMES = (
    "sample-gain", "groups", "token-losses", "tokens", "speech", "places", "lengths", "sample-losses", "thresholds",
    "kept-correlations", "kept",
)  # fmt: skip
"""The names of all figures that a report may have."""
WIDE, NARROW = 700, 340
"""Widths that a figure is drawn for, in pixels: for a page and for a phone."""


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    `reading`: the one sentence that says how to read it. `spec`: its Vega-Lite specification for a width in pixels.
    `one_size`: whether that is the same for all widths.
    """

    name: str
    title: str
    reading: str
    spec: Callable[[int], Json]
    one_size: bool = False


def figures(numbers: Json) -> list[Figure]:
    """Every figure for which there are numbers, in the order of the page."""
    near = f"{numbers['near_zero']:g}"
    possible = [
        Figure(
            "sample-gain",
            "Sample VIG by source",
            "Each row is a source, the ones with the highest median first: what lies right of 0 is answered better "
            f"with the image (vision-critical), what lies within {near} of 0 needs none (redundant), what lies left is "
            "answered better without it (misaligned); the bars at both ends hold all that is beyond.",
            lambda width: charts.sample_gain(numbers, width),
        ),
        Figure(
            "groups",
            "Shares of vision-critical, redundant and misaligned samples",
            "The longer the orange part, the more of a source contradicts its images; the longer the grey, the more of "
            "it teaches nothing about them.",
            lambda width: charts.groups(numbers, width),
        ),
        Figure(
            "token-losses",
            "Loss of tokens with and without the image",
            "Tokens on the diagonal don't care about the image; the further above it a square lies, the more the image "
            "helps with the tokens there; its size grows with the logarithm of how many they are.",
            lambda _: charts.density(numbers["token_losses"], "tokens"),
            one_size=True,
        ),
        Figure(
            "tokens",
            "Tokens with the highest and the lowest mean gain",
            f"Of the tokens that occur at least {numbers['tokens']['least']} times: at the top those that the image "
            "decides, at the bottom those it doesn't, or misleads about; lines are 95 % intervals of the mean.",
            lambda width: charts.tokens(numbers, width),
        ),
        Figure(
            "speech",
            "Mean gain by part of speech",
            "Words right of 0 are decided by the image; articles, prepositions and the like should lie at 0.",
            lambda width: charts.speech(numbers, width),
        ),
        Figure(
            "places",
            "Mean token gain by place in the answer",
            "Where the line falls, later words of an answer owe less to the image, being told by the earlier ones; the "
            "lines across are 95 % intervals.",
            lambda width: charts.ranges(numbers["places"], "tokens", "place of the token in its turn", width),
        ),
        Figure(
            "lengths",
            "Mean sample VIG by length of the answer",
            "Where the line falls, longer answers owe less to their images, token for token.",
            lambda width: charts.ranges(numbers["lengths"], "samples", "answer tokens of the sample", width),
        ),
        Figure(
            "sample-losses",
            "Loss of samples with and without the image",
            "Samples on the diagonal don't care about the image; those above it need it, those below it are answered "
            "better without it; on the left are the easy ones, on the right the hard ones.",
            lambda _: charts.density(numbers["sample_losses"], "samples"),
            one_size=True,
        ),
        Figure(
            "thresholds",
            "What a threshold keeps",
            "Read upwards from a percentage p: the shares of samples and of answer tokens that it "
            "keeps, and the share of all answer tokens that would be trained on; below, τ_p itself.",
            lambda width: charts.thresholds(numbers, width),
        ),
        Figure(
            "kept-correlations",
            "Rank correlation of VIG with the columns kept from the dataset",
            "Spearman's: +1 where the samples are in the same order by the column and by VIG, −1 in the opposite one, "
            "0 where one says nothing about the other.",
            lambda width: kept_charts.correlations(numbers["kept"], width),
        ),
        Figure(
            "kept",
            "VIG by the values of the columns kept from the dataset",
            "Each row holds the samples of one value, or range of values: the box is the middle half of their VIG, the "
            "bar in it the median, the dot the mean, the line from 5 to 95 %; where boxes move right as the value "
            "grows, the two agree.",
            lambda width: kept_charts.boxes(numbers["kept"], width),
        ),
    ]
    empty = {"speech"} if not numbers["speech"] else set()
    empty |= {"tokens"} if not numbers["tokens"]["highest"] else set()
    columns = numbers["kept"]["columns"]
    empty |= {"kept-correlations"} if all(row["spearman"] is None for row in columns) else set()
    empty |= {"kept"} if not any(row["values"] for row in columns) else set()
    return [figure for figure in possible if figure.name not in empty]


@dataclass(frozen=True)
class Rendered:
    """A figure as SVG in the light colours. `narrow`: for phones, None where one size is right for all."""

    figure: Figure
    wide: str
    narrow: str | None


def render_all(figures: Iterable[Figure]) -> list[Rendered]:
    """Each figure, drawn once."""
    return [
        Rendered(
            figure, render.to_svg(figure.spec(WIDE)), None if figure.one_size else render.to_svg(figure.spec(NARROW))
        )
        for figure in figures
    ]
