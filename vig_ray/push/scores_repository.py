"""A dataset repository of scores and a selection: Parquet, what made it, and a card that says so."""

from __future__ import annotations

import re
from typing import Any

from vig_ray.errors import StageError
from vig_ray.push.figures import figures
from vig_ray.push.paths import cleaned, folders_of, hub_id, model_name
from vig_ray.push.repository import Repository
from vig_ray.push.scores_card import scores_card
from vig_ray.push.shards import shards
from vig_ray.report.selection_summary import summarize_selection
from vig_ray.stage import read_stage
from vig_ray.tables.directories import selection_directory
from vig_ray.tables.passes import View, references_of

Json = dict[str, Any]

_OF_HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")


def scores_repository(
    scores: str, *, selection: str | None, to: str, license: str | None, model: str | None
) -> Repository:
    """The repository `to` of these scores and of their selection.

    `selection`: by default the one beside them, if it is theirs. `license`: the source data's, as the user says it is.
    `model`: the hub id of the model that scored, where the record has a folder. Raises StageError.
    """
    record = read_stage(scores) or {}
    if not record.get("complete"):
        raise StageError(f"{scores}: not finished; run the same `vig score` command again, it goes on where it was")
    view = View.of(record, scores)
    selected, of_selection = _selection(selection, scores, record, view)
    folders = folders_of(record, of_selection)
    parts = shards(scores, "scores", folders)
    if selected is not None:
        parts += shards(selected, "selection", folders)
    facts: Json = {"scores": _facts(record, model, figures(scores, record))}
    if selected is not None:
        facts["selection"] = _facts_of_selection(of_selection)
    facts = cleaned(facts, folders)
    return Repository("dataset", scores_card(to, facts, license), {"kind": "scores", **facts}, parts, {})


def _selection(given: str | None, scores: str, record: Json, view: View) -> tuple[str | None, Json]:
    """The selection's directory and its record; one of any reference that the scores hold."""
    if given is not None:
        directory, of_selection = selection_directory(given)
        view = View.of(record, scores, of_selection.get("reference"))
        summarize_selection(directory, scores, view)
        return directory, of_selection
    for reference in references_of(record):
        directory_beside, _, _ = summarize_selection(None, scores, View.of(record, scores, reference))
        if directory_beside is not None:
            return directory_beside, read_stage(directory_beside) or {}
    return None, {}


def _facts(record: Json, model: str | None, told: Json) -> Json:
    identity, config = record.get("identity", {}), record["config"]
    samples = identity.get("samples") or {}
    inputs = samples.get("inputs") or []
    of_hub = sorted({match[1] for each in inputs if (match := _OF_HUB.match(str(each.get("path"))))})
    return {
        "data": {
            "name": samples.get("name"),
            "format": samples.get("format"),
            "files": len(inputs),
            "hub": of_hub,
        },
        "model": model or model_name(config.get("model")),
        "model_on_hub": model or hub_id(config.get("model")),
        "model_fingerprint": identity.get("model"),
        "template": config.get("template"),
        "template_fingerprint": identity.get("template"),
        "made_without_image_by": identity.get("references") or list(references_of(record)),
        "engine": identity.get("engine"),
        "dtype": identity.get("dtype"),
        "max_length": identity.get("max_length"),
        "too_long": identity.get("too_long"),
        "versions": record.get("versions", {}),
        **told,
    }


def _facts_of_selection(record: Json) -> Json:
    return {
        "options": record["identity"]["options"],
        "reference": record.get("reference"),
        "versions": record.get("versions", {}),
        **record["selection"],
    }
