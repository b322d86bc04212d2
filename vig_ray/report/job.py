"""`vig report`: what scores (and a selection of them) look like, as one HTML file, figures and JSON.

numbers    scans of scores/ (scans.py, tally.py), as JSON (numbers.py)
figures    Vega-Lite (figures.py, charts.py), drawn without a browser (render.py)
gallery    samples with the highest and lowest gain, near the threshold, and by chance (gallery.py, cards.py)
page       all of it in one file that loads nothing else (document.py)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from vig_ray.cluster import scans_on_ray
from vig_ray.dataset.images import MAX_PIXELS
from vig_ray.errors import StageError
from vig_ray.options import CommaSeparated, Percentage, Percentages, ScoredUnder
from vig_ray.report.cards import gallery_html
from vig_ray.report.detokenize import load_tokenizer, token_text
from vig_ray.report.document import evaluation_page, page, study_page
from vig_ray.report.evaluation import Evaluated
from vig_ray.report.figures import NAMES, render_all
from vig_ray.report.figures import figures as figures_of_scores
from vig_ray.report.gallery import Gallery, arranged, fetch, misspelled
from vig_ray.report.kept_scans import scan_kept
from vig_ray.report.numbers import WRITER, numbers
from vig_ray.report.part_of_speech import GainsByTag, gains_by_tag, load_tagger
from vig_ray.report.scans import SURVEYED, Scanned, scan_scores
from vig_ray.report.selection_summary import summarize_selection
from vig_ray.report.study import Studied
from vig_ray.report.tally import COLUMNS
from vig_ray.report.trust import audited
from vig_ray.report.written import MEGABYTE, Written, check_out, claim_report, left_out_html, write_report
from vig_ray.stage import Claim, StageConfig, parquet_files, read_stage
from vig_ray.storage import filesystem
from vig_ray.tables.directories import rows_of, samples_beside, scores_directory
from vig_ray.tables.kept import columns_named
from vig_ray.tables.passes import View
from vig_ray.tables.scan import Files

Json = dict[str, Any]
TITLE, _EVALUATION_TITLE = "What the images contribute", "Did it help?"
_KEPT_COLUMNS = 12  # that are shown where none is named
_NOT_OF_A_STUDY = ("scores", "evaluation", "reference", "selection", "samples", "model", "by")
_MARGIN = 20_000  # for the gallery's own headings and filters


class ReportConfig(StageConfig):
    """Show what scores, and a selection of them, look like: one HTML file, figures, and the numbers as JSON."""

    scores: str | None = Field(
        None,
        description="scores/ of a finished `vig score`, or the directory that holds it; not needed with --evaluation "
        "or --study",
    )
    evaluation: str | None = Field(
        None,
        description="evaluation/ of a finished `vig eval`, or the directory that holds it: its table, intervals and "
        "some answers, beside the scores or by themselves",
    )
    study: str | None = Field(
        None,
        description="what `vig study --out` wrote, finished or not: its numbers over seeds, what is settled, curves, "
        "cost against quality; a page of its own",
        json_schema_extra={"metavar": "DIR"},
    )
    out: str = Field(description="HTML file to write; FILE.json and FILE-figures/ come beside it")
    reference: ScoredUnder = None
    selection: str | None = Field(
        None, description="selection/ of these scores; by default the one beside them, if it is theirs"
    )
    samples: str | None = Field(None, description="samples/ for images and questions; by default beside the scores")
    model: str | None = Field(None, description="checkpoint whose tokenizer spells the tokens; by default the scores'")
    title: str = Field(TITLE, description="the page's heading")
    p: Percentages = Field(
        (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0),
        description="percentages whose thresholds are listed",
    )
    near_p: Percentage = Field(
        70.0, description="without a selection, the percentage p near whose tau_p the gallery's nearest samples lie"
    )
    near_zero: float = Field(
        0.05,
        ge=0,
        le=10,
        description="nats up to which a sample's gain is near zero: 0.05 changes its perplexity by 5 per cent",
    )
    sources: int = Field(
        12,
        ge=1,
        le=50,
        description="the largest sources have figures of their own, so many of them; the others share one",
    )
    by: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (),
        description="kept columns (vig import --keep) that VIG is held against, or patterns such as *_min; by default "
        "all, or the 12 that most rows have",
        json_schema_extra={"metavar": "NAME[,...]"},
    )
    tokens: int = Field(20, ge=1, description="tokens listed with the highest and with the lowest mean gain")
    least: int = Field(20, ge=1, description="times that a token must occur to be listed")
    tagger: str = Field(
        "auto", description="spaCy pipeline (name or folder) for parts of speech; auto: one that is installed, or none"
    )
    tagged: int = Field(20_000, ge=1, description="about how many samples are tagged, drawn by the seed")
    gallery: int = Field(
        8, ge=0, description="samples that a group of the gallery shows of all sources, and of each source"
    )
    image_size: int = Field(256, ge=16, le=2048, description="longer side of its images, pixels")
    max_image_pixels: int = Field(MAX_PIXELS, ge=1, description="largest image that is read, pixels")
    max_mb: float = Field(
        30.0,
        gt=0,
        description="largest size of the HTML file in megabytes; the page says how many samples were left out for it",
    )
    figures: bool = Field(True, description="also write the figures as SVG, PNG and Vega-Lite beside the file")
    seed: int = Field(42, description="seed of the random samples and of those that are tagged")
    address: str | None = Field(
        None, description="Ray cluster that scans the scores, such as auto; by default RAY_ADDRESS, or this machine"
    )

    @model_validator(mode="after")
    def _of_something(self) -> ReportConfig:
        if self.study is not None:
            others = [name for name in _NOT_OF_A_STUDY if getattr(self, name)]
            if others:
                raise ValueError(f"--study is a page of its own; leave out {', '.join(f'--{name}' for name in others)}")
        elif self.scores is None and self.evaluation is None:
            raise ValueError("--scores, --evaluation or --study is required")
        return self


@dataclass(frozen=True)
class _Inputs:
    """What a report is made from, checked. `tau`: the selection's threshold of VIG, if it has exactly one."""

    scores: str
    record: Json
    view: View
    samples: str | None
    selection: str | None
    selected: Json | None
    tau: float | None
    tokenizer: Any
    warnings: list[str]
    kept: list[str]


