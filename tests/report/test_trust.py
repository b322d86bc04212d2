"""When to trust the gain, as the page says it: the audit of the scores, and the tilt of their selection."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import pytest

from tests.selection.made import made_up, write
from vig_ray.audit.config import AuditConfig
from vig_ray.audit.job import run as audit
from vig_ray.demo import CHECKPOINT, world
from vig_ray.report import job as report
from vig_ray.report import top
from vig_ray.report.job import ReportConfig
from vig_ray.report.top import TopConfig
from vig_ray.report.trust import audited, trust
from vig_ray.scoring import job as scoring
from vig_ray.scoring.config import ScoreConfig
from vig_ray.selection import job as selection
from vig_ray.selection.config import SelectConfig
from vig_ray.stage import read_stage


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    data = world.write(str(folder / "data"), 300, 5)
    scoring.run(
        ScoreConfig(data=data, model=CHECKPOINT, out=str(folder), reference=("blur", "swap")), in_process=True
    )  # fmt: skip
    return folder


def test_the_page_has_the_audit_and_the_tilt(scored: Path) -> None:
    told = selection.run(SelectConfig(scores=str(scored), out=str(scored), p=50)).kept[0]
    report.run(ReportConfig(scores=str(scored), out=str(scored / "report.html"), gallery=0, figures=False))
    page, numbers = (scored / "report.html").read_text(), json.loads((scored / "report.json").read_text())
    part = page[page.index('<section id="trust">') :].partition("</section>")[0]
    found = audit(AuditConfig(scores=str(scored)))
    assert [row["source"] for row in numbers["audit"]["sources"]] == list(found.groups)
    for name, each in found.groups.items():
        assert f"<td>{name}<td>{each.samples}<td>{100 * each.auroc:.1f} %" in part
    for line in found.words():
        assert escape(line.strip()[1:]) in part
    assert told.tilt is not None
    assert told.told[0][1:] in part
    assert f"sources {100 * told.tilt.sources:.1f} %" in part
    assert numbers["selection"]["tilt"]["answers"] == told.tilt.answers


def test_passes_that_all_failed_are_told_and_stop_nothing(tmp_path: Path) -> None:
    rows = made_up(60)  # every swapped pass of it is null
    scores = write(tmp_path, rows, references=["blur", "swap"])
    assert audited(f"{scores}/scores", read_stage(f"{scores}/scores") or {}, None) is None
    assert "isn't known: " in top.run(TopConfig(scores=scores, lowest=3)).text()


def test_scores_that_cannot_tell_have_no_such_part() -> None:
    assert trust({"audit": None, "selection": None}) == ""
    assert trust({"selection": {"tilt": None}}) == ""


def test_a_threshold_of_calibrated_gains_is_none_of_the_gains_that_are_shown(tmp_path: Path) -> None:
    """The gallery's nearest samples lie at the raw threshold of --near-p then, and the page says whose tau is whose."""
    rows = made_up(400, seed=3)
    for row in rows:
        if row["vig"] is not None:
            row["swap_loss"], row["swap_logprobs"] = row["blur_loss"] - 0.5, [x + 0.5 for x in row["blur_logprobs"]]
    made = write(tmp_path, rows, references=["blur", "swap"])
    selection.run(SelectConfig(scores=made, out=str(tmp_path), p=70, calibrate="source"))
    report.run(ReportConfig(scores=made, out=str(tmp_path / "r.html"), figures=False))
    numbers = json.loads((tmp_path / "r.json").read_text())
    (calibrated,) = numbers["selection"]["thresholds"].values()
    raw = next(row["tau"] for row in numbers["thresholds"] if row["p"] == 70)
    assert calibrated == pytest.approx(raw - 0.5, abs=0.1)
    assert numbers["gallery"]["tau"] == raw
    assert not numbers["gallery"]["of_selection"]
    assert f"τ = {calibrated:+.4f} of calibrated gains" in (tmp_path / "r.html").read_text()
