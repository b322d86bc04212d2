"""The report as one HTML file that loads nothing else: styles, script, figures and images are inside."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import vig_ray
from vig_ray.report import PAGE, render
from vig_ray.report.figures import Rendered
from vig_ray.report.format import format_gain, format_interval, format_share
from vig_ray.report.kept_scans import GAIN_BINS, NUMBER_BINS, SAMPLED
from vig_ray.report.tables import TABLES, failures, selection
from vig_ray.report.tally import GROUPS
from vig_ray.report.trust import trust

Json = dict[str, Any]
MARK = b'<meta name="generator" content="vig-ray report">'
"""Tells that a file is a report, which another report may replace."""

_PARTS = {
    "summary": "Summary",
    "sources": "Samples and sources",
    "kept": "Kept columns",
    "tokens": "Tokens",
    "thresholds": "Thresholds",
    "trust": "When to trust the gain",
    "failures": "Failures",
    "gallery": "Gallery",
    "evaluation": "Evaluation",
    "orders": "What is settled",
    "results": "Results",
    "paper": "Papers",
    "curves": "Curves",
    "cost": "Cost and quality",
    "scaling": "Scaling law",
    "missing": "Missing",
    "time": "Time",
    "method": "How it is counted",
}
_OF_PART = {
    "sources": ("sample-gain", "groups", "sample-losses"),
    "kept": ("kept-correlations", "kept"),
    "tokens": ("token-losses", "tokens", "speech", "places", "lengths"),
    "thresholds": ("thresholds",),
}


def page(title: str, numbers: Json, rendered: Sequence[Rendered], gallery: str, evaluation: str | None = None) -> str:
    """The whole file. `gallery`, `evaluation`: HTML, the latter without the heading of its part."""
    figures = {
        one.figure.name: figure_html(one, TABLES[one.figure.name](numbers), folded=one.figure.name != "thresholds")
        for one in rendered
    }
    parts = {
        "summary": _summary(numbers),
        "kept": _kept_notes(numbers["kept"]),
        "thresholds": selection(numbers["selection"]),
        "trust": trust(numbers),
        "failures": failures(numbers),
        "gallery": gallery,
        "evaluation": evaluation or "",
        "method": "".join(f"<p>{sentence}</p>" for sentence in method(numbers, numbers["about"]["seed"])),
    }
    inside = {
        name: "".join(figures.get(figure, "") for figure in _OF_PART.get(name, ())) + parts.get(name, "")
        for name in _PARTS
    }
    sources = "VIG: Hwang and Lee, arXiv 2602.17186; the names of groups: VisNec, arXiv 2603.01195."
    return _filled(title, numbers, _about(numbers["about"]), inside, sources)


def evaluation_page(title: str, numbers: Json, evaluation: str) -> str:
    """The whole file of an evaluation alone. `evaluation`: HTML."""
    sources = "Relative performance: VisNec, arXiv 2603.01195; VIG: Hwang and Lee, arXiv 2602.17186."
    return _filled(title, numbers, "", {"evaluation": evaluation}, sources)


def study_page(title: str, numbers: Json, about: str, parts: Mapping[str, str]) -> str:
    """The whole file of a study. `about`, `parts`: HTML."""
    sources = "VIG: Hwang and Lee, arXiv 2602.17186; scaling laws: PRIOR, section 4."
    return _filled(title, numbers, about, parts, sources)


def _filled(title: str, numbers: Json, about: str, parts: Mapping[str, str], sources: str) -> str:
    """The page with its parts, HTML by name, those left out that are empty."""
    main, nav = [], []
    for name, inside in parts.items():
        if inside:
            main.append(f'<section id="{name}"><h2>{_PARTS[name]}</h2>{inside}</section>')
            nav.append(f'<li><a href="#{name}">{_PARTS[name]}</a>')
    filled = {
        "title": escape(title),
        "heading": escape(title),
        "about": about,
        "css": "\n".join((PAGE / name).read_text() for name in ("gains.css", "report.css")),
        "nav": "".join(nav),
        "main": "\n".join(main),
        "footer": f"<p>Written by vig-ray {vig_ray.__version__}. {sources}</p>",
        # Nothing in it may end the element that holds it.
        "numbers": json.dumps(numbers, ensure_ascii=False).replace("<", "\\u003c"),
        "js": (PAGE / "report.js").read_text(),
    }
    # Split once: braces in what is filled in are left alone.
    pieces = (PAGE / "report.html").read_text().split("{{")
    return pieces[0] + "".join(filled[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def _about(about: Json) -> str:
    facts = [
        f"{name} <code>{escape(str(about[name]))}</code>"
        for name in ("scores", "model", "reference", "engine", "dtype")
    ]
    line = f'<p class="soft">{" · ".join(facts)}</p>'
    return line + "".join(f'<p class="warning">{escape(warning)}</p>' for warning in about["warnings"])


def fact(name: str, value: str, small: str) -> str:
    """One of the facts at the top, all HTML: a number, what it is, and what belongs to it."""
    return f"<div><dt>{name}</dt><dd>{value}<small>{small}</small></dd></div>"


def _summary(numbers: Json) -> str:
    counts, of_all = numbers["counts"], numbers["gain"]
    groups = of_all["groups"]
    truncated = f" ({counts['truncated']:,} of all truncated)" if counts["truncated"] else ""
    read = f"{counts['scored']:,} scored, {counts['text_only']:,} text-only, {counts['failed']:,} failed{truncated}"
    quartiles = f"quartiles {format_gain(of_all['q1'])}, {format_gain(of_all['q3'])}"
    facts = [
        fact("samples read", f"{counts['read']:,}", read),
        fact("answer tokens scored", f"{counts['answer_tokens']:,}", ""),
        fact(
            "mean VIG",
            f"{format_gain(of_all['mean'])} nats",
            f"95 %: {format_interval(of_all)}" if of_all["low"] is not None else "",
        ),
        fact("median VIG", f"{format_gain(of_all['median'])} nats", quartiles),
    ]
    of_groups = [
        fact(group, format_share(groups[group]["share"]), f"{groups[group]['samples']:,} samples")
        for group in GROUPS[::-1]
    ]
    near = f"{numbers['near_zero']:g}"
    steps = "".join(
        f'<span class="{"" if row["step"] == "zero" else row["step"]}">{row["words"]}: '
        f"{format_share(row['share'])}</span>"
        for row in reversed(numbers["token_steps"])
    )
    return (
        f'<dl class="facts">{"".join(facts)}</dl><dl class="facts three">{"".join(of_groups)}</dl>'
        "<p>VIG is how much the image lowers a sample's mean loss, in nats: vision-critical samples gain more than "
        f"{near}, redundant ones between −{near} and {near}, misaligned ones lose more than {near} by it.</p>"
        f'<div class="legend" role="group" aria-label="Tokens by gain">tokens by gain, nats: {steps}</div>'
    )


def _kept_notes(kept: Json) -> str:
    """What the figures of kept columns don't show."""
    notes = [
        f"{row['column']}: none of the scored samples has a value." for row in kept["columns"] if not row["samples"]
    ]
    if kept["left_out"]:
        notes.append(f"Not shown: {', '.join(kept['left_out'])} (--by names the columns to show).")
    return "".join(f'<p class="soft">{escape(note)}</p>' for note in notes)