def run(config: ReportConfig) -> Written:
    """Write a report. Raises StageError, before the first scan, where an input or `out` is wrong."""
    check_out(config.out)
    if config.study is not None:
        return _of_study(config, Studied.of(config.study))
    evaluated = Evaluated.of(config) if config.evaluation is not None else None
    if config.scores is None:
        assert evaluated is not None
        return _of_evaluation(config, evaluated)
    inputs = _inputs(config, config.scores)
    output = claim_report(config.out, _figure_names(config, evaluated, NAMES))
    tagger = load_tagger(config.tagger) if inputs.tokenizer is not None else None
    fs, _ = filesystem(inputs.scores)
    paths = parquet_files(inputs.scores)
    _check_columns(paths, fs, inputs.view)
    shares = tuple(sorted({*config.p, config.near_p}))
    with scans_on_ray(config.address) as on_ray:
        scanned = scan_scores(
            Files(paths, fs, on_ray, inputs.view),
            inputs.scores,
            shares=shares,
            near_zero=config.near_zero,
            shown_sources=config.sources,
            gallery_size=config.gallery,
            choose_tau=lambda taus: taus[config.near_p] if inputs.tau is None else inputs.tau,
            seed=config.seed,
            tagged=config.tagged if tagger else 0,
        )
        shown = inputs.kept if config.by else inputs.kept[:_KEPT_COLUMNS]
        rows_with = {name: inputs.record["kept"][name] for name in shown}
        kept = scan_kept(Files(paths, fs, on_ray, inputs.view), rows_with, config.seed) if shown else []
    by_tag = None
    if tagger is not None:
        by_tag = gains_by_tag(tagger, inputs.tokenizer, scanned.tally.tagged, _kept(inputs, scanned.tally.tagged))
    gallery = _gallery(config, inputs, scanned)
    if inputs.tokenizer is not None and misspelled(gallery):
        inputs.warnings.append("The tokens don't spell the answers: is --model the one that the scores were made with?")
    if tagger is not None and by_tag is None:
        inputs.warnings.append("No parts of speech: by chance no sample was drawn for them (--tagged).")
    contents = {
        **_numbers(config, inputs, scanned, by_tag),
        "about": _about(config, inputs),
        "selection": inputs.selected,
        "audit": audited(inputs.scores, inputs.record, config.address),
        "kept": {"columns": kept, "left_out": [name for name in inputs.kept if name not in shown]},
    }
    contents["gallery"] = {
        "tau": scanned.plan.tau,
        "of_selection": inputs.tau is not None,
        "groups": {
            name: [{"sample_key": place.key, "of_all": place.of_all} for place in places]
            for name, places in gallery.groups.items()
        },
    }
    if evaluated is not None:
        contents["evaluation"] = evaluated.summary
    return _write(config, output, contents, gallery, evaluated)


