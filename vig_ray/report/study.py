"""What a report shows of a study: what is settled, its tables and figures, and what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from vig_ray.report import study_charts
from vig_ray.report.document import fact, figure_html
from vig_ray.report.figures import Figure, Rendered
from vig_ray.report.study_charts import lines_over
from vig_ray.report.study_cost import MEASURES, frontier, frontiers, points
from vig_ray.report.study_numbers import Difference, Metric, Paper, Row, StudyNumbers, by_arm, read_study
from vig_ray.report.study_words import SAID, claim_names, differences_told, needs, shown, time_text, verdict, warnings
from vig_ray.report.tables import Cell, table

Json = dict[str, Any]
_CUT = "A line that is cut at the frame goes on beyond it; the table has its ends."


@dataclass(frozen=True)
class Drawn:
    """A figure, the part of the page that it stands in, and its numbers as a table."""

    part: str
    figure: Figure
    table: str
    folded: bool = True


@dataclass(frozen=True)
class Studied:
    """A study as a report shows it. `folder`: where study.json lies; `raw`: the same; `numbers`: the same, checked."""

    folder: str
    raw: Json
    numbers: StudyNumbers

    @classmethod
    def of(cls, folder: str) -> Studied:
        """What `vig study` wrote to a folder. Raises StageError."""
        return cls(folder, *read_study(folder))

    @property
    def title(self) -> str:
        """The study's own, or one for all."""
        return self.numbers.title or "Which selection is better?"

    def contents(self) -> Json:
        """The numbers of the page: study.json, and which rows are on each frontier."""
        return {"study": self.raw, "frontier": frontiers(self.numbers)}

    def told(self) -> tuple[str, ...]:
        """Which results it shows, what is settled and what is open, and what is missing, for a person."""
        return (*shown(self.folder, self.numbers), *verdict(self.numbers), *warnings(self.numbers))

    def figures(self) -> list[Figure]:
        """Its figures, in the order of the page."""
        return [drawn.figure for drawn in self._drawn()]

    def _drawn(self) -> list[Drawn]:
        return [*_differences(self.numbers), *_curves(self.numbers), *_costs(self.numbers), *_scaling(self.numbers),
                *_time(self.numbers)]  # fmt: skip

    def about(self) -> str:
        """The head of the page, as HTML: about, what is settled and what is open, and a few facts."""
        study = self.numbers
        arms, seeds = len(study.rows), len(study.study.seeds)
        varied = f"{len(by_arm(study.rows)):,} arms, with what is varied" if arms > len(by_arm(study.rows)) else ""
        with_all = sum(1 for row in study.rows if row.seeds == seeds)
        facts = [
            fact("rows" if varied else "arms", f"{arms:,}", varied),
            fact("seeds", f"{seeds:,}", f"{with_all:,} of {arms:,} rows have all" if with_all < arms else ""),
            fact("compared with", escape(study.compared_with), ""),
            fact("stages", f"{study.cost.stages:,}", f"{time_text(3600 * study.cost.hours)} in all"),
        ]
        about = f'<p class="soft">{escape(study.about)}</p>' if study.about else ""
        said = f'<p id="verdict">{escape(" ".join(verdict(study)))}</p>'
        warned = "".join(f'<p class="warning">{escape(line)}</p>' for line in warnings(study))
        return f'{about}{said}{warned}<dl class="facts">{"".join(facts)}</dl>'

    def parts(self, rendered: Sequence[Rendered]) -> dict[str, str]:
        """The parts of the page by name, as HTML."""
        study = self.numbers
        parts = {
            "orders": _orders(study),
            "results": _results(study),
            "paper": "".join(_paper(study, paper) for paper in study.study.paper),
            "curves": "",
            "cost": "",
            "scaling": "",
            "missing": _missing(study),
            "time": "",
            "method": "".join(f"<p>{sentence}</p>" for sentence in _METHOD),
        }
        for drawn, one in zip(self._drawn(), rendered, strict=True):
            parts[drawn.part] += figure_html(one, drawn.table, folded=drawn.folded)
        if study.scaling and not parts["scaling"]:
            parts["scaling"] = _scaling_table(study)
        return parts