def figure_html(rendered: Rendered, table: str, *, folded: bool = True) -> str:
    """A figure with its heading, how to read it, and its numbers as a table, which is `folded` away or not."""
    figure = rendered.figure
    label = escape(f"{figure.title}; its numbers follow as a table")
    shown = render.for_page(rendered.wide, label)
    if rendered.narrow is not None:
        narrow = render.for_page(rendered.narrow, label)
        shown = f'<div class="wide">{shown}</div><div class="narrow">{narrow}</div>'
    if folded:
        table = f"<details><summary>The numbers</summary>{table}</details>"
    return (
        f'<section id="figure-{figure.name}"><h3>{escape(figure.title)}</h3>'
        f'<p class="reading">{escape(figure.reading)}</p><figure>{shown}</figure>{table}</section>'
    )


def method(numbers: Json, seed: int) -> list[str]:
    """What a reader must know to count the same numbers again, as sentences of HTML."""
    near = numbers["near_zero"]
    sentences = [
        "A token's gain is its log-prob with the image minus its log-prob without (VIG, equation 6), a sample's VIG "
        "the mean over its answer tokens (equation 7), the end of each turn among them. All rows are counted: nothing "
        "is sampled unless it says so.",
        f"Near zero: up to {near:g} nats, which is a perplexity changed by {100 * math.expm1(near):.1f} %. A quartile "
        "is the least value with that share at or below it. Intervals are normal 95 % intervals of a mean whose values "
        "are taken as independent; tokens of one answer are not quite.",
        "τ_p is the least VIG among the top p % of scored samples, ties kept (equation 8); active tokens are those of "
        "kept samples with a gain of τ_p or more (equation 9).",
        f"Densities count tokens in squares of {numbers['token_losses']['step']:g} nats, samples in squares of "
        f"{numbers['sample_losses']['step']:g}; the last one of each row and column holds all beyond.",
        f"Random samples are those whose keys have the least hashes under seed {seed}.",
    ]
    if numbers["kept"]["columns"]:
        sentences.append(
            "Rank correlations are Spearman's, ties in the middle; a list of numbers counts as its mean, true and "
            f"false as 1 and 0. A column with more than {SAMPLED:,} values is told in {GAIN_BINS:,} bins of VIG and "
            f"{NUMBER_BINS:,} of its numbers, each of about equal counts: quantiles are then within about 0.1 % in "
            "rank, correlations within 0.0001."
        )
    if numbers["speech"]:
        sentences.append(
            f"Parts of speech are of {numbers['speech']['samples']:,} samples drawn by the hashes of their keys under "
            f"seed {seed}; a token counts for the word that it begins in."
        )
    return sentences
