"""Several references in one run, and references that finished scores get later: every number is that of single runs."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import gates as gating
from tests.end_to_end.conftest import read_scores, vig
from tests.end_to_end.test_resume import killed_at, wait_for_the_last_workers
from tests.gates import Gates
from tests.selection.made import selected
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.report import top
from vig_ray.report.top import TopConfig
from vig_ray.scoring import job
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.summary import ScoreSummary
from vig_ray.selection import job as selection
from vig_ray.selection.config import SelectConfig
from vig_ray.stage import read_stage

ROWS = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 samples, the images of two of which are broken."""
    folder = gating.write_world(tmp_path_factory.mktemp("world"), ROWS, 71)
    for image in sorted((folder / "data" / "images").iterdir())[5:7]:
        image.write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def score(world: Path, local_ray: None) -> Callable[..., ScoreSummary]:
    """Score the world with an engine that refuses some prompts."""

    def run(out: Path, *references: str, **options: Any) -> ScoreSummary:
        settings: dict[str, Any] = {"engine": "tests.engines.own:refusing", "rows_per_file": 16, "workers": "1",
                                    "prepare_workers": "1"}  # fmt: skip
        settings |= {"data": str(world), "reference": references} | options
        return job.run(ScoreConfig(model=CHECKPOINT, out=str(out), **settings))

    return run


