"""The card of a repository of scores, filled from its facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vig_ray.push import markdown
from vig_ray.push.figures import NEAR_ZERO
from vig_ray.report.format import format_gain, format_interval, format_share, row_name
from vig_ray.tables.passes import TEXT

Json = dict[str, Any]

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
_COLUMNS = {
    "sample_key": "the sample's key: the dataset's name and the row's number, the file where there are several",
    "id, source": "the dataset's own id and sub-dataset",
    "vig": "the sample's gain, nats: loss without the image − loss with it, under the first reference",
    "clean_loss, …_loss": "mean negative log-prob of the answer tokens with the image, and under each reference, nats",
    "clean_logprobs, …_logprobs": "one entry an answer token: its log-prob in each pass; their difference is its gain",
    "token_ids, turn": "one entry an answer token: its id, and which answer of the conversation it is in",
    "num_answer_tokens, num_truncated_tokens": "answer tokens, and those that the length limit cut off",
    "note, error": "null, or what else is to be known of the sample, and why it has no score",
}
_OF_SELECTION = {
    "position": "the place in the training order, from 0",
    "token_ids, token_weights": "one entry an answer token: its id and the weight of its loss; null where all are 1",
}


def scores_card(to: str, facts: Json, license: str | None) -> str:
    """The README.md of repository `to`. `license`: the source data's, None where nobody has said it."""
    scores, selection = facts["scores"], facts.get("selection")
    name = scores["data"]["name"] or "data"
    data = {
        "license": license or "other",
        "pretty_name": f"Visual information gain of {name}",
        "tags": ["visual-information-gain", "vig-ray"],
        "source_datasets": scores["data"]["hub"] or None,
        "size_categories": [_size(scores["counts"]["read"])],
        "configs": [
            {"config_name": folder, "data_files": f"{folder}/*.parquet", **({"default": True} if first else {})}
            for folder, first in (("scores", True), ("selection", False))
            if folder in facts
        ],
    }
    names = ", ".join(f"`{folder}`" for folder in ("scores", "selection") if folder in facts)
    parts = [
        f"# Visual information gain of {markdown.cell(name)}",
        f"How much the image lowers the loss of {_model(scores)} on every answer token of "
        f"{markdown.cell(', '.join(scores['data']['hub']) or name)}. There are no images and no texts here: rows "
        f"belong to the dataset's by their keys. Configurations: {names}.",
        f'```python\nfrom datasets import load_dataset\n\nscores = load_dataset("{to}", "scores", split="train")\n```',
        _made(scores),
        _figures(scores),
        *([_of_selection(selection)] if selection else []),
        _columns("selection" in facts),
        markdown.licence(license, "the dataset's rows"),
        markdown.cite(),
    ]
    return markdown.card(data, "\n\n".join(parts))


def _size(rows: int) -> str:
    place = max(0, len(str(max(rows - 1, 0))) - 3) if rows > 1 else 0
    return _SIZES[min(place, len(_SIZES) - 1)]


def _model(scores: Json) -> str:
    if scores["model_on_hub"]:
        return f"[{markdown.cell(scores['model'])}](https://huggingface.co/{scores['model_on_hub']})"
    return markdown.code(scores["model"])


def _made(scores: Json) -> str:
    counts = scores["counts"]
    references = ", ".join(markdown.code(name) for name in scores["references"])
    limit = "the model's own" if scores["max_length"] is None else f"{scores['max_length']:,} tokens"
    longer = "cut there" if scores["too_long"] == "truncate" else "errors"
    rows = [
        ("dataset", f"{markdown.code(scores['data']['name'])}, {markdown.cell(scores['data']['format'])}"),
        (
            "rows",
            f"{counts['read']:,} = {counts['scored']:,} scored + {counts['text_only']:,} text-only + "
            f"{counts['failed']:,} failed; {counts['answer_tokens']:,} answer tokens scored",
        ),
        ("model", f"{_model(scores)} (fingerprint {markdown.code(scores['model_fingerprint'])})"),
        (
            "prompt",
            f"template {markdown.code(scores['template'])} (fingerprint "
            f"{markdown.code(scores['template_fingerprint'])}); longest: {limit}, longer ones: {longer}",
        ),
        ("without the image", references),
        ("engine", f"{markdown.cell(scores['engine'])}, {markdown.cell(scores['dtype'])}"),
        ("versions", markdown.versions(scores)),
    ]
    return f"## How it was made\n\n{markdown.table(('', ''), rows)}"


