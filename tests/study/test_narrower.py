"""A pilot, some arms, or fewer seeds: a narrower command never costs the results that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command import call
from tests.study import made

pytestmark = pytest.mark.usefixtures("local_ray")

ARMS = {"short": {"eval": {"max_new_tokens": 4}}, "long": {}}


def write(folder: Path, **changes: Any) -> Path:
    """Arms that ask the model as it is, after a scoring that no arm needs but `scored`, whose data a pilot shortens."""
    stages = {"eval": {"model": "$model"}, "train": {"model": "$model", "max_steps": 20}}
    given = {"arms": ARMS, "baseline": "short", "orders": [], "seeds": 1} | changes
    return made.write(folder, stages=stages, **given)


def rewrite(path: Path, **changes: Any) -> None:
    """Change keys of a study's file, and leave its data as they are."""
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes, sort_keys=False))


def test_arms_and_seeds_that_are_left_out_keep_their_results(tmp_path: Path) -> None:
    path, out = write(tmp_path, orders=["short < long on exact.exact"]), tmp_path / "out"
    call("study", str(path), "--out", str(out))
    before = made.results(out)
    assert [row["label"] for row in before["rows"]] == ["short", "long"]
    done = call("study", str(path), "--out", str(out), "--arms", "long")
    assert "1 stages, 1 of them are there" in done.stderr
    assert "with the results of 1 cells of other arms or seeds that are there" in done.stderr
    after = made.results(out)
    for name in ("rows", "baseline", "orders", "missing", "failed", "metrics"):
        assert after[name] == before[name], name
    assert done.stdout.count("short") >= 2  # in the table, and what `long` is compared with

    # An arm that has no results isn't shown, nor one whose file is gone, and that is told.
    rewrite(path, arms=ARMS | {"more": {"eval": {"max_new_tokens": 6}}}, seeds=2)
    call("study", str(path), "--out", str(out), "--arms", "more", "--seeds", "1")
    assert [row["label"] for row in made.results(out)["rows"]] == ["short", "long", "more"]
    rewrite(path, arms=ARMS | {"wrong": {"eval": {"data": {"exact": "no.jsonl"}}}})
    done = call("study", str(path), "--out", str(out), "--arms", "long")
    assert "results of other arms that are there are left out of study.json: " in done.stderr
    assert "no.jsonl: not there" in done.stderr
    assert [row["label"] for row in made.results(out)["rows"]] == ["long"]


def test_a_pilot_has_results_of_its_own(tmp_path: Path) -> None:
    arms = ARMS | {"trained": {"eval": {"model": "$train"}, "train": {"selection": None, "samples": "$score"}}}
    path, out = write(tmp_path, arms=arms), tmp_path / "out"
    done = call("study", str(path), "--out", str(out), "--arms", "short,long")
    whole = made.results(out)
    done = call("study", str(path), "--out", str(out), "--pilot", "10%")
    folder = out / "pilot-10-percent"
    assert f"study: {folder}" in done.stdout
    assert made.results(out) == whole
    pilot = made.results(folder)
    assert (whole["pilot"], pilot["pilot"]) == (None, 10.0)
    assert [row["label"] for row in pilot["rows"]] == ["short", "long", "trained"]
    assert pilot["cost"]["ran"] == 3  # what has no share is shared with the whole study
    (trained,) = (record for record in made.records(out).values() if record["stage"] == "train")
    assert "--max-steps 2 " in trained["command"]