@pytest.fixture(scope="module")
def of_blur(score: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world scored with blur. Not to be changed."""
    out: Path = tmp_path_factory.mktemp("of-blur")
    score(out, "blur")
    return out


@pytest.fixture
def blurred(of_blur: Path, tmp_path: Path) -> Path:
    """The world scored with blur, for one test."""
    shutil.copytree(of_blur, tmp_path, dirs_exist_ok=True)
    return tmp_path


def record_of(out: Path) -> dict[str, Any]:
    return read_stage(str(out / "scores")) or {}


def names_in(record: dict[str, Any]) -> list[str]:
    return [reference["name"] for reference in record["identity"]["references"]]


@pytest.mark.long
def test_both_at_once_are_two_runs_and_the_one_added_to_the_other(score: Any, tmp_path: Path) -> None:
    at_once = score(tmp_path / "both", "blur", "blind")
    for name in ("blur", "blind"):
        score(tmp_path / name, name)
    both, blur, blind = (read_scores(tmp_path / name) for name in ("both", "blur", "blind"))
    assert len(both) == ROWS
    for row, of_blur, of_blind in zip(both, blur, blind, strict=True):
        for column in ("loss", "logprobs"):
            assert row[f"clean_{column}"] == of_blur[f"clean_{column}"] == of_blind[f"clean_{column}"]
            assert row[f"blur_{column}"] == of_blur[f"blur_{column}"]
            assert row[f"blind_{column}"] == of_blind[f"blind_{column}"]
        assert (row["vig"], row["token_ids"], row["turn"]) == (of_blur["vig"], of_blur["token_ids"], of_blur["turn"])
    assert at_once.read == at_once.scored + at_once.text_only + at_once.failed == ROWS
    assert at_once.incomplete == {"Blind": sum(bool(row["error"] and row["vig"] is not None) for row in both)}
    gains = [
        row["blind_loss"] - row["clean_loss"] for row in both if None not in (row["blind_loss"], row["clean_loss"])
    ]
    assert at_once.references["blind"].mean == pytest.approx(np.mean(gains), abs=1e-12)
    assert (
        f"mean VIG {at_once.references['blur'].mean:+.3f} nats (blur), {np.mean(gains):+.3f} (blind)" in at_once.text()
    )
    # Added later: the same rows, under the same record.
    added = score(tmp_path / "blur", "blind")
    assert read_scores(tmp_path / "blur") == both
    assert (added.counts(), added.gains()) == (at_once.counts(), at_once.gains())
    mine, theirs = record_of(tmp_path / "blur"), record_of(tmp_path / "both")
    assert (mine["identity"], mine["counts"], mine["gains"]) == (theirs["identity"], theirs["counts"], theirs["gains"])
    assert mine["config"]["reference"] == names_in(mine) == ["blur", "blind"]
    files = list((tmp_path / "blur" / "scores").iterdir())
    assert all(file.name.startswith(mine["run"]) for file in files)
    assert not list((tmp_path / "blur").glob(".score-*"))
    kinds = {(row["error"] or "").split(":")[0] for row in both}
    assert {"", "Blind", "Torn"} <= kinds
    assert len(kinds) == 4  # and the broken images'


def test_what_is_there_is_complete(score: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    score(tmp_path, "blind", "blur")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "scores").iterdir()}
    caplog.set_level(logging.INFO)
    for asked in (("blur",), ("blind",), ("blur", "blind"), ("blind", "blur")):
        caplog.clear()
        assert list(score(tmp_path, *asked).references) == ["blind", "blur"]
        assert "already complete, nothing to score; vig is that of blind" in caplog.text
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "scores").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"too_long": "truncate"}, r"\(too_long differ\)"),
        ({"engine": "torch"}, r"\(engine differ\)"),
        ({"dtype": "bfloat16"}, r"\(dtype differ\)"),
        ({"max_length": 77}, "max_length"),
    ],
)
def test_only_a_run_that_is_otherwise_the_same_is_added_to(
    score: Any, blurred: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(StageError, match=told):
        score(blurred, "blind", **options)
    assert names_in(record_of(blurred)) == ["blur"]


def test_an_image_that_has_gone_is_the_new_passs_error(score: Any, world: Path, tmp_path: Path) -> None:
    moved = tmp_path / "world"
    shutil.copytree(world, moved)
    given = {"data": str(moved / "data" / "data.json"), "engine": "tests.engines.gated:engine"}
    before = score(tmp_path, "blur", **given, name="w")
    rows = {row["sample_key"]: row for row in read_scores(tmp_path)}
    for image in sorted((moved / "data" / "images").iterdir())[20:23]:
        image.unlink()
    after = score(tmp_path, "blind", **given, name="w")
    assert (after.scored, after.failed) == (before.scored, before.failed)
    gone = [row for row in read_scores(tmp_path) if (row["error"] or "").startswith("Blind: FileNotFoundError")]
    assert len(gone) == sum(after.incomplete.values()) >= 3
    for row in gone:
        assert row["blind_loss"] is None
        assert {name: row[name] for name in ("vig", "blur_logprobs")} == {
            name: rows[row["sample_key"]][name] for name in ("vig", "blur_logprobs")
        }


def test_scores_of_an_earlier_version_are_read_not_written_to(score: Any, blurred: Path) -> None:
    path = blurred / "scores.stage.json"
    record = json.loads(path.read_text())
    del record["identity"]["references"]
    record["identity"]["reference"] = record["config"]["reference"] = "blur"
    path.write_text(json.dumps(record))
    for asked in ("blur", "blind"):
        with pytest.raises(StageError, match=r"written by an earlier version .* choose another --out, or --overwrite"):
            score(blurred, asked)
    score(blurred, "blind", overwrite=True)
    assert names_in(record_of(blurred)) == ["blind"]


def test_an_unfinished_run_is_finished_first(score: Any, tmp_path: Path) -> None:
    score(tmp_path, "blur", "blind")
    path = tmp_path / "scores.stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False}))
    with pytest.raises(
        StageError, match="unfinished run of `vig score` with the references blur,blind; finish it with"
    ):
        score(tmp_path, "blur")


def test_with_overwrite_vig_is_of_what_was_asked_for(score: Any, blurred: Path) -> None:
    run = record_of(blurred)["run"]
    score(blurred, "blind", "blur", overwrite=True)
    assert names_in(record_of(blurred)) == ["blind", "blur"]
    assert record_of(blurred)["run"] != run


def test_a_selection_stays_what_it_is(score: Any, blurred: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen = SelectConfig(scores=str(blurred), out=str(blurred))
    selection.run(chosen)
    files = list((blurred / "selection").iterdir())
    score(blurred, "blind")
    caplog.set_level(logging.INFO)
    selection.run(chosen)
    assert "already complete, nothing to select" in caplog.text
    assert list((blurred / "selection").iterdir()) == files


def test_what_the_engine_of_the_scores_cannot_run_is_refused(score: Any, blurred: Path) -> None:
    path = blurred / "scores.stage.json"
    record = json.loads(path.read_text())
    record["identity"]["engine"] = "vllm"
    path.write_text(json.dumps(record))
    with pytest.raises(StageError, match="made by the vllm engine, so blind can't be added; choose another --out"):
        score(blurred, "blind", engine="auto")


@pytest.mark.long
@pytest.mark.cluster
def test_an_addition_killed_in_the_middle_goes_on(
    tmp_path: Path, preforked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten batches, killed in the sixth; what was there is whole until all are done."""
    world = gating.write_world(tmp_path / "world", 300, 72)
    out, gates = tmp_path / "out", Gates(tmp_path / "gates")
    words = ["score", "--data", str(world), "--model", CHECKPOINT, "--out", str(out), "--rows-per-file", "32",
             "--workers", "1", "--prepare-workers", "1", *gating.ENGINE]  # fmt: skip
    monkeypatch.syspath_prepend(str(gating.ENGINES))

    def again_with(name: str) -> ScoreSummary:
        given: dict[str, Any] = {"data": str(world), "out": str(out), "engine": gating.ENGINE[1], "reference": name}
        return job.run(ScoreConfig(model=CHECKPOINT, **given))

    vig(*words, "--reference", "blur", PYTHONPATH=gating.PYTHONPATH)
    before = read_scores(out)
    words += ["--reference", "blind"]
    session = killed_at(gates, 5, words, lambda: gating.committed_rows(out) == 5 * 32)
    wait_for_the_last_workers(session)
    assert names_in(record_of(out)) == ["blur"]
    # Readers have the first run whole, though the other one's files lie there, too.
    assert len({file.name[:8] for file in (out / "scores").iterdir()}) == 2
    selection.run(SelectConfig(scores=str(out), out=str(tmp_path / "chosen")))
    assert len(selected(tmp_path / "chosen")) > 200
    with pytest.raises(StageError, match=r"^--reference blind: .* hold blur$"):
        top.run(TopConfig(scores=str(out), reference="blind"))
    assert list(again_with("blur").references) == ["blur"]  # complete: nothing is done
    gates.open()
    again = vig(*words, **gates.environment)
    assert f"going on: {5 * 32} of 300 rows" in again.stderr
    assert len(gates.begun()) == 5 + 1 + 5
    rows = read_scores(out)
    assert [{name: row[name] for name in first} for row, first in zip(rows, before, strict=True)] == before
    gating.assert_as_expected(rows, gating.expected_scores(world))
    assert sum(row["blind_loss"] is not None for row in rows) == sum(row["vig"] is not None for row in rows) > 200
    for row in rows:
        if row["blind_logprobs"] is not None:
            ids = np.array(row["token_ids"])
            np.testing.assert_allclose(row["blind_logprobs"], -0.01 * (1 + ids % 100), rtol=1e-6)
    assert not list(out.glob(".score-*"))
    assert len({file.name[:8] for file in (out / "scores").iterdir()}) == 1
    assert list(again_with("blind").references) == ["blur", "blind"]