def _figures(scores: Json) -> str:
    gain = scores["gain"]
    if gain is None:
        return "## Figures\n\nNo sample has a score."
    groups = gain["groups"]
    rows = [
        (
            "mean VIG",
            f"{format_gain(gain['mean'])} nats"
            + (f" (95 %: {format_interval(gain)})" if gain["low"] is not None else ""),
        ),
        (
            "median, quartiles",
            f"{format_gain(gain['median'])} ({format_gain(gain['q1'])}, {format_gain(gain['q3'])}) nats",
        ),
        *(
            (f"{group} (VIG {words})", f"{format_share(groups[group]['share'])}, {groups[group]['samples']:,} samples")
            for group, words in (
                ("vision-critical", f"above {NEAR_ZERO:g}"),
                ("redundant", f"within ±{NEAR_ZERO:g}"),
                ("misaligned", f"below −{NEAR_ZERO:g}"),
            )
            if group in groups
        ),
        *(
            (
                f"mean gain under {markdown.code(name)}",
                f"{format_gain(of['mean_gain'])} nats, {of['samples']:,} samples",
            )
            for name, of in scores["references"].items()
            if name != TEXT  # another model's loss: no gain
        ),
    ]
    parts = ["## Figures", markdown.table(("", ""), rows)]
    if len(scores["sources"]) > 1:
        by_source = [
            (
                markdown.cell(row_name(row)),
                f"{row['scored']:,}",
                format_gain(row["mean"]),
                format_gain(row.get("median")),
            )
            for row in scores["sources"]
        ]
        parts.append(markdown.table(("source", "samples", "mean VIG", "median"), by_source, numbers=True))
        if scores["more_sources"]:
            parts.append(f"And {scores['more_sources']:,} more.")
    return "\n\n".join(parts)


def _of_selection(selection: Json) -> str:
    kept, read = selection["kept"][0], selection["read"]["total"]
    total = kept["total"]

    def of(name: str, whole: str) -> str:
        share = f" ({format_share(total[name] / read[whole])})" if read[whole] else ""
        return f"{total[name]:,} of {read[whole]:,}{share}"

    taus = ", ".join(f"{value:+.4f}" + (f" ({markdown.cell(name)})" if name else "") for name, value in
                     list(kept["thresholds"].items())[:10])  # fmt: skip
    rows = [
        ("strategy", markdown.code(selection["strategy"])),
        ("share kept", f"{kept['share']:g} %"),
        ("threshold τ of calibrated gains" if selection["options"].get("calibrate") else "threshold τ", taus or "none"),
        ("without the image", markdown.code(selection["reference"])),
        ("samples", of("scored", "scored")),
        ("sample tokens", of("tokens", "tokens")),
        ("active tokens", of("active", "tokens")),
        ("text-only samples", f"{total['text_only']:,}, whole"),
        ("seed of the order", markdown.cell(selection["options"].get("seed"))),
        ("versions", markdown.versions(selection)),
    ]
    return f"## Selection\n\n{markdown.table(('', ''), rows)}"


def _columns(selected: bool) -> str:
    def listed(columns: Mapping[str, str]) -> list[tuple[str, str]]:
        return [(", ".join(f"`{name}`" for name in names.split(", ")), words) for names, words in columns.items()]

    parts = ["## Columns", markdown.table(("`scores`", ""), listed(_COLUMNS))]
    if selected:
        parts.append(markdown.table(("`selection`", ""), listed({"sample_key": "as in scores", **_OF_SELECTION})))
    return "\n\n".join(parts)
