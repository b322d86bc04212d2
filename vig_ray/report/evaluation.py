"""What a report shows of an evaluation: its table, its intervals drawn, and some answers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import pyarrow.dataset as pads
import pyarrow.parquet as pq

from vig_ray.errors import StageError
from vig_ray.evaluation.asked import LMMS, QUESTIONS
from vig_ray.evaluation.summarising import ATTENTION, SUMMARY
from vig_ray.report import attention_charts, evaluation_charts
from vig_ray.report.document import figure_html
from vig_ray.report.evaluation_charts import metric_name, told
from vig_ray.report.figures import Figure, Rendered
from vig_ray.report.gallery import Picture, picture, question_text
from vig_ray.report.tables import table
from vig_ray.report.written import left_out_html
from vig_ray.stage import read_stage
from vig_ray.storage import exists, filesystem, join, read_bytes
from vig_ray.tables.directories import dataset, rows_of

Json = dict[str, Any]
_EXAMPLE_COLUMNS = ("sample_key", "score", "error")
_CHOICES_SHOWN = 6


@dataclass(frozen=True)
class Example:
    """A question with what each model answered: its row of OUT/evaluation/MODEL, by model."""

    key: str
    pictures: list[Picture]
    answers: Mapping[str, Json]


class Shown(NamedTuple):
    """A part of a page, as HTML; how many cards there would be, and how many didn't fit."""

    html: str
    shown: int
    left_out: int


@dataclass(frozen=True)
class Evaluated:
    """An evaluation as a report shows it. `summary`: what `vig eval` found; `examples`: by task; `curves`: rows of
    attention.parquet."""

    summary: Json
    examples: Mapping[str, Sequence[Example]]
    max_mb: float
    curves: Sequence[Json] = ()

    @classmethod
    def of(cls, config: Any) -> Evaluated:
        """What a ReportConfig names. Raises StageError."""
        directory = evaluation_directory(config.evaluation)
        summary = read_summary(directory)
        sizes = {"side": config.image_size, "max_pixels": config.max_image_pixels}
        examples = examples_of(directory, summary, config.gallery, **sizes)
        return cls(summary, examples, config.max_mb, curves_of(directory))

    def figures(self) -> list[Figure]:
        """Its figures, in the order of the page."""
        return [*figures_of(self.summary), *(figure for figure, _ in self._of_curves())]

    def _of_curves(self) -> list[tuple[Figure, str]]:
        names = [task["name"] for task in self.summary["tasks"]]
        return [one for name in names for one in attention_charts.figures_of(self.curves, figure_name(name), name)]

    def html(self, rendered: Sequence[Rendered], *, budget: int) -> Shown:
        """The table, the figures, and cards of at most `budget` bytes."""
        tables = figure_tables(self.summary) | {figure.name: html for figure, html in self._of_curves()}
        drawn = "".join(figure_html(one, tables[one.figure.name]) for one in rendered)
        cards, left_out = examples_html(self.examples, budget=budget)
        shown = sum(map(len, self.examples.values()))
        words = f"<h3>Answers</h3>{left_out_html(left_out, shown, self.max_mb)}{cards}" if cards else ""
        return Shown(_facts(self.summary) + table_html(self.summary) + drawn + words, shown, left_out)


def _facts(summary: Json) -> str:
    """What was asked of whom, and how the intervals are made."""
    models = " · ".join(f"{escape(each['name'])} <code>{escape(each['model'])}</code>" for each in summary["models"])
    drawn = summary["bootstrap"]
    text = f'<p class="soft">{models}</p><p class="reading">'
    if drawn["draws"]:
        text += (
            f"In brackets 95 % intervals of the paired bootstrap: questions drawn anew, {drawn['draws']:,} times, seed "
            f"{drawn['seed']}, the same ones for all models. "
        )
    if len(summary["models"]) > 1 and _has_main(summary):
        text += (
            f"Rel. is the mean over tasks of a model's main number relative to that of {escape(summary['baseline'])}, "
            "turned round where less is better."
        )
    return f"{text}</p>"


def evaluation_directory(given: str) -> str:
    """The evaluation/ at the path that was given, or inside it. Raises StageError where there is none."""
    for directory in (join(given, "evaluation"), given):
        record = read_stage(join(directory, "summary"))
        if record is not None and exists(join(directory, SUMMARY)).name == "File":
            return directory
    raise StageError(f"{given}: no evaluation here; --evaluation takes what `vig eval --out` wrote")


def read_summary(directory: str) -> Json:
    """What `vig eval` found. Raises StageError where its file is broken."""
    try:
        found: Json = json.loads(read_bytes(join(directory, SUMMARY)))
    except (OSError, ValueError) as error:
        raise StageError(f"{join(directory, SUMMARY)}: can't be read; run the same `vig eval` again") from error
    return found