_METHOD = (
    "Numbers are means over seeds, in brackets their 95 % interval by Student's t. Differences are of pairs with the "
    "same seed, so that what all arms share in a seed cancels out; one is settled, and printed bold, where its "
    "interval excludes 0. No correction is made for how many differences there are: of twenty without any effect one "
    "is expected to look settled.",
    "Seeds that a difference takes are those with which the paired t-test at 5 % finds it with a probability of 80 %, "
    "if the difference and its spread are as they came out so far; of few seeds that is a rough guess.",
    "An order holds where each of its steps is settled for it, and doesn't where one is settled against it.",
    "Tokens trained on are those that the loss of the last training is of, all epochs; of a model at a share of its "
    "steps those up to there. A short tuning before each evaluation isn't counted. Seconds of training are those "
    "of all trainings that a row's model comes from, without scoring and selecting; where each training has one GPU "
    "they are GPU-seconds. A row is on the frontier where no other has at least its quality for at most its cost.",
    "Hours are the sum over stages, those that ran side by side added up. A stage that several rows share has run, and "
    "is counted, once.",
)


def _difference_cell(metric: Metric, one: Difference | None) -> Cell | str:
    """A difference, bold where it is settled, above its interval and how many seeds it takes."""
    if one is None:
        return ""
    small = [metric.interval(one.mean, sign=True)]
    if one.more_seeds is not None:
        small.append(f"{one.more_seeds:,} more seed{'s' if one.more_seeds > 1 else ''}")
    return Cell(metric.text(one.mean.value, sign=True), " · ".join(filter(None, small)), strong=one.settled)


def _p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _orders(study: StudyNumbers) -> str:
    """The orders, each with whether it holds, and its steps."""
    if not study.orders:
        return ""
    rows: list[list[Any]] = []
    for name, claim in zip(claim_names(study), study.orders, strict=True):
        metric = study.metric(claim.metric)
        for number, step in enumerate(claim.steps):
            one = step.difference
            told = Cell(metric.text(one.mean.value, sign=True), metric.interval(one.mean, sign=True), one.settled)
            cells = [f"{step.high} − {step.low}", told, _p_value(one.p), f"{one.mean.seeds}", needs(one)]
            rows.append([Cell(name, SAID[claim.said]) if number == 0 else "", *cells])
    heads = ("order, and whether it holds", "step", "difference", "p-value", "seeds", "so far")
    return table(heads, rows, words=(0, 1, 5))


def _seeds_of(row: Row) -> str:
    counts = sorted({number.mean.seeds for number in row.numbers.values()}) or [0]
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def _name_cell(study: StudyNumbers, row: Row) -> Cell | str:
    return Cell(row.label, "baseline") if row.label == study.base_of(row) else row.label


def _results(study: StudyNumbers) -> str:
    """Rows by metrics, as papers have it."""
    if not study.metrics:
        return "<p>No evaluation has ended yet.</p>"
    rows = []
    for row in study.rows:
        means = [row.numbers[metric.name].mean for metric in study.metrics]
        cells = [Cell(metric.text(mean.value), metric.interval(mean))
                 for metric, mean in zip(study.metrics, means, strict=True)]  # fmt: skip
        costs = [_cost_text(measure.of(row)) for measure in MEASURES]
        rows.append([_name_cell(study, row), _seeds_of(row), *cells, *costs])
    heads = ("", "seeds", *(metric.head for metric in study.metrics), "tokens", "training, s")
    return table(heads, rows)


def _cost_text(cost: float | None) -> str:
    return "–" if cost is None else f"{cost:,.0f}"


def _differences(study: StudyNumbers) -> Iterator[Drawn]:
    known = [row.numbers[metric.name].difference for row in study.others for metric in study.metrics]
    if not any(one is not None and one.mean.value is not None for one in known):
        return
    rows = [
        [row.label, *(_difference_cell(metric, row.numbers[metric.name].difference) for metric in study.metrics)]
        for row in study.others
    ]
    figure = Figure(
        "differences",
        f"Differences from {study.compared_with}",
        f"{differences_told(study)} Lines are 95 % intervals; where one lies on one side of 0 the difference is "
        f"settled, blue for better, orange for worse. {_CUT}",
        lambda width: study_charts.differences(study, width),
    )
    heads = (f"− {study.compared_with}", *(metric.head for metric in study.metrics))
    yield Drawn("results", figure, table(heads, rows), folded=False)


