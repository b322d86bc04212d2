"""Curves over checkpoints and a short tuning before each evaluation: what a study spells out of two keys, and what it
counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command import call
from tests.study import made
from tests.study.test_file import planned, right, written
from tests.study.test_graph import of_stage, spelled
from vig_ray.errors import StageError
from vig_ray.study import file as files
from vig_ray.study.graph import Cell, Graph, Node, spell_out
from vig_ray.study.record import Record
from vig_ray.study.results import gather
from vig_ray.study.search import training_of

AT = [0.25, 0.5, 1]


def with_curve(folder: Path, **more: Any) -> dict[str, Any]:
    return right(folder) | {"checkpoints": {"of": "train", "at": AT}} | more


def tuned(folder: Path) -> dict[str, Any]:
    return with_curve(folder, short_tuning={"samples": "$score", "lr": 1e-4})


def test_one_training_serves_the_whole_curve(tmp_path: Path) -> None:
    graph = spelled(tmp_path, tuned(tmp_path))
    assert len(graph.cells) == 2 * 3 * 3  # arms, shares, seeds
    counts = {
        stage: len(of_stage(graph, stage)) for stage in ("score", "select", "train", "short_tuning", "eval", "other")
    }
    assert counts == {"score": 1, "select": 6, "train": 6, "short_tuning": 18, "eval": 18, "other": 0}
    assert {tuple(node.options["export_at"]) for node in of_stage(graph, "train")} == {(0.25, 0.5)}
    runs = tmp_path / "out" / "runs"
    for cell in graph.cells:
        train, tuning, last = (graph.nodes[name] for name in cell.nodes[-3:])
        part = {0.25: "at/0.25", 0.5: "at/0.5", 1: "model"}[cell.axes["at"]]
        assert tuning.options == {
            "model": str(runs / train.name / part), "samples": str(runs / cell.nodes[0] / "samples"), "max_steps": 20,
            "lr": 1e-4, "seed": cell.seed,
        }  # fmt: skip
        assert last.options["model"] == [f"model={runs / tuning.name / 'model'}"]
        assert set(tuning.inputs) == {cell.nodes[0], train.name}
    told = planned(tmp_path, tuned(tmp_path))
    assert "train            6 runs for 18 uses" in told
    assert "short_tuning    18 runs for 18 uses" in told


def test_an_arm_without_the_training_has_no_curve(tmp_path: Path) -> None:
    study = with_curve(tmp_path, arms={"vig": {}, "aligned": {"eval": {"model": "$model"}}, "half": {"at": 0.5}})
    study["orders"] = []
    labels = [cell.label for cell in spelled(tmp_path, study).cells if cell.seed == 0]
    assert labels == ["vig at=0.25", "vig at=0.5", "vig at=1", "aligned", "half"]
    graph = spelled(tmp_path, study)
    assert len(of_stage(graph, "train")) == 3
    of = {cell.label: cell.last for cell in graph.cells if cell.seed == 0}
    assert of["half"] == of["vig at=0.5"]


def test_a_short_tuning_tunes_what_each_arm_asks(tmp_path: Path) -> None:
    study = right(tmp_path) | {"short_tuning": {"samples": "$score", "max-steps": 5}}
    study["arms"] = {"vig": {}, "aligned": {"eval": {"model": "$model"}, "short_tuning": {"lr": 1e-5}}}
    study["orders"] = []
    graph = spelled(tmp_path, study)
    tunings = {cell.arm: graph.nodes[cell.nodes[-2]] for cell in graph.cells}
    assert {node.stage for node in tunings.values()} == {"short_tuning"}
    assert tunings["aligned"].options["model"] == of_stage(graph, "score")[0].options["model"]
    assert tunings["aligned"].options["lr"] == 1e-5
    assert tunings["vig"].options["max_steps"] == 5
    assert tunings["vig"].options["model"].endswith(f"/{of_stage(graph, 'train')[-1].name}/model")


def test_a_checkpoint_may_be_named_by_hand(tmp_path: Path) -> None:
    study = right(tmp_path)
    study["values"]["share"] = 1
    study["vary"] = {"share": [0.1, 1]}
    study["stages"]["train"]["export_at"] = "0.1,1.0"
    study["stages"]["eval"]["model"] = "$train/at/$share"
    graph = spelled(tmp_path, study)
    assert len(of_stage(graph, "train")) == 6
    assert {node.options["model"][0].rpartition("/at/")[2] for node in of_stage(graph, "eval")} == {"0.1", "1"}
    study["vary"]["share"] = [0.1, 0.2]
    with pytest.raises(StageError, match=r"eval\.model: at/0\.2: train writes no such .*: its export_at has 0\.1, 1"):
        spelled(tmp_path, study)
    del study["stages"]["train"]["export_at"]
    with pytest.raises(StageError, match=r"at/0\.1: train writes no such checkpoint: its export_at is empty"):
        spelled(tmp_path, study)


def test_a_pilot_and_a_search_leave_the_short_tuning_as_it_is(tmp_path: Path) -> None:
    study = tuned(tmp_path)
    study["stages"]["train"]["max_steps"] = 100
    path = written(tmp_path, study)
    graph = spell_out(files.read(path), path, str(tmp_path / "out"), pilot=0.1)
    assert {node.options["max_steps"] for node in of_stage(graph, "train")} == {10}
    assert {node.options["max_steps"] for node in of_stage(graph, "short_tuning")} == {20}
    assert {training_of(cell, graph.nodes).stage for cell in graph.cells} == {"train"}


WRONG = {
    "no stage": ({"checkpoints": {"of": "align", "at": AT}}, "checkpoints.of: align: no such stage; there are score"),
    "no training": ({"checkpoints": {"of": "score", "at": AT}}, "checkpoints.of: score: not a training"),
    "beyond the end": ({"checkpoints": {"of": "train", "at": [0.5, 1.5]}}, "checkpoints.at: 1.5: takes shares"),
    "a share twice": ({"checkpoints": {"of": "train", "at": [0.5, 0.5]}}, "checkpoints.at: has a share twice"),
    "no share": ({"checkpoints": {"of": "train", "at": []}}, "checkpoints.at: "),
    "an unknown key": ({"checkpoints": {"of": "train", "at": AT, "steps": 3}}, "checkpoints.steps: no such key"),
    "another at": ({"checkpoints": {"of": "train", "at": AT}, "vary": {"at": [1]}}, "checkpoints: at is the share"),
    "an arm's own share": ({"checkpoints": {"of": "train", "at": AT}, "arms": {"vig": {"at": 0.3}}}, r"at/0\.3: train"),
    "no number": ({"checkpoints": {"of": "train", "at": AT}, "arms": {"vig": {"at": "half"}}}, "arms.vig.at: half: "),
    "said twice": (
        {"checkpoints": {"of": "train", "at": AT}, "arms": {"vig": {"train": {"export_at": [0.1]}}}},
        "stages.train.export_at: checkpoints.at says it",
    ),
    "a short tuning of another model": ({"short_tuning": {"model": "$train"}}, "short_tuning.model: it is the one"),
    "a short tuning of nothing": ({"short_tuning": {}}, "stages.short_tuning.samples"),
    "an option that there isn't": ({"short_tuning": {"steps": 20}}, "stages.short_tuning.steps: no such option"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    changes, told = WRONG[case]
    with pytest.raises(StageError, match=told) as caught:
        planned(tmp_path, right(tmp_path) | {"orders": []} | changes)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "study.yaml"))
    assert not (tmp_path / "out").exists()


def test_tokens_are_those_up_to_the_checkpoint_and_none_of_the_short_tuning(tmp_path: Path) -> None:
    study = files.read(written(tmp_path, with_curve(tmp_path, orders=[])))
    at = {"0.25": {"tokens": 30, "seconds": 2.0}}
    nodes, records, cells = {}, {}, []

    def add(name: str, stage: str, tokens: int | None = None, table: Any = None, model: str = "", **more: Any) -> None:
        nodes[name] = Node(name, stage, stage, {"model": [f"model=/out/runs/{model}"]})
        records[name] = Record(name, stage, stage, "", "done", "", 8.0, tokens=tokens, table=table, **more)

    number = {"models": {"model": {"numbers": {"m": {"value": 1.0}}}}}
    metric = {"name": "m", "percent": True, "higher_is_better": True}
    table = {"tasks": [{"name": "t", "main": "m", "metrics": [metric], **number}]}
    add("base-1", "base", 999)
    add("train-1", "train", 120, model="base-1/model", at=at)
    for share, part in ((0.25, "at/0.25"), (1, "model")):
        add(f"short_tuning-{share}", "short_tuning", 7, model=f"train-1/{part}")
        add(f"eval-{share}", "eval", table=table, model=f"short_tuning-{share}/model")
        cells.append(Cell("vig", {"at": share}, 0, ("base-1", "train-1", f"short_tuning-{share}", f"eval-{share}")))
    rows = gather(study, Graph(nodes, tuple(cells)), cells, records, "out", {}, {}, None).rows
    assert [row.tokens for row in rows] == [{0: 30}, {0: 120}]
    assert [row.seconds for row in rows] == [{0: 10.0}, {0: 16.0}]  # with the whole of what it began from


@pytest.mark.usefixtures("local_ray")
def test_a_curve_is_run(tmp_path: Path) -> None:
    path, out = (
        made.write(
            tmp_path, arms={"random": {"select": {"strategy": "random"}}}, seeds=1, orders=[],
            checkpoints={"of": "train", "at": [0.5, 1]},
            short_tuning={"samples": "$score", "max_steps": 2, "global_batch": 8, "lr": 1e-3, "watch": "none"},
        ),
        tmp_path / "out",
    )  # fmt: skip
    call("study", str(path), "--out", str(out), "--strict")
    results, kept = made.results(out), made.records(out)
    assert [row["label"] for row in results["rows"]] == ["random at=0.5", "random at=1"]
    (train,) = (record for record in kept.values() if record["stage"] == "train")
    lines = [json.loads(line) for line in (out / "runs" / train["name"] / "training" / "log.jsonl").open()]
    tokens = [line["active_tokens"] for line in lines]
    assert len(tokens) == 3  # of which half is two, rounded up
    assert [row["tokens"] for row in results["rows"]] == [{"0": sum(tokens[:2])}, {"0": sum(tokens)}]
    assert results["rows"][0]["seconds"]["0"] < results["rows"][1]["seconds"]["0"]
    models = {record["command"].partition("--model ")[2].split()[0].partition(train["name"])[2]
              for record in kept.values() if record["stage"] == "short_tuning"}  # fmt: skip
    assert models == {"/at/0.5", "/model"}
    assert (out / "runs" / train["name"] / "at" / "0.5" / "model.safetensors").exists()