def curves_of(directory: str) -> list[Json]:
    """The rows of attention.parquet; none where no task asked for attention."""
    path = join(directory, ATTENTION)
    if exists(path).name != "File":
        return []
    fs, inner = filesystem(path)
    rows: list[Json] = pq.read_table(inner, filesystem=fs).to_pylist()
    return rows


def figures_of(summary: Json) -> list[Figure]:
    """The figures, in the order of the page."""
    models = [model["name"] for model in summary["models"]]
    found = []
    if any(one["value"] is not None for rel in summary["relative"].values() for one in rel["of_task"].values()):
        found.append(
            Figure(
                "relative",
                "Performance relative to the baseline",
                "Right of 100 a model is better than the baseline by the task's main number, left of it worse; where "
                "less is better, the ratio is turned round. Lines are 95 % intervals of the paired bootstrap.",
                lambda width: evaluation_charts.relative(summary, width),
            )
        )
    for task in summary["tasks"]:
        if not any(one["answered"] for one in task["models"].values()):
            continue
        found.append(
            Figure(
                figure_name(task["name"]),
                task["name"],
                "Points are what the models reach, lines their 95 % intervals; models whose lines overlap may "
                "differ for sure all the same, as the table says of differences. With an arrow, less is better.",
                lambda width, task=task: evaluation_charts.intervals(task, models, width),  # type: ignore[misc]
            )
        )
    return found


def figure_name(task: str) -> str:
    """The name of a task's figure, and of its files."""
    return f"task-{re.sub(r'[^A-Za-z0-9_-]+', '-', task)}"


def figure_tables(summary: Json) -> dict[str, str]:
    """The table of each figure, by the figure's name."""
    return {"relative": _relative(summary)} | {
        figure_name(task["name"]): _task(task, summary["baseline"]) for task in summary["tasks"]
    }


def table_html(summary: Json) -> str:
    """Models by rows, the main number of each task by columns, and the average relative performance."""
    head = ["model", *(f"{task['name']}: {metric_name(_main(task))}" for task in summary["tasks"])]
    several = len(summary["models"]) > 1
    has_relative = several and _has_main(summary)
    head += ["Rel. %"] if has_relative else []
    rows = []
    for model in (each["name"] for each in summary["models"]):
        cells = [model]
        for task in summary["tasks"]:
            metric = _main(task)
            cells.append(told(task["models"][model]["numbers"][metric["name"]], percent=metric["percent"]))
        if has_relative:
            rel = summary["relative"].get(model, {"value": 1.0, "low": None, "high": None})
            cells.append(told(rel, percent=True))
        rows.append(cells)
    baseline = [each["name"] for each in summary["models"]].index(summary["baseline"]) if several else None
    told_of = "".join(f'<p class="soft">{escape(line)}</p>' for line in summary.get("told", ()))
    return table(head, rows, marked=baseline) + failures_html(summary) + told_of


def failures_html(summary: Json) -> str:
    """What failed, and how many."""
    rows = [
        (task["name"], model, f"{count:,} of {task['questions']:,}", example)
        for task in summary["tasks"]
        for model, one in task["models"].items()
        for example, count in one["failures"].items()
    ]
    if not rows:
        return "<p>Every question was answered and marked.</p>"
    return '<p class="warning">Some questions failed; they are in no number of the model.</p>' + table(
        ("task", "model", "questions", "such as"), rows, words=(3,)
    )


def _has_main(summary: Json) -> bool:
    """Whether any task is a benchmark, and no analysis."""
    return any(task["main"] is not None for task in summary["tasks"])


def _main(task: Json) -> Json:
    """The metric that stands for a task: of an analysis, which has no main one, the first."""
    found: Json = next((metric for metric in task["metrics"] if metric["name"] == task["main"]), task["metrics"][0])
    return found


def _task(task: Json, baseline: str) -> str:
    """All numbers of a task, with differences; and by group."""
    names = [metric_name(metric) for metric in task["metrics"]]
    rows: list[list[str]] = []
    for model, one in task["models"].items():
        numbers = (told(one["numbers"][metric["name"]], percent=metric["percent"]) for metric in task["metrics"])
        rows.append([model, f"{one['answered']:,}", *numbers])
        if one["differences"]:
            differences = (
                told(one["differences"][metric["name"]], percent=metric["percent"], sign=True)
                for metric in task["metrics"]
            )
            rows.append([f"{model} − {baseline}", f"{one['common']:,}", *differences])
    html = table(("model", "questions", *names), rows)
    groups = [
        [group, model, f"{of_group['answered']:,}", *(
            told({"value": of_group["numbers"][metric["name"]], "low": None, "high": None}, percent=metric["percent"])
            for metric in task["metrics"])]
        for group in dict.fromkeys(group for one in task["models"].values() for group in one["groups"])
        for model, one in task["models"].items() if (of_group := one["groups"].get(group))
    ]  # fmt: skip
    if groups:
        html += "<h4>by group</h4>" + table(("group", "model", "questions", *names), groups)
    return html + f'<p class="soft">Source: {escape(task["source"])}</p>'


