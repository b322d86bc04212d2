"""Readers of scores with several references, and of those that versions wrote which knew one a run.

What each says under a reference must be what it says of scores that were made with that reference alone.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.reporting import report, with_turns
from tests.selection.made import made_up, renamed, selected, write, write_as_before
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.report import compare, inspect, top
from vig_ray.report.compare import CompareConfig
from vig_ray.report.inspect import InspectConfig
from vig_ray.report.top import TopConfig
from vig_ray.selection import job
from vig_ray.selection.config import SelectConfig

KEY = "made/8"


def other(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same samples under another reference: other losses, and some that failed."""
    rng = np.random.default_rng(8)
    found = copy.deepcopy(rows)
    for number, row in enumerate(found):
        if row["blur_loss"] is None:
            continue
        if number % 17 == 1:
            row |= {"blur_logprobs": None, "blur_loss": None, "vig": None, "error": "No-image: Odd: it is"}
            continue
        logprobs = np.minimum(np.float32(row["blur_logprobs"]) + rng.normal(0, 0.5, len(row["turn"])), 0)
        row["blur_logprobs"] = logprobs.astype(np.float32).tolist()
        row["blur_loss"] = -float(np.mean(row["blur_logprobs"], dtype=np.float64))
        row["vig"] = row["blur_loss"] - row["clean_loss"]
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Scores of blur and no-image in one run and in two, and of blur as before."""
    folder = tmp_path_factory.mktemp("runs")
    blur = with_turns(made_up(400, seed=5), 6)
    for row in blur:
        if row["error"]:
            row |= {"blur_loss": None, "clean_loss": None}
    no_image = other(blur)
    for row in blur[::34] + blur[1::34]:  # the latter failed without the image, too
        if row["blur_loss"] is not None:
            row |= dict.fromkeys(("blur_logprobs", "blur_loss", "vig")) | {"error": "Blur: Odd: no; and another thing"}
    both = [
        row | {name: value for name, value in renamed([theirs], "no_image")[0].items() if name.startswith("no_image")}
        | {"error": "; ".join(dict.fromkeys(filter(None, [row["error"], theirs["error"]]))) or None}
        for row, theirs in zip(blur, no_image, strict=True)
    ]  # fmt: skip
    return {
        "blur": write(folder / "blur", blur),
        "no-image": write(folder / "no-image", renamed(no_image, "no_image"), references=["no-image"]),
        "both": write(folder / "both", both, references=["blur", "no-image"]),
        "before": write_as_before(folder / "before", blur),
    }


VIEWS = [("both", None, "blur"), ("both", "blur", "blur"), ("both", "no-image", "no-image"), ("before", None, "blur"),
         ("before", "blur", "blur")]  # fmt: skip
views = pytest.mark.parametrize(("run", "reference", "alone"), VIEWS)


@views
@pytest.mark.parametrize("strategy", ["vig", "reference-loss", "prior", "top", "random"])
def test_select(
    runs: dict[str, str], tmp_path: Path, run: str, reference: str | None, alone: str, strategy: str
) -> None:
    options: dict[str, Any] = {"strategy": strategy, "clusters": 1}
    mine = job.run(SelectConfig(scores=runs[run], reference=reference, out=str(tmp_path / "a"), **options))
    theirs = job.run(SelectConfig(scores=runs[alone], out=str(tmp_path / "b"), **options))
    assert mine.to_json() == theirs.to_json()
    assert selected(tmp_path / "a") == selected(tmp_path / "b")
    assert json.loads((tmp_path / "a" / "selection.stage.json").read_text())["reference"] == alone


@pytest.mark.long
def test_select_on_ray_reads_the_same(runs: dict[str, str], tmp_path: Path, local_ray: None) -> None:
    for name, options in (("a", {"address": "auto"}), ("b", {})):
        job.run(SelectConfig(scores=runs["both"], reference="no-image", out=str(tmp_path / name), **options))  # type: ignore[arg-type]
    assert selected(tmp_path / "a") == selected(tmp_path / "b")


def test_a_selection_of_another_reference_is_another(runs: dict[str, str], tmp_path: Path) -> None:
    blur = SelectConfig(scores=runs["both"], out=str(tmp_path))
    job.run(blur)
    assert job.run(blur.model_copy(update={"reference": "blur"})).directory  # the same: already complete
    with pytest.raises(StageError, match=r"holds another run of `vig select` \(scores: .*reference"):
        job.run(blur.model_copy(update={"reference": "no-image"}))


@views
def test_report(runs: dict[str, str], tmp_path: Path, run: str, reference: str | None, alone: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    mine = report(runs[run], tmp_path / "a", reference=reference)
    theirs = report(runs[alone], tmp_path / "b")
    assert mine["about"]["reference"] == theirs["about"]["reference"] == alone
    assert {k: v for k, v in mine.items() if k != "about"} == {k: v for k, v in theirs.items() if k != "about"}
    pages = [(tmp_path / name / "r.html").read_text().partition('id="gallery"')[2] for name in ("a", "b")]
    assert pages[0].partition('id="method"')[0] == pages[1].partition('id="method"')[0]


def test_a_report_takes_the_selection_of_its_reference_only(runs: dict[str, str], tmp_path: Path) -> None:
    job.run(SelectConfig(scores=runs["both"], reference="no-image", out=str(tmp_path)))
    told = report(runs["both"], tmp_path, reference="no-image", selection=str(tmp_path))
    assert told["selection"]["strategy"] == "vig"
    with pytest.raises(StageError, match=r"selected by the gain under no-image; take --reference no-image, or select"):
        report(runs["both"], tmp_path, selection=str(tmp_path))


@views
def test_top_and_inspect(runs: dict[str, str], run: str, reference: str | None, alone: str) -> None:
    mine = top.run(TopConfig(scores=runs[run], reference=reference, lowest=5, highest=3))
    theirs = top.run(TopConfig(scores=runs[alone], lowest=5, highest=3))
    assert mine == theirs
    for key in (KEY, "made/1", *(row["sample_key"] for row in mine.rows)):
        options: dict[str, Any] = {"key": key, "model": CHECKPOINT}
        shown = inspect.run(InspectConfig(scores=runs[run], reference=reference, **options)).text()
        assert shown == inspect.run(InspectConfig(scores=runs[alone], **options)).text()


def test_compare_two_references_of_one_run(runs: dict[str, str]) -> None:
    mine = compare.run(CompareConfig(a=runs["both"], reference="blur,no-image"))  # type: ignore[arg-type]
    theirs = compare.run(CompareConfig(a=runs["blur"], b=runs["no-image"]))
    assert mine.differ == theirs.differ == {"reference": ("blur", "no-image")}
    paths = {"a": "", "b": ""}
    assert {**vars(mine), **paths} == {**vars(theirs), **paths}
    same = compare.run(CompareConfig(a=runs["before"], b=runs["both"], reference="blur"))  # type: ignore[arg-type]
    assert (same.spearman, same.only_a, same.only_b, same.differ) == (pytest.approx(1), 0, 0, {})
    mixed = compare.run(CompareConfig(a=runs["before"], b=runs["both"], reference=("blur", "no-image")))
    assert mixed.means == theirs.means


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "two names for one run, as blur,blind; .*both/scores hold blur, no-image$"),
        ({"reference": "blur"}, "two names for one run"),
        ({"reference": "blur,fog"}, "^--reference fog: .*both/scores hold blur, no-image$"),
        ({"b": "blur", "reference": "blur,no-image,fog"}, "one name, or one for each run"),
        ({"b": "blur", "reference": "no-image"}, "^--reference no-image: .*blur/scores hold blur$"),
    ],
)
def test_compare_takes_names_that_are_there(runs: dict[str, str], options: dict[str, str], told: str) -> None:
    config: Any = {"a": runs["both"]} | options | {"b": runs.get(options.get("b", ""))}
    with pytest.raises(StageError, match=told):
        compare.run(CompareConfig(**config))


def test_an_unknown_reference_is_one_line_everywhere(runs: dict[str, str], tmp_path: Path) -> None:
    told = r"^--reference fog: .*both/scores hold blur, no-image$"
    with pytest.raises(StageError, match=told):
        job.check(SelectConfig(scores=runs["both"], reference="fog", out=str(tmp_path)))
    with pytest.raises(StageError, match=told):
        report(runs["both"], tmp_path, reference="fog")
    with pytest.raises(StageError, match=told):
        top.run(TopConfig(scores=runs["both"], reference="fog"))
    with pytest.raises(StageError, match=told):
        inspect.run(InspectConfig(key=KEY, scores=runs["both"], reference="fog"))