def _paper(study: StudyNumbers, paper: Paper) -> str:
    """What a paper reports, beside what came out for the arms of the same name."""
    beside = {column: metric for column in paper.columns for metric in study.metrics if _same(column, metric, study)}
    others = [] if beside else list(study.metrics)
    heads: list[str] = [""]
    for column in paper.columns:
        heads += [f"{column}, reported", *([f"{beside[column].head}, here"] if column in beside else [])]
    heads += [f"{metric.head}, here" for metric in others]
    digits = [max((_digits(row[place]) for row in paper.rows.values()), default=0)
              for place in range(len(paper.columns))]  # fmt: skip
    rows: list[list[Any]] = []
    for name, reported in paper.rows.items():
        for number, row in enumerate(study.rows_of(name) or [None]):
            cells: list[Any] = [name if row is None else row.label]
            for column, value, few in zip(paper.columns, reported, digits, strict=True):
                cells.append(_reported(value, few) if number == 0 else "")
                cells += [_mean_cell(row, beside[column])] if column in beside else []
            rows.append([*cells, *(_mean_cell(row, metric) for metric in others)])
    note = f'<p class="soft">{escape(paper.note)}</p>' if paper.note else ""
    return f"<h3>{escape(paper.source)}</h3>{note}{table(heads, rows)}"


def _same(column: str, metric: Metric, study: StudyNumbers) -> bool:
    """Whether a paper's column has a metric's name, or that of its task where this is the task's only one."""
    task = metric.name.rpartition(".")[0]
    alone = sum(other.name.rpartition(".")[0] == task for other in study.metrics) == 1
    return column.lower() == metric.name.lower() or (alone and column.lower() == task.lower())


def _digits(value: float | str | None) -> int:
    """How many digits a number has behind its point."""
    return len(f"{value:.6f}".rstrip("0").partition(".")[2]) if isinstance(value, float | int) else 0


def _reported(value: float | str | None, digits: int) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:.{digits}f}"


def _mean_cell(row: Row | None, metric: Metric) -> Cell | str:
    if row is None:
        return "–"
    mean = row.numbers[metric.name].mean
    return Cell(metric.text(mean.value), metric.interval(mean))


def _slug(*names: str) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9_-]+", "-", name) for name in names)


def _curves(study: StudyNumbers) -> Iterator[Drawn]:
    """One a metric, for everything that is varied over numbers."""
    for number, axis in enumerate(study.numeric_axes()):
        for place, metric in enumerate(study.metrics):
            found = lines_over(study, axis, metric)
            if not any(len(rows) > 1 for rows in found.lines.values()):
                continue
            levels = " Dotted across are arms that aren't varied by it." if found.levels else ""
            figure = Figure(
                _slug(f"curve-{number}-{place}", axis, metric.name),
                f"{metric.name} over {axis}",
                f"A line an arm, means over seeds; bands are their 95 % intervals, cut at the frame where they go "
                f"beyond.{levels}",
                lambda width, axis=axis, metric=metric: study_charts.curve(study, axis, metric, width),  # type: ignore[misc]
            )
            rows = [
                [name, _axis_text(row.axes.get(axis)), metric.text(mean.value), metric.interval(mean), f"{mean.seeds}"]
                for name, some in [*found.lines.items(), *((name, [row]) for name, row in found.levels.items())]
                for row in some
                if (mean := row.numbers[metric.name].mean)
            ]
            yield Drawn("curves", figure, table(("arm", axis, metric.head, "95 %", "seeds"), rows))


def _axis_text(value: Any) -> str:
    return "–" if value is None else str(value)