def _relative(summary: Json) -> str:
    tasks = [task["name"] for task in summary["tasks"] if task["main"] is not None]
    rows = [
        [model, *(told(found["of_task"][task], percent=True) for task in tasks), told(found, percent=True)]
        for model, found in summary["relative"].items()
    ]
    return table(("model", *(f"{task} %" for task in tasks), "average %"), rows)


def examples_of(directory: str, summary: Json, count: int, *, side: int, max_pixels: int) -> dict[str, list[Example]]:
    """Some questions of each task that isn't lmms-eval's: first those that models differ in, then those that all answer
    alike; of equal ones those whose keys have the least hashes."""
    models = [model["name"] for model in summary["models"]]
    found = {}
    for task in (task for task in summary["tasks"] if not task["name"].startswith(LMMS)):
        keys = _chosen(directory, task["name"], models, count)
        answers = {model: rows_of(join(directory, model), keys, _columns(directory, model)) for model in models}
        questions = rows_of(join(directory, QUESTIONS, task["name"]), keys, ["images"])
        found[task["name"]] = [
            Example(
                key,
                [picture(image, False, side, max_pixels) for image in questions[key]["images"][:3]],
                {model: rows[key] for model, rows in answers.items() if key in rows},
            )
            for key in keys
            if key in questions
        ]
    return found


def _columns(directory: str, model: str) -> list[str]:
    wanted = ("group", "prompt", "expected", "answer", "choices", "score", "error")
    there = dataset(join(directory, model)).schema.names
    return [name for name in wanted if name in there]


def _chosen(directory: str, task: str, models: Sequence[str], count: int) -> list[str]:
    scores: dict[str, list[float | None]] = {}
    for model in models:
        rows = dataset(join(directory, model)).to_table(
            columns=list(_EXAMPLE_COLUMNS), filter=pads.field("task") == task
        )
        for key, score in zip(rows["sample_key"].to_pylist(), rows["score"].to_pylist(), strict=True):
            scores.setdefault(key, []).append(score)

    def order(key: str) -> tuple[bool, str]:
        return len(set(scores[key])) == 1, hashlib.blake2b(key.encode(), digest_size=8).hexdigest()

    return sorted(scores, key=order)[:count]


def examples_html(examples: Mapping[str, Sequence[Example]], *, budget: int) -> tuple[str, int]:
    """Cards of at most `budget` bytes, one task after the other, and how many didn't fit."""
    sections, left_out = [], 0
    for task, some in examples.items():
        cards = []
        for example in some:
            html = _card(task, example)
            if len(html.encode()) > budget:
                left_out += 1
                continue
            budget -= len(html.encode())
            cards.append(html)
        if cards:
            sections.append(f'<section><h3>{escape(task)}</h3>\n<div class="cards">{"".join(cards)}</div></section>')
    return "\n".join(sections), left_out


def _card(task: str, example: Example) -> str:
    first = next(iter(example.answers.values()))
    group = f" · {escape(first['group'])}" if first.get("group") else ""
    expected = json.loads(first["expected"])
    parts = [
        f'<article class="card" data-key="{escape(example.key)}" data-source="{escape(task)}">',
        f"<h4>{escape(example.key)}</h4>",
        f'<p class="numbers">expected <code>{escape(_as_text(expected))}</code>{group}</p>',
        *(_image(one) for one in example.pictures),
        f'<p class="turn asked" data-role="user">{escape(question_text(first["prompt"]))}</p>',
    ]
    for model, row in example.answers.items():
        if row["error"] is not None:
            said, score = f'<span class="soft">{escape(row["error"])}</span>', "failed"
        else:
            said, score = escape(row["answer"] or ""), _score_text(row["score"])
        parts.append(
            f'<p class="turn answer" data-role="{escape(model)}">{said} <span class="badge">{score}</span></p>'
        )
    return "\n".join([*parts, _choices(example), "</article>"])


def _score_text(score: float | None) -> str:
    return "not scored" if score is None or score != score else f"{score:.3g}"


def _as_text(expected: Any) -> str:
    return expected if isinstance(expected, str) else json.dumps(expected, ensure_ascii=False)


def _image(one: Picture) -> str:
    if one.clear is None:
        return f'<p class="warning">The image can\'t be shown: {escape(one.error or "")}</p>'
    return f'<div class="pair"><figure><img src="{one.clear}" alt="the image"></figure></div>'


def _choices(example: Example) -> str:
    """The log-probs of choices, by model."""
    told_of = {model: row["choices"] for model, row in example.answers.items() if row.get("choices")}
    if not told_of:
        return ""
    texts = [choice["text"] for choice in next(iter(told_of.values()))][:_CHOICES_SHOWN]
    rows = [[text, *(f"{choices[n]['logprob']:.2f}" for choices in told_of.values())] for n, text in enumerate(texts)]
    return f"<details><summary>Log-probs, nats</summary>{table(('choice', *told_of), rows, words=(0,))}</details>"
