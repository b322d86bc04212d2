"""A study on Ray: its cells are what the commands beside them do by hand, one failure costs what needs it, and what is
there isn't run again."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.command import call
from tests.study import made

pytestmark = pytest.mark.usefixtures("local_ray")


def test_cells_are_what_the_commands_do_by_hand(tmp_path: Path) -> None:
    path, out = made.write(tmp_path), tmp_path / "out"
    done = call("study", str(path), "--out", str(out))
    assert "12 stages" not in done.stderr  # one scoring for both arms and seeds
    assert "13 stages" in done.stderr
    results = made.results(out)
    assert [row["label"] for row in results["rows"]] == ["random", "vig"]
    assert results["cost"]["ran"] == results["cost"]["stages"] == 13
    assert not results["failed"]
    assert not results["missing"]

    # By hand: the stages of one cell, one after the other, each as its record says, elsewhere and on Ray.
    kept = made.records(out)
    by_hand = tmp_path / "by-hand"
    cell = next(name for name in kept if name.startswith("eval"))
    order: list[str] = []

    def add(name: str) -> None:
        for other in kept:
            if other != name and other in kept[name]["command"].rpartition("--out")[0] and other not in order:
                add(other)
        order.append(name)

    add(cell)
    assert [name.partition("-")[0] for name in order] == ["score", "select", "train", "eval"]
    for name in order:
        _, *words = shlex.split(kept[name]["command"].replace(str(out), str(by_hand)))
        call(*words)
    summary = json.loads((by_hand / "runs" / cell / "evaluation" / "summary.json").read_text())
    (task,) = summary["tasks"]
    (theirs,) = kept[cell]["table"]["tasks"]
    assert task["models"]["model"]["numbers"] == theirs["models"]["model"]["numbers"]
    ours, other = (
        [json.loads(line)["loss"] for line in (folder / "runs" / order[2] / "training/log.jsonl").open()]
        for folder in (out, by_hand)
    )
    assert ours == pytest.approx(other, abs=1e-5)

    # Given again, nothing runs; another arm runs what is new.
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file() and file != out / "study.json"}
    assert "13 stages, 13 of them are there" in call("study", str(path), "--out", str(out)).stderr
    assert {file: file.stat().st_mtime_ns for file in before} == before
    made.write(tmp_path, arms={"random": {"select": {"strategy": "random"}}, "vig": {}, "half": {"select": {"p": 25}}})
    # The data was written anew, with the same content; that is other data to a study.
    again = call("study", str(path), "--out", str(out), "--arms", "half", "--seeds", "1", "--dry-run").stdout
    assert "1 cells: 1 arms" in again


def test_a_failure_costs_what_needs_it(tmp_path: Path) -> None:
    arms = {"random": {"select": {"strategy": "random"}}, "vig": {}, "wild": {"train": {"lr": 1e30}}}
    path, out = made.write(tmp_path, arms=arms, seeds=1), tmp_path / "out"
    done = call("study", str(path), "--out", str(out), "--strict", status=1)
    results = made.results(out)
    assert list(results["missing"]) == ["wild, seed 0"]
    (failed,) = results["failed"]
    assert failed["name"].startswith("train-")
    assert "lower --lr" in failed["told"]
    assert f"failed: {failed['name']}" in done.stdout
    values = made.numbers(out)
    assert {label for label, *_ in values} == {"random", "vig"}
    assert all(math.isfinite(value) for value in values.values())
    again = call("study", str(path), "--out", str(out))  # tried again, and nothing else
    assert made.results(out)["cost"]["ran"] == 1
    assert "8 of them are there" in again.stderr


def test_a_budget_that_is_spent_is_told(tmp_path: Path) -> None:
    path, out = made.write(tmp_path, budget={"hours": 1e-9}), tmp_path / "out"
    done = call("study", str(path), "--out", str(out), "--workers", "1")
    assert "without: vig, seed 1: budget.hours: " in done.stdout
    kept = made.records(out)
    assert [record["stage"] for record in kept.values()] == ["score"]
    path.write_text(path.read_text().replace("1.0e-09", "5"))
    call("study", str(path), "--out", str(out))
    assert made.results(out)["cost"]["ran"] == 12


def test_an_open_order_takes_more_seeds(tmp_path: Path) -> None:
    """Two arms that are the same model are never told apart."""
    arms = {"one": {"eval": {"model": "$model"}}, "other": {"eval": {"model": "$model", "max_new_tokens": 9}}}
    changes = {"arms": arms, "orders": ["one < other on exact.exact"], "more_seeds": 4, "baseline": "one"}
    path, out = made.write(tmp_path, **changes), tmp_path / "out"
    call("study", str(path), "--out", str(out))
    results = made.results(out)
    by_seed = results["rows"][1]["numbers"]["exact.exact"]["by_seed"]
    assert len(by_seed) == 4
    assert np.ptp(list(by_seed.values())) == 0
    assert results["orders"][0]["said"] == "open"
    assert results["cost"]["ran"] == 2  # nothing of them hangs on the seed
