"""Which stages a study's cells take, what they share, and what changes their names."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import yaml

from tests.study.test_file import right, written
from vig_ray import cli
from vig_ray.demo import CHECKPOINT
from vig_ray.study import file as files
from vig_ray.study.graph import Graph, Node, spell_out
from vig_ray.study.record import command_of


def spelled(folder: Path, study: dict[str, Any]) -> Graph:
    path = written(folder, study)
    return spell_out(files.read(path), path, str(folder / "out"))


def of_stage(graph: Graph, stage: str) -> list[Node]:
    return [node for node in graph.nodes.values() if node.stage == stage]


def test_what_differs_in_nothing_runs_once(tmp_path: Path) -> None:
    graph = spelled(tmp_path, right(tmp_path))
    assert {stage: len(of_stage(graph, stage)) for stage in ("score", "select", "train", "eval")} == {
        "score": 1, "select": 6, "train": 6, "eval": 6,
    }  # fmt: skip
    for cell in graph.cells:
        stages = [graph.nodes[name].stage for name in cell.nodes]
        assert stages == ["score", "select", "train", "eval"]  # each after its inputs
        assert graph.nodes[cell.last].inputs == (cell.nodes[-2],)
    assert [cell.seed for cell in graph.cells] == [0, 0, 1, 1, 2, 2]


def test_default_wiring_is_what_one_would_write(tmp_path: Path) -> None:
    graph = spelled(tmp_path, right(tmp_path))
    cell = graph.cells[1]
    score, select, train, last = (graph.nodes[name] for name in cell.nodes)
    runs = tmp_path / "out" / "runs"
    assert score.options == {"data": str(tmp_path / "data.json"), "model": CHECKPOINT}
    assert select.options == {"p": 60, "scores": str(runs / score.name), "seed": 0}
    assert train.options == {
        "lr": 3e-4, "model": CHECKPOINT, "samples": str(runs / score.name / "samples"),
        "selection": str(runs / select.name / "selection"), "seed": 0,
    }  # fmt: skip
    assert last.options["model"] == [f"model={runs / train.name / 'model'}"]
    assert last.options["data"] == {"exact": str(tmp_path / "asked.jsonl")}


def test_a_stage_that_no_cell_needs_is_not_run(tmp_path: Path) -> None:
    study = right(tmp_path)
    study["arms"] = {"aligned": {"eval": {"model": "$model"}}}
    study["orders"] = []
    graph = spelled(tmp_path, study)
    assert {node.stage for node in graph.nodes.values()} == {"eval"}
    assert len(graph.nodes) == 1  # nothing of it hangs on the seed


def test_an_axis_is_of_every_arm_that_does_not_name_it(tmp_path: Path) -> None:
    study = right(tmp_path)
    study["vary"] = {"select.p": [30, 70], "data": ["data.json", "more.json"]}
    (tmp_path / "more.json").write_text("[]")
    study["arms"]["full"] = {"select": {"strategy": "full", "p": 100}}
    study["orders"] = []
    labels = {cell.label for cell in spelled(tmp_path, study).cells}
    assert labels == {
        *(f"{arm} p={p} data={data}" for arm in ("random", "vig") for p in (30, 70)
          for data in ("data.json", "more.json")),
        "full data=data.json", "full data=more.json",
    }  # fmt: skip


def test_names_change_with_what_decides_an_output_and_with_nothing_else(tmp_path: Path) -> None:
    right(tmp_path)
    state = os.stat(tmp_path / "data.json")

    def names(change: Any) -> set[str]:
        study = right(tmp_path)
        os.utime(tmp_path / "data.json", ns=(state.st_atime_ns, state.st_mtime_ns))
        os.utime(tmp_path / "asked.jsonl", ns=(state.st_atime_ns, state.st_mtime_ns))
        change(study)
        return set(spelled(tmp_path, study).nodes)

    base = names(lambda study: None)
    assert names(lambda study: study["stages"]["train"].update(workers="2", batch_tokens=64)) == base
    assert names(lambda study: study.update(title="another")) == base
    shared = names(lambda study: study["stages"]["train"].update(lr=1e-4)) & base
    assert {name.partition("-")[0] for name in shared} == {"score", "select"}

    def other_data(_: Any) -> None:
        (tmp_path / "data.json").write_text("[1]")

    assert not names(other_data) & base


def test_a_pilot_takes_a_share(tmp_path: Path) -> None:
    study = right(tmp_path)
    study["stages"]["train"]["max_steps"] = 5000
    path = written(tmp_path, study)
    graph = spell_out(files.read(path), path, str(tmp_path / "out"), pilot=0.02)
    assert of_stage(graph, "score")[0].options["sample"] == "2%"
    assert of_stage(graph, "train")[0].options["max_steps"] == 100
    assert "sample" not in of_stage(graph, "eval")[0].options


def test_every_command_is_read_back_as_the_same_options(tmp_path: Path) -> None:
    """The command beside an output, through the command line's own parser, makes the config of the stage."""
    study = right(tmp_path)
    study["stages"]["train"] |= {"train": ["projector", "language"], "lora": True, "packing": False}
    study["stages"]["eval"] |= {"task_options": {"exact.max_new_tokens": "8"}, "tasks": ["exact"]}
    study["stages"]["score"] = {"keep": ["meta.a", "b*"], "reference": "blur,blind"}
    for node in spelled(tmp_path, study).nodes.values():
        _, *words = shlex.split(command_of(node, str(tmp_path / "out")))
        verb, _, config_class, _, given = cli._parse(words)
        read = cli.read_config(verb, config_class, given)
        out = str(tmp_path / "out" / "runs" / node.name)
        assert read == config_class.model_validate({**node.options, "out": out})


def test_the_studies_of_the_project_are_right() -> None:
    """Each file in studies/ is spelled out, but that whose data is made first: test_emoji.py has it."""
    for path in sorted((Path(__file__).parents[2] / "studies").glob("*.yaml")):
        study = files.read(str(path))
        assert yaml.safe_load(path.read_text())["title"]
        assert study.prepare or spell_out(study, str(path), "/nowhere/out").cells


def test_what_suffers_nothing_beside_it_has_a_folder_within_its_own(tmp_path: Path) -> None:
    study = right(tmp_path)
    study["stages"]["made"] = {"run": "assemble", "language_model": "$demo-model", "vision_tower": "$demo-model",
                                "projector": "random"}  # fmt: skip
    study["stages"]["train"]["model"] = "$made"
    graph = spelled(tmp_path, study)
    (made,) = of_stage(graph, "made")
    where = str(tmp_path / "out" / "runs" / made.name / "model")
    assert command_of(made, str(tmp_path / "out")).endswith(f"--out {where}")
    assert of_stage(graph, "train")[0].options["model"] == where


def test_what_is_measured_is_no_path(tmp_path: Path) -> None:
    """`measures` are names to `vig measure`, and a folder to `vig select`."""
    study = right(tmp_path)
    study["stages"]["measure"] = {"measures": "el2n"}
    study["arms"]["vig"] = {"select": {"strategy": "el2n", "measures": "$measure"}}
    graph = spelled(tmp_path, study)
    (measure,) = of_stage(graph, "measure")
    assert measure.options["measures"] == ["el2n"]
    assert str(tmp_path / "out" / "runs" / measure.name / "measures") in {
        node.options.get("measures") for node in of_stage(graph, "select")
    }