def _inputs(config: ReportConfig, given: str) -> _Inputs:
    scores = scores_directory(given)
    record = read_stage(scores) or {}
    if not record.get("complete"):
        raise StageError(f"{scores}: not finished; run the same `vig score` command again, it goes on where it was")
    kept = columns_named(record, config.by, scores, "--by")
    warnings: list[str] = []
    samples = samples_beside(scores, config.samples, record)
    if samples is None:
        warnings.append("No samples/ beside the scores: the gallery has no images and no questions (--samples).")
    view = View.of(record, scores, config.reference)
    selection, selected, tau = summarize_selection(config.selection, scores, view)
    tokenizer = None
    try:
        tokenizer = load_tokenizer(str(config.model or record["config"].get("model")))
    except StageError as error:
        if config.model is not None:
            raise
        warnings.append(f"Tokens are shown by their numbers: {error}.")
        if config.tagger not in ("auto", "none"):
            warnings.append("No parts of speech, which need the tokenizer (--tagger).")
    return _Inputs(scores, record, view, samples, selection, selected, tau, tokenizer, warnings, kept)


def _check_columns(paths: list[str], fs: Any, view: View) -> None:
    if not paths:
        raise StageError("no Parquet files in these scores; score again")
    missing = sorted({*view.stored([*COLUMNS, *SURVEYED])} - set(pq.read_schema(paths[0], filesystem=fs).names))
    if missing:
        raise StageError(f"{paths[0]}: has no column {missing[0]!r}, which a report needs")


def _about(config: ReportConfig, inputs: _Inputs) -> Json:
    record = inputs.record
    return {
        "scores": inputs.scores,
        "samples": inputs.samples,
        "selection": inputs.selection,
        "model": record["config"].get("model"),
        "reference": inputs.view.reference,
        "engine": record.get("identity", {}).get("engine"),
        "dtype": record.get("identity", {}).get("dtype"),
        "model_fingerprint": record.get("identity", {}).get("model"),
        "template_fingerprint": record.get("identity", {}).get("template"),
        "versions": record.get("versions", {}),
        "seed": config.seed,
        "warnings": inputs.warnings,
    }


def _numbers(config: ReportConfig, inputs: _Inputs, scanned: Scanned, by_tag: GainsByTag | None) -> Json:
    def spell(token: int) -> str:
        return f"#{token}" if inputs.tokenizer is None else token_text(inputs.tokenizer, token)

    contents = numbers(scanned, spell=functools.cache(spell), least=config.least, rows=config.tokens, by_tag=by_tag)
    contents["thresholds"] = [row for row in contents["thresholds"] if row["p"] in config.p]
    return contents


def _kept(inputs: _Inputs, tables: list[pa.Table]) -> set[str] | None:
    """Which of these rows of scores the selection keeps, by their keys; None without a selection."""
    if inputs.selection is None:
        return None
    keys = [key for table in tables for key in table["sample_key"].to_pylist()]
    return {*rows_of(inputs.selection, keys, [])}


