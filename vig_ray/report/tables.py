"""The tables of a report as HTML: every number of its figures, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from vig_ray.report.format import (
    format_gain,
    format_interval,
    format_share,
    kept_kinds,
    kept_value_names,
    range_name,
    row_name,
)
from vig_ray.report.kept import QUANTILES
from vig_ray.report.tally import GROUPS

Json = dict[str, Any]


class Cell(NamedTuple):
    """A cell with a second, smaller line, or one that stands out."""

    text: str
    small: str = ""
    strong: bool = False


def _inside(cell: Any) -> str:
    if not isinstance(cell, Cell):
        return escape(str(cell))
    text = f"<strong>{escape(cell.text)}</strong>" if cell.strong else escape(cell.text)
    return f"{text}<small>{escape(cell.small)}</small>" if cell.small else text


def table(
    head: Sequence[str], rows: Iterable[Sequence[Any]], *, words: Sequence[int] = (), marked: int | None = None
) -> str:
    """An HTML table of cells, text or `Cell`. Lines may break in the columns `words`; the row `marked` stands out."""

    def tag(at: int, name: str) -> str:
        return f'<{name} class="words">' if at in words else f"<{name}>"

    body = []
    for number, row in enumerate(rows):
        cells = "".join(f"{tag(at, 'td')}{_inside(cell)}" for at, cell in enumerate(row))
        body.append(f'<tr class="marked">{cells}' if number == marked else f"<tr>{cells}")
    heads = "".join(f"{tag(at, 'th')}{escape(name)}" for at, name in enumerate(head))
    inside = f"<table><tr>{heads}{''.join(body)}</table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="table">{inside}</div>'


def _sources(numbers: Json) -> str:
    head = ("source", "scored", "text-only", "failed", "answer tokens", "mean VIG", "95 %", "q1", "median", "q3",
            "loss with", "without", *GROUPS[::-1])  # fmt: skip
    rows = []
    for row in numbers["sources"]:
        cells = [
            row_name(row),
            *(f"{row[name]:,}" for name in ("scored", "text_only", "failed", "answer_tokens")),
        ]
        if row["scored"]:
            cells += [
                format_gain(row["mean"]),
                format_interval(row),
                *(format_gain(row.get(name)) for name in ("q1", "median", "q3")),
            ]
            cells += [f"{row['clean_loss']:.3f}", f"{row['reference_loss']:.3f}"]
            cells += [format_share(row["groups"][group]["share"]) for group in GROUPS[::-1]]
        rows.append(cells)
    return table(head, rows)


def _tokens(numbers: Json) -> str:
    tokens = numbers["tokens"]
    html = (
        f'<p class="soft">{tokens["frequent"]:,} of the {tokens["different"]:,} different tokens occur at least '
        f"{tokens['least']} times.</p>"
    )
    for name in ("highest", "lowest"):
        rows = [
            (row["text"], row["id"], f"{row['count']:,}", format_gain(row["mean"]), format_interval(row))
            for row in tokens[name]
        ]
        html += f"<h4>{name}</h4>" + table(("token", "id", "times", "mean gain", "95 %"), rows)
    return html


def _part_of_speech(numbers: Json) -> str:
    speech, head = numbers["speech"], ["part of speech", "tag", "tokens", "mean gain", "95 %"]
    rows = [
        [row["words"], row["tag"], f"{row['tokens']:,}", format_gain(row["mean"]), format_interval(row)]
        for row in speech["tags"]
    ]
    told = f"By {speech['tagger']}, of {speech['samples']:,} samples."
    if speech["moved"] is not None:
        told += (
            " What share of the tokens each is, of all answers and of those that the selection keeps: total variation "
            f"{100 * speech['moved']:.1f} %."
        )
        head += ["of all", "of kept"]
        for row, of in zip(rows, speech["tags"], strict=True):
            row += [f"{100 * of['share']:.1f} %", f"{100 * of['kept_share']:.1f} %"]
    return f'<p class="soft">{escape(told)}</p>' + table(head, rows)


def _ranges(rows: list[Json], what: str, of: str) -> str:
    return table(
        (of, what, "mean gain", "95 %"),
        [(range_name(row), f"{row[what]:,}", format_gain(row["mean"]), format_interval(row)) for row in rows],
    )


def _density(density: Json, what: str) -> str:
    """Cells with the same loss without the image as one row; the cells themselves are many, and in the JSON."""
    rows: dict[float, list[float]] = {}
    for cell in density["cells"]:
        row = rows.setdefault(cell["without"], [0, 0.0])
        row[0] += cell["count"]
        row[1] += cell["count"] * cell["mean_gain"]
    cells = [
        (f"{low:g}+" if low >= density["open_from"] else f"{low:g} to {low + density['step']:g}", f"{int(count):,}",
         format_gain(total / count))
        for low, (count, total) in sorted(rows.items())
    ]  # fmt: skip
    return table(("loss without the image, nats", what, "mean gain"), cells)


def _correlations(numbers: Json) -> str:
    rows = [
        (row["column"], f"{row['samples']:,}", kept_kinds(row), f"{row['correlated']:,}",
         "" if row["spearman"] is None else f"{row['spearman']:+.4f}")
        for row in numbers["kept"]["columns"]
    ]  # fmt: skip
    return table(("column", "scored samples with it", "what it holds", "numbers", "rank correlation"), rows, words=(2,))


def _kept(numbers: Json) -> str:
    rows = [
        (column["column"], name, f"{row['samples']:,}", format_gain(row["mean"]), format_interval(row),
         *(format_gain(row[word]) for word, _ in QUANTILES))
        for column in numbers["kept"]["columns"]
        for name, row in zip(kept_value_names(column), column["values"], strict=True)
    ]  # fmt: skip
    quantiles = (f"{100 * q:g} %" for _, q in QUANTILES)
    return table(("column", "value", "samples", "mean VIG", "95 % of the mean", *quantiles), rows, words=(1,))


def _thresholds(numbers: Json) -> str:
    rows = [
        (
            f"{row['p']:g} %", f"{row['tau']:+.4f}", f"{row['samples']:,}", format_share(row["samples_share"]),
            f"{row['sample_tokens']:,}", format_share(row["sample_tokens_share"]), f"{row['active_tokens']:,}",
            format_share(row["active_tokens_share"]),
        )
        for row in numbers["thresholds"]
    ]  # fmt: skip
    selected = numbers["selection"] or {}
    # The selection's row, if its strategy is vig: other strategies keep other samples or tokens.
    raw = selected.get("strategy") == "vig" and not selected.get("calibrated")
    taus = list(selected["thresholds"].values()) if raw else []
    same = [
        at for at, row in enumerate(numbers["thresholds"]) if row["p"] == selected.get("share") and [row["tau"]] == taus
    ]
    marked = same[0] if same else None
    return table(
        ("p", "τ_p", "samples", "share", "sample tokens", "share", "active tokens", "share"), rows, marked=marked
    )


def selection(summary: Json | None) -> str:
    """What a selection keeps, of all samples and by source."""
    if summary is None:
        return ""
    rows = [
        (
            "all" if row is summary else row_name(row), f"{row['samples']:,}", format_share(row["samples_share"]),
            f"{row['sample_tokens']:,}", format_share(row["sample_tokens_share"]), f"{row['active_tokens']:,}",
            format_share(row["active_tokens_share"]),
        )
        for row in [summary, *summary["sources"]]
    ]  # fmt: skip
    taus = list(summary["thresholds"].values())
    of = " of calibrated gains" if summary.get("calibrated") else ""
    tau = f", τ = {taus[0]:+.4f}{of}" if len(taus) == 1 else f", {len(taus)} thresholds" if taus else ""
    text = f" Besides, {summary['text_only']:,} text-only samples, all their tokens." if summary["text_only"] else ""
    return (
        f"<section id='selection'><h3>The selection: {escape(summary['strategy'])}, {summary['share']:g} %{tau}</h3>"
        '<p class="reading">What is kept of each source\'s scored samples; active tokens are those that training gives '
        f"a weight above 0, and their share is of all the source's answer tokens.{text}</p>"
        + table(("source", "samples", "share", "sample tokens", "share", "active tokens", "share"), rows, marked=0)
        + "</section>"
    )


def failures(numbers: Json) -> str:
    """The samples without a score, by the class of their error."""
    if not numbers["failures"]:
        return "<p>None: every sample with an image has a score.</p>"
    rows = [(row["class"], f"{row['rows']:,}", row["example"]) for row in numbers["failures"]]
    return (
        '<p class="reading">Samples without a score, by the class of their error, with one of its messages.</p>'
        + table(("class", "samples", "such as"), rows, words=(2,))
    )


TABLES: dict[str, Callable[[Json], str]] = {
    "sample-gain": _sources,
    "groups": lambda numbers: table(
        ("source", "samples", *(word for group in GROUPS[::-1] for word in (group, "share"))),
        [
            (row_name(row), f"{row['scored']:,}", *(cell for group in GROUPS[::-1] for cell in (
                f"{row['groups'][group]['samples']:,}", format_share(row["groups"][group]["share"]))))
            for row in numbers["sources"] if row["scored"]
        ],
    ),
    "sample-losses": lambda numbers: _density(numbers["sample_losses"], "samples"),
    "token-losses": lambda numbers: _density(numbers["token_losses"], "tokens"),
    "tokens": _tokens,
    "speech": _part_of_speech,
    "places": lambda numbers: _ranges(numbers["places"], "tokens", "place in the turn"),
    "lengths": lambda numbers: _ranges(numbers["lengths"], "samples", "answer tokens"),
    "thresholds": _thresholds,
    "kept-correlations": _correlations,
    "kept": _kept,
}  # fmt: skip
"""The table of each figure, by the figure's name."""
