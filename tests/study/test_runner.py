"""A study on Ray: its cells are what the commands beside them do by hand, one failure costs what needs it, and what is
there isn't run again."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.command import call
from tests.study import made

pytestmark = pytest.mark.usefixtures("local_ray")


def test_cells_are_what_the_commands_do_by_hand(tmp_path: Path) -> None:
    path, out = made.write(tmp_path, seeds=1), tmp_path / "out"
    done = call("study", str(path), "--out", str(out))
    assert "7 stages" in done.stderr  # one scoring for both arms
    assert {f"{arm}, seed 0: exact.exact % " in done.stderr for arm in ("random", "vig")} == {True}
    results = made.results(out)
    assert [row["label"] for row in results["rows"]] == ["random", "vig"]
    assert results["cost"]["ran"] == results["cost"]["stages"] == 7
    assert not results["failed"]
    assert not results["missing"]

    sizes = {name.partition("-")[0]: record["size"] for name, record in made.records(out).items()}
    assert sizes["score"] == [None, 80, 80, 1.0]  # taken from another stage, gone over, left, share of the data
    assert sizes["select"][:2] == [80, 80]
    assert sizes["train"][:3] == [sizes["select"][2], 3 * 16, None]

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
    assert "7 stages, 7 of them are there" in call("study", str(path), "--out", str(out)).stderr
    assert {file: file.stat().st_mtime_ns for file in before} == before
    study = yaml.safe_load(path.read_text())
    study["arms"]["half"] = {"select": {"p": 25}}
    path.write_text(yaml.safe_dump(study))
    call("study", str(path), "--out", str(out), "--seeds", "1", "--arms", "random,half")
    assert made.results(out)["cost"]["ran"] == 3
    assert {file: file.stat().st_mtime_ns for file in before} == before


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
    assert "7 of them are there" in again.stderr


@pytest.mark.long
def test_a_budget_that_is_spent_is_told(tmp_path: Path) -> None:
    path, out = made.write(tmp_path, budget={"hours": 1e-9}), tmp_path / "out"
    done = call("study", str(path), "--out", str(out), "--workers", "1")
    assert "without: vig, seed 1: budget.hours: " in done.stdout
    kept = made.records(out)
    assert [record["stage"] for record in kept.values()] == ["score"]
    path.write_text(path.read_text().replace("1.0e-09", "5"))
    call("study", str(path), "--out", str(out))
    assert made.results(out)["cost"]["ran"] == 12


@pytest.mark.long
def test_an_open_order_takes_more_seeds(tmp_path: Path) -> None:
    """Two arms that are the same model are never told apart."""
    arms = {"one": {"eval": {"model": "$model"}}, "other": {"eval": {"model": "$model", "max_new_tokens": 9}}}
    changes = {"arms": arms, "orders": ["one < other on exact.exact"], "more_seeds": 4, "baseline": "one"}
    path, out = made.write(tmp_path, **changes), tmp_path / "out"
    call("study", str(path), "--out", str(out))
    results = made.results(out)
    by_seed = results["rows"][1]["numbers"]["exact.exact"]["by_seed"]
    assert len(by_seed) == 2  # another seed would be the same run, and isn't counted as one
    assert np.ptp(list(by_seed.values())) == 0
    assert results["rows"][1]["numbers"]["exact.exact"]["difference"]["mean"] == {
        "value": results["rows"][1]["numbers"]["exact.exact"]["mean"]["value"]
        - results["rows"][0]["numbers"]["exact.exact"]["mean"]["value"],
        "low": None, "high": None, "seeds": 1,
    }  # fmt: skip
    assert results["orders"][0]["said"] == "open"
    assert results["cost"]["ran"] == 2

    study = yaml.safe_load(path.read_text())
    study["arms"] = {"random": {"select": {"strategy": "random"}}, "vig": {}}
    study |= {"baseline": "random", "orders": ["vig < random on exact.exact"], "more_seeds": 3, "seeds": 1}
    path.write_text(yaml.safe_dump(study))
    told = call("study", str(path), "--out", str(out))
    assert "orders at 97.5 %" in told.stdout
    rows = made.results(out)["rows"]
    assert [len(row["numbers"]["exact.exact"]["by_seed"]) for row in rows] == [3, 3]  # one is never settled


@pytest.mark.long
@pytest.mark.parametrize("arms", ["vig", pytest.param("random,vig", marks=pytest.mark.long)])
def test_a_search_goes_on_with_the_better_half(arms: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"tasks": "held-out", "data": {"held-out": "data/data.json"}, "limit": 24}
    stages = {"train": {"max_steps": 8}, "eval": asked}
    path, out = (
        made.write(tmp_path, stages=stages, measured=["held-out.loss"], orders=["vig < random on held-out.loss"]),
        tmp_path / "out",
    )
    monkeypatch.chdir(tmp_path)  # a path that isn't whole, as users give it
    done = call("study", path.name, "--out", "out", "--search", "train.lr=1e-3,1e-7,1e-9", "--arms", arms,
                "--workers", "2")  # fmt: skip
    results = made.results(out)
    rungs = {trial["label"]: trial["rungs"] for trial in results["trials"]}
    rates = ("0.001", "1e-07", "1e-09")
    assert rungs.keys() == {f"{arm} lr={rate}" for arm in arms.split(",") for rate in rates}
    survivors = [label for label, scores in rungs.items() if len(scores) == 3]
    for arm in arms.split(","):  # each among its own
        assert 1 <= sum(label.startswith(arm) for label in survivors) < 3
    assert {row["label"] for row in results["rows"]} == set(survivors)
    assert "vig lr=0.001" in survivors  # the only rate that moves the model
    assert all(len(row["numbers"]["held-out.loss"]["by_seed"]) == 2 for row in results["rows"])
    lengths = {
        json.loads(lines[-1])["step"] + 1
        for file in out.glob("runs/train-*/training/log.jsonl") if (lines := file.read_text().splitlines())
    }  # fmt: skip
    assert lengths >= {2, 8}
    # The last rung is the whole run with the first seed, and isn't run twice.
    kept = made.records(out)
    whole = [record for record in kept.values() if record["stage"] == "train" and "--max-steps 8" in record["command"]]
    assert len(whole) == 2 * len(survivors)
    assert "study: " in done.stdout