def _gallery(config: ReportConfig, inputs: _Inputs, scanned: Scanned) -> Gallery:
    if not config.gallery:
        return Gallery({})
    return fetch(
        arranged(scanned.tally.candidates),
        scores=inputs.scores,
        samples=inputs.samples,
        selection=inputs.selection,
        tokenizer=inputs.tokenizer,
        view=inputs.view,
        side=config.image_size,
        max_pixels=config.max_image_pixels,
        kept=bool(inputs.record.get("kept")),
    )


def _write(
    config: ReportConfig, output: Claim, contents: Json, gallery: Gallery, evaluated: Evaluated | None
) -> Written:
    figures = render_all(figures_of_scores(contents))
    others = render_all(evaluated.figures()) if evaluated else []
    evaluation = evaluated.html(others, budget=int(config.max_mb * MEGABYTE / 2)) if evaluated else None
    html = page(config.title, contents, figures, "", evaluation and evaluation.html)
    shown, left_out = sum(len(places) for places in gallery.groups.values()), 0
    if shown:
        budget = int(config.max_mb * MEGABYTE) - len(html.encode()) - _MARGIN
        whose = "the selection's" if contents["gallery"]["of_selection"] else f"of p = {config.near_p:g} %"
        cards, left_out = gallery_html(gallery, tau=f"{contents['gallery']['tau']:+.4f}, {whose}", budget=budget)
        cards = left_out_html(left_out, shown, config.max_mb) + cards
        html = page(config.title, contents, figures, cards, evaluation and evaluation.html)
    if evaluation is not None:
        shown, left_out = shown + evaluation.shown, left_out + evaluation.left_out
    drawn = [*figures, *others] if config.figures else None
    size, folder = write_report(config, config.out, output, html, contents, drawn)
    return Written(config.out, size, folder, contents, _told(contents), shown, left_out)


def _told(numbers: Json) -> tuple[str, ...]:
    """What the numbers say, for a person."""
    gain = numbers["gain"]
    groups = ", ".join(f"{100 * counts['share']:.1f} % {name}" for name, counts in reversed(gain["groups"].items()))
    lines = [f"{gain['samples']:,} samples: {groups} (mean VIG {gain['mean']:+.3f} nats)"]
    correlated = [row for row in numbers["kept"]["columns"] if row["spearman"] is not None]
    if correlated:
        told = ", ".join(f"{row['column']} {row['spearman']:+.3f}" for row in correlated)
        lines.append(f"rank correlation of VIG with kept columns: {told}")
    return (*numbers["about"]["warnings"], *lines)


def _figure_names(config: ReportConfig, evaluated: Evaluated | None, of_scores: Sequence[str] = ()) -> list[str]:
    """The names of all figures whose files may be written."""
    others = [figure.name for figure in evaluated.figures()] if evaluated else []
    return [*of_scores, *others] if config.figures else []


def _of_evaluation(config: ReportConfig, evaluated: Evaluated) -> Written:
    """A report of an evaluation alone."""
    output = claim_report(config.out, _figure_names(config, evaluated))
    figures = render_all(evaluated.figures())
    shown = evaluated.html(figures, budget=int(config.max_mb * MEGABYTE) - _MARGIN)
    contents = {"written_by": WRITER, "evaluation": evaluated.summary}
    html = evaluation_page(_EVALUATION_TITLE if config.title == TITLE else config.title, contents, shown.html)
    size, folder = write_report(config, config.out, output, html, contents, figures if config.figures else None)
    return Written(config.out, size, folder, contents, (), shown.shown, shown.left_out)


def _of_study(config: ReportConfig, studied: Studied) -> Written:
    """A report of a study."""
    names = [figure.name for figure in studied.figures()] if config.figures else []
    output = claim_report(config.out, names)
    figures = render_all(studied.figures())
    contents = {"written_by": WRITER, **studied.contents()}
    title = studied.title if config.title == TITLE else config.title
    html = study_page(title, contents, studied.about(), studied.parts(figures))
    size, folder = write_report(config, config.out, output, html, contents, figures if config.figures else None)
    return Written(config.out, size, folder, contents, studied.told(), 0, 0)