def _costs(study: StudyNumbers) -> Iterator[Drawn]:
    """Cost against quality, one a metric."""
    for place, metric in enumerate(study.ranked):
        found = {measure: points(study, metric, measure) for measure in MEASURES}
        if not any(found.values()):
            continue
        best = {measure: {point.row.label for point in frontier(some, higher_is_better=metric.higher_is_better is True)}
                for measure, some in found.items()}  # fmt: skip
        labels = dict.fromkeys(point.row.label for some in found.values() for point in some)
        rows = []
        for row in (row for row in study.rows if row.label in labels):
            mean = row.numbers[metric.name].mean
            cells = [row.label, metric.text(mean.value), metric.interval(mean)]
            for measure in MEASURES:
                cells += [_cost_text(measure.of(row)), "yes" if row.label in best[measure] else ""]
            rows.append(cells)
        heads = ["", metric.head, "95 %"]
        for measure in MEASURES:
            heads += [measure.words, "frontier"]
        where = "above" if metric.higher_is_better else "below"
        figure = Figure(
            _slug(f"cost-{place}", metric.name),
            f"{metric.name} against what it cost",
            "The stepped line is the frontier: no row reaches at least the quality for at most the cost of one that is "
            f"filled, and {where} it nothing lies. Upright lines are 95 % intervals: where they are long, another seed "
            f"may change who is on it. Points have their names where there is room. {_CUT}{_untrained(study, metric)}",
            lambda width, metric=metric: study_charts.cost(study, metric, width),  # type: ignore[misc]
        )
        yield Drawn("cost", figure, table(heads, rows))


def _untrained(study: StudyNumbers, metric: Metric) -> str:
    """Names the rows that have numbers but no training, and are in no panel."""
    names = [row.label for row in study.rows if row.numbers[metric.name].mean.value is not None and not row.tokens]
    return f" Without a training of their own, and so not shown: {', '.join(names)}." if names else ""


def _scaling(study: StudyNumbers) -> Iterator[Drawn]:
    asked = study.study.scaling
    if asked is None or not study.scaling or asked.of not in {metric.name for metric in study.metrics}:
        return
    figure = Figure(
        "scaling",
        f"{asked.of} over {asked.over}",
        "Dashed is the law L(D) = (D / scale) ^ exponent, fitted to all sizes but the largest; for that one the ring "
        "is what it predicts, the point what came out.",
        lambda width: study_charts.scaling(study, width),
    )
    yield Drawn("scaling", figure, _scaling_table(study), folded=False)


def _scaling_table(study: StudyNumbers) -> str:
    rows = [
        [each.arm, f"{each.scale:.4g}", f"{each.exponent:.4f}", ", ".join(f"{size:g}" for size in each.sizes),
         f"{each.largest:g}", f"{each.predicted:.4f}", f"{each.found:.4f}", f"{100 * each.error:.1f} %"]
        for each in study.scaling
    ]  # fmt: skip
    heads = ("arm", "scale", "exponent", "fitted to", "largest", "predicted", "came out", "apart")
    return table(heads, rows)


def _missing(study: StudyNumbers) -> str:
    """Stages that failed, with what they said and their command; and the cells that have no numbers."""
    parts = []
    for each in study.failed:
        first, *rest = each.told.splitlines() or [""]
        more = f"<details><summary>All it said</summary><pre>{escape(each.told)}</pre></details>" if rest else ""
        parts.append(
            f'<section class="failed"><h3>{escape(each.name)} failed</h3><p class="warning">{escape(first)}</p>{more}'
            f"<p>The same by hand:</p><pre>{escape(each.command)}</pre></section>"
        )
    if study.missing:
        rows = list(study.missing.items())
        parts.append(f"<h3>Cells without numbers</h3>{table(('cell', 'why'), rows, words=(0, 1))}")
    if parts:
        parts.append("<p>The same <code>vig study</code> command goes on with what isn't there.</p>")
    return "".join(parts)


def _time(study: StudyNumbers) -> Iterator[Drawn]:
    stages = sorted(study.cost.by_stage.items(), key=lambda one: -one[1].seconds)
    total = sum(of.seconds for _, of in stages)
    if not total:
        return
    gpus = f", {study.cost.gpu_hours:,.2f} hours of GPUs" if study.cost.gpu_hours else ", none of it on a GPU"
    figure = Figure(
        "time",
        "Time by stage",
        f"{time_text(3600 * study.cost.hours)} in all{gpus}: stages that ran side by side are added up, those of "
        "earlier calls of the same study too, and a stage that several rows share is there once.",
        lambda width: study_charts.time_by_stage(study, width),
    )
    rows = [
        [name, f"{of.runs:,}", time_text(of.seconds), time_text(of.seconds / of.runs) if of.runs else "",
         f"{100 * of.seconds / total:.1f} %"]
        for name, of in stages
    ]  # fmt: skip
    yield Drawn("time", figure, table(("stage", "runs", "together", "each", "share"), rows))
