"""A wrong study is one line that names the file and the place in it, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vig_ray.errors import StageError
from vig_ray.study import file as files
from vig_ray.study import job
from vig_ray.study.config import StudyConfig
from vig_ray.study.file import Order
from vig_ray.study.search import parse


def right(folder: Path) -> dict[str, Any]:
    (folder / "data.json").write_text("[]")
    (folder / "asked.jsonl").write_text("")
    return {
        "values": {"model": "$demo-model", "data": "data.json"},
        "stages": {
            "score": None,
            "select": {"p": 60},
            "train": {"lr": 3e-4},
            "eval": {"tasks": "exact", "data": {"exact": "asked.jsonl"}},
        },
        "arms": {"random": {"select": {"strategy": "random"}}, "vig": {}},
        "orders": ["random < vig on exact.exact"],
    }


def written(folder: Path, study: Any) -> str:
    path = folder / "study.yaml"
    path.write_text(study if isinstance(study, str) else yaml.safe_dump(study, sort_keys=False))
    return str(path)


def planned(folder: Path, study: Any, **options: Any) -> str:
    given = {"study": written(folder, study), "out": str(folder / "out"), "dry_run": True, **options}
    found = job.run(StudyConfig(**given))
    return found.text()


def changed(study: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    *path, last = place.split("/")
    within = study
    for name in path:
        within[name] = within.get(name) or {}
        within = within[name]
    within[last] = value
    return study


WRONG = {
    "an unknown key": ("arm", {}, "arm: no such key"),
    "no arm": ("arms", {}, "arms: "),
    "a stage that there isn't": ("stages/score", {"run": "scores"}, "stages.score: scores: no such stage"),
    "an option that there isn't": ("stages/train", {"learning_rate": 1}, "stages.train.learning_rate: no such option"),
    "a value that doesn't fit": ("stages/train", {"lr": "fast"}, "stages.train.lr 'fast': "),
    "an option of one arm": ("arms/vig", {"select": {"pp": 3}}, "stages.select.pp: no such option .arm vig"),
    "a name that there isn't": ("stages/train", {"samples": "$scored"}, "stages.train.samples: .scored: no such name"),
    "an output that there isn't": ("stages/train", {"samples": "$select"}, "select is a stage that leaves no samples"),
    "a circle": ("stages/score", {"data": "$train/model"}, "eval -> train -> score -> train: a circle"),
    "an arm of no stage": ("arms/vig", {"selekt": {"p": 3}}, "arms.vig.selekt: neither a stage nor a value"),
    "what isn't options": ("arms/vig", {"select": 30}, "arms.vig.select: takes options"),
    "a wrong axis": ("vary", {"p": [1, 2]}, "vary.p: neither a value nor an option"),
    "an axis of nothing": ("vary", {"select.p": []}, "vary: select.p: give the values"),
    "a baseline that there isn't": ("baseline", "full", "baseline: full: no such arm"),
    "an order of others": ("orders", ["full < vig on exact.exact"], "orders.0: full: no such arm"),
    "an order of nothing": ("orders", ["vig"], "orders.0: 'vig': takes ARM < ARM"),
    "a number that there isn't": ("orders", ["random < vig on exact.acc"], "exact.acc: no such number; there are "),
    "a task that there isn't": ("orders", ["random < vig on pope.f1"], "stages.eval.tasks has no pope"),
    "no seed": ("seeds", 0, "seeds: at least 1"),
    "a seed twice": ("seeds", [1, 1], "seeds: has a seed twice"),
    "a folder of one's own": ("stages/train", {"out": "x"}, "stages.train.out: a study sets it itself"),
    "data that isn't there": ("values/data", "no.json", "stages.score.data: .*no.json: not there"),
    "a model that isn't there": ("values/model", "./no-model", "stages.score.model: .*no-model"),
    "a value that stands for itself": ("values/data", "$data", "values.data: stands for itself"),
    "data that is a number": ("values/data", 5, "stages.score.data"),
    "a task's data that is nothing": ("stages/eval/data", {"exact": None}, "stages.eval.data: .*None: not there"),
    "an order of one arm twice": ("orders", ["vig < vig on exact.exact"], "orders.0: 'vig < vig"),
    "a row that there isn't": ("orders", ["random < vig p=3 on exact.exact"], "orders: vig p=3: no such row"),
    "a model with a name": ("stages/eval/model", "mine=$train", "stages.eval.model: .*arms have names"),
    "two models": ("stages/eval/model", ["$train", "$model"], "stages.eval.model: takes one model"),
    "a name for two things": ("values/train", 3, "values.train: also the name of a stage"),
    "a paper's row too short": (
        "paper", [{"source": "x", "columns": ["a", "b"], "rows": {"vig": [1]}}], "vig has 1 numbers for 2 columns",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    place, value, told = WRONG[case]
    with pytest.raises(StageError, match=told) as caught:
        planned(tmp_path, changed(right(tmp_path), place, value))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(tmp_path / "study.yaml"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [("a: [", "not YAML"), ("- a", "a study has stages and arms"), ("arms: {a: {}, a: {}}", "a is there twice")],
)
def test_what_is_no_study(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(StageError, match=told):
        planned(tmp_path, text)
    with pytest.raises(StageError, match=r"nowhere\.yaml: No such file"):
        job.run(StudyConfig(study=str(tmp_path / "nowhere.yaml"), out=str(tmp_path)))


def test_options_that_do_not_fit_the_file(tmp_path: Path) -> None:
    for options, told in (({"arms": "full"}, "--arms full: no such arm"), ({"seeds": 9}, "--seeds 9: .* has 3")):
        with pytest.raises(StageError, match=told):
            planned(tmp_path, right(tmp_path), **options)


def test_the_right_one_is_planned(tmp_path: Path) -> None:
    text = planned(tmp_path, right(tmp_path))
    assert "6 cells: 2 arms with what is varied, 3 seeds" in text
    assert "score            1 runs for 6 uses" in text
    assert "select           6 runs for 6 uses" in text


def test_orders_are_read_from_the_least() -> None:
    assert Order.parse("a < b p=30 < c on t:x.y z").arms == ("a", "b p=30", "c")
    assert Order.parse("a > b on t.y").arms == ("b", "a")
    assert Order.parse("a > b on t.y").metric == "t.y"
    for wrong in ("a < b", "a on t.y", "a < b > c on t.y", "a < on t.y"):
        with pytest.raises(ValueError, match="takes ARM"):
            Order.parse(wrong)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("p", "takes NAME=LOW"), ("p=20..10", "a lower value"), ("p=5", "one value is no search"),
        ("q=1,2", "q: no stage has such an option"), ("seed=1,2", "say whose, STAGE.seed"),
        ("vig.p=1,2", "no stage has"), ("p=x..y", "one value"),
    ],
)  # fmt: skip
def test_a_search_that_can_not_be(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(StageError, match=f"--search .*{told}"):
        planned(tmp_path, right(tmp_path), search=text)


def test_values_of_a_search(tmp_path: Path) -> None:
    study = files.read(written(tmp_path, right(tmp_path)))
    assert parse("p=20..100", study) == ("select.p", (20, 40, 60, 80, 100))
    assert parse("select.p=0..1:3", study).values == (0, 1)
    assert parse("train.lr=1e-4,3e-4", study) == ("train.lr", (1e-4, 3e-4))
    assert parse("lr=0.5..1.5:3", study) == ("train.lr", (0.5, 1.0, 1.5))
    assert parse("model=a,b", study) == ("model", ("a", "b"))
