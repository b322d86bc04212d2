"""What another version of vig-ray wrote is told, taken, and run again where that is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vig_ray
from tests.command import call
from tests.study import made
from vig_ray.errors import StageError
from vig_ray.study import again, job
from vig_ray.study import record as records
from vig_ray.study.config import StudyConfig
from vig_ray.study.graph import Node

pytestmark = pytest.mark.usefixtures("local_ray")


def as_version(out: Path, stage: str, version: str | None) -> set[str]:
    """Put this version into the records of a stage, as another release would have written them; their names."""
    changed = set()
    for file in out.glob(f"runs/{stage}-*/study.json"):
        record = json.loads(file.read_text())
        record["version"] = version
        if version is None:
            del record["version"]
        file.write_text(json.dumps(record))
        changed.add(file.parent.name)
    return changed


@pytest.mark.long
def test_other_versions_are_told_and_run_again_only_if_asked_for(tmp_path: Path) -> None:
    arms: dict[str, Any] = {"random": {"select": {"strategy": "random"}}, "aligned": {"eval": {"model": "$model"}}}
    path, out = made.write(tmp_path, arms=arms, seeds=1, orders=[]), tmp_path / "out"
    call("study", str(path), "--out", str(out))
    kept = made.records(out)
    assert {record["version"] for record in kept.values()} == {vig_ray.__version__}
    assert "another version" not in call("study", str(path), "--out", str(out)).stderr

    trained = as_version(out, "train", "0.0.9")
    scored = as_version(out, "score", None)
    done = call("study", str(path), "--out", str(out))
    (line,) = (line for line in done.stderr.splitlines() if "another version" in line)
    assert f"(1 by 0.0.9, 1 by one that kept none; this is {vig_ray.__version__}); --again" in line
    assert made.results(out)["cost"]["ran"] == 0

    with pytest.raises(StageError, match=r"--again trai: no such stage; there are score, select, train, eval, or all"):
        job.run(StudyConfig(study=str(path), out=str(out), again="trai"))
    planned = call("study", str(path), "--out", str(out), "--again", "train", "--dry-run")
    assert "again, with what was made from them: 1 eval, 1 train" in planned.stderr
    assert made.records(out).keys() == kept.keys()  # nothing is moved by that

    call("study", str(path), "--out", str(out), "--again", "train")
    assert made.results(out)["cost"]["ran"] == 2  # and its evaluation, but not the one of the model as it is
    aside = {folder.name for folder in (out / "runs").glob("*.vig-ray-*")}
    assert {name.partition(".")[0] for name in aside} >= trained
    assert any(name.endswith(".vig-ray-0.0.9") for name in aside)
    assert made.records(out)[min(trained)]["version"] == vig_ray.__version__

    # Given again, what is new isn't run again; all that hangs on the scores is, with them.
    done = call("study", str(path), "--out", str(out), "--again", "train")
    assert "nothing that is there was written by another version" in done.stderr
    assert made.results(out)["cost"]["ran"] == 0
    done = call("study", str(path), "--out", str(out), "--again", "all")
    assert "again, with what was made from them: 1 eval, 1 train, 1 select, 1 score" in done.stderr
    assert made.results(out)["cost"]["ran"] == 4
    assert min(scored) in made.records(out)
    assert "another version" not in call("study", str(path), "--out", str(out)).stderr


def test_what_was_made_from_it_is_moved_first_whoever_asked_for_it(tmp_path: Path) -> None:
    """Killed between two of them, nothing is left that was made from what is no longer there."""
    out = str(tmp_path)

    def node(name: str, *inputs: str, version: str | None = vig_ray.__version__, state: str = "done") -> Node:
        command = f"vig x --a {' '.join(f'{out}/runs/{each}/samples' for each in inputs)} --out {out}/runs/{name}"
        (tmp_path / "runs" / name).mkdir(parents=True)
        stage = name.partition("-")[0]
        if version is not None:
            records.write(out, records.Record(name, stage, stage, command, state, "", version=version))  # type: ignore[arg-type]
        return Node(name, stage, stage, {}, inputs)

    score = node("score-1", version="0.0.1")
    nodes = {each.name: each for each in (score, node("train-2", "score-1", version=None))}  # killed half-way
    node("select-3", "score-1")  # of another command
    node("train-4", "select-3", state="failed")
    node("score-5", version="0.0.1")  # of an arm that --arms leaves out
    taken = {name: records.read(out, name) for name in ("score-1", "score-5")}
    names = again.asked_for("all", taken, nodes, out)  # type: ignore[arg-type]
    assert names[-1] == "score-1"
    assert set(names) == {"score-1", "train-2", "select-3", "train-4"}
    assert names.index("train-4") < names.index("select-3")
    again.move_aside(names, out)
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {
        "score-5", "score-1.vig-ray-0.0.1", "train-2.vig-ray-unknown",
        f"select-3.vig-ray-{vig_ray.__version__}", f"train-4.vig-ray-{vig_ray.__version__}",
    }  # fmt: skip
