"""What is left of a study costs what was measured, times samples, times epochs: against sums worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.study.test_file import planned, right, written
from vig_ray.errors import StageError
from vig_ray.study import file as files
from vig_ray.study import record as records
from vig_ray.study.graph import Graph, Node, spell_out
from vig_ray.study.rates import Rates
from vig_ray.study.record import Record, Size
from vig_ray.study.sizes import like


def spelled(folder: Path, study: dict[str, Any], out: Path, pilot: float | None = None) -> Graph:
    path = written(folder, study)
    return spell_out(files.read(path), path, str(out), pilot=pilot)


def done(node: Node, seconds: float, *, gpus: int = 0, **size: float) -> Record:
    return Record(
        node.name, node.stage, node.verb, "", "done", "", seconds, gpus=gpus, like=like(node), size=Size(**size)
    )


def ran(graph: Graph, out: Path, *, gpus: int = 0) -> None:
    """Records of the first cell of a study as a pilot of 2 % of 1,000 samples leaves them."""
    score, select, train, last = (graph.nodes[name] for name in graph.cells[0].nodes)
    records.write(str(out), done(score, 10, worked=20, left=20, share=0.02))
    records.write(str(out), done(select, 1, took=20, worked=20, left=10))
    records.write(str(out), done(train, 4, took=10, worked=10, gpus=gpus))
    records.write(str(out), done(last, 7))


def line_of(text: str, stage: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"  {stage} "))


def one_arm(folder: Path) -> dict[str, Any]:
    study = right(folder)
    study |= {"arms": {"vig": {}}, "orders": [], "seeds": 1}
    study["stages"]["select"]["p"] = 50
    return study


def test_nothing_is_said_of_what_has_not_run(tmp_path: Path) -> None:
    text = planned(tmp_path, right(tmp_path))
    assert "about" not in text
    assert line_of(text, "train").endswith("6 to run, unknown until one has run")
    assert "how long score, select, train, eval take is unknown until a stage of this kind has run" in text


def test_a_pilot_is_scaled_by_samples_and_epochs(tmp_path: Path) -> None:
    study, out = one_arm(tmp_path), tmp_path / "out"
    ran(spelled(tmp_path, study, out, pilot=0.02), out, gpus=2)
    text = planned(tmp_path, study)
    assert line_of(text, "score").endswith("1 to run, about 8:20, scaled from 1 that ended, of 20 samples, to 1,000")
    assert line_of(text, "select").endswith("about 50 s, scaled from 1 that ended, of 20 samples, to 1,000")
    assert line_of(text, "train").endswith("about 3:20, scaled from 1 that ended, of 10 samples, to 500")
    assert line_of(text, "eval").endswith("about 7 s, by 1 that ended")  # of as many questions
    assert "about 12:37 one after the other, 0.11 GPU hours; scaled: seconds per sample" in text  # 2 GPUs for 200 s
    study["stages"]["train"]["epochs"] = 3
    assert "about 10:00, scaled" in line_of(planned(tmp_path, study), "train")
    study["stages"]["train"] = {"max_steps": 25, "global_batch": 8}
    assert "about 1:20, scaled from 1 that ended, of 10 samples, to 200" in line_of(planned(tmp_path, study), "train")
    study["stages"]["eval"]["max_new_tokens"] = 9  # the same stage, asked otherwise
    assert line_of(planned(tmp_path, study), "eval").endswith("about 7 s, by 1 that ended")


def test_what_a_pilot_itself_takes_is_known_by_the_whole(tmp_path: Path) -> None:
    study, out = one_arm(tmp_path), tmp_path / "out"
    graph = spelled(tmp_path, study, out)
    records.write(str(out), done(graph.nodes[graph.cells[0].nodes[0]], 100, worked=1000, left=1000))
    text = planned(tmp_path, study, pilot=0.1)
    assert "about 10 s, scaled from 1 that ended, of 1,000 samples, to 100" in line_of(text, "score")
    assert "about 10 s one after the other, and select, train, eval" in text


def test_of_the_same_stage_those_that_are_most_like_it_count(tmp_path: Path) -> None:
    """Of two arms with trainings of other costs each is told by its own."""
    study, out = right(tmp_path), tmp_path / "out"
    study |= {"arms": {"vig": {}, "lora": {"train": {"lora": True}}}, "seeds": 2, "orders": []}
    graph = spelled(tmp_path, study, out)
    first, second = graph.cells[:2]
    known = [done(graph.nodes[cell.nodes[2]], seconds, worked=100) for cell, seconds in ((first, 10), (second, 30))]
    select = [done(graph.nodes[cell.nodes[1]], 1, worked=200, left=100, took=200) for cell in (first, second)]
    score = done(graph.nodes[first.nodes[0]], 1, worked=200, left=200)
    rates = Rates(graph.nodes, [*known, *select, score])
    found = [rates.of(cell.nodes[2]) for cell in graph.cells[2:]]
    assert [each.seconds for each in found if each] == pytest.approx([10, 30])
    assert all(each and each.scaled is None and each.by == 1 for each in found)


def test_those_on_cpus_say_nothing_of_gpus(tmp_path: Path) -> None:
    study, out = one_arm(tmp_path) | {"seeds": 3}, tmp_path / "out"
    graph = spelled(tmp_path, study, out)
    last = [graph.nodes[cell.last] for cell in graph.cells]
    rates = Rates(graph.nodes, [done(last[0], 1000), done(last[1], 10, gpus=1)])
    found = rates.of(last[2].name)
    assert found is not None
    assert (found.seconds, found.gpu_seconds, found.by) == (10, 10, 1)


def test_records_that_kept_no_size_count_for_the_same_study_alone(tmp_path: Path) -> None:
    study, out = one_arm(tmp_path) | {"seeds": 2}, tmp_path / "out"
    graph = spelled(tmp_path, study, out)
    old = Record(graph.cells[0].nodes[2], "train", "train", "", "done", "", 40.0)
    found = Rates(graph.nodes, [old]).of(graph.cells[1].nodes[2])
    assert found is not None
    assert found.seconds == 40
    assert Rates(graph.nodes, [Record("train-0123456789", "train", "train", "", "done", "", 40.0)]).of(old.name) is None


def test_the_times_of_another_study(tmp_path: Path) -> None:
    """By what its stages are and whom they take from, whatever the folders are called."""
    study, other = one_arm(tmp_path), tmp_path / "elsewhere" / "runs-of-it"
    ran(spelled(tmp_path, study, other, pilot=0.02), other)
    assert "about" not in planned(tmp_path, study)
    text = planned(tmp_path, study, rates=str(other))
    assert line_of(text, "train").endswith("about 3:20, scaled from 1 that ended, of 10 samples, to 500")
    with pytest.raises(StageError, match=r"--rates .*nowhere: no runs/ there; it takes what another"):
        planned(tmp_path, study, rates=str(tmp_path / "nowhere"))
