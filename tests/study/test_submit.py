"""What a submitted study sends along, and what it asks of paths: those of the cluster, not of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.study.test_file import right, written
from vig_ray.errors import StageError
from vig_ray.study import file as files
from vig_ray.study import submit
from vig_ray.study.config import StudyConfig
from vig_ray.study.graph import spell_out
from vig_ray.submission import config_of, name_of

ADDRESS = "http://head:8265"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What would be sent."""
    found: dict[str, Any] = {}

    def send(stage: str, config: Any, options: dict[str, Any], **more: Any) -> int:
        found.update(stage=stage, options=options, **more)
        return 0

    monkeypatch.setattr(submit, "submit", send)
    return found


def given(**options: Any) -> Any:
    return config_of(StudyConfig)(address=ADDRESS, **options)


def test_the_file_goes_along_and_paths_start_from_where_it_was(
    tmp_path: Path, sent: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, right(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert submit.run("study", given(study="study.yaml", out="out", rates="other", pilot="10%")) == 0
    assert sent["files"] == {"study.yaml": Path(path).read_text()}
    assert sent["words"] == ["study.yaml"]
    assert sent["options"] == {
        "out": str(tmp_path / "out"), "rates": str(tmp_path / "other"), "pilot": 0.1, "paths_from": str(tmp_path),
    }  # fmt: skip
    read = StudyConfig(study="study.yaml", **sent["options"])  # as the job reads it
    assert read.pilot == 0.1
    first = name_of("study", {**sent["options"], "files": sent["files"]})
    Path(path).write_text(Path(path).read_text() + "title: another\n")
    submit.run("study", given(study="study.yaml", out="out", rates="other", pilot="10%"))
    assert name_of("study", {**sent["options"], "files": sent["files"]}) != first  # another study, another job


def test_paths_of_the_cluster_need_not_be_here(tmp_path: Path, sent: dict[str, Any]) -> None:
    study = right(tmp_path)
    study["values"] |= {"data": "/shared/of/the/cluster/data.json", "model": "/shared/model"}
    study["stages"]["eval"]["data"] = {"exact": "s3://bucket/asked.jsonl"}
    assert submit.run("study", given(study=written(tmp_path, study), out="/shared/out")) == 0
    assert sent["options"]["out"] == "/shared/out"


def test_what_else_is_wrong_is_told_here(tmp_path: Path, sent: dict[str, Any]) -> None:
    study = right(tmp_path)
    study["stages"]["train"] = {"lr": "fast"}
    for options, told in (({}, "stages.train.lr 'fast'"), ({"arms": "all"}, "--arms all: no such arm"),
                          ({"out": "s3://bucket/out"}, "--out s3://bucket/out: a study's stages share a folder"),
                          ({"study": "nowhere.yaml"}, "nowhere.yaml: No such file")):  # fmt: skip
        with pytest.raises(StageError, match=told):
            submit.run("study", given(**{"study": written(tmp_path, study), "out": "/shared/out"} | options))
    assert not sent


def test_where_the_job_runs_relative_paths_lead_to_the_same_folder_or_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, job = tmp_path / "shared", tmp_path / "job"
    shared.mkdir()
    job.mkdir()
    study = right(shared)
    (job / "asked.jsonl").write_text("")  # what lies in the job's own folder isn't meant
    written(job, study)
    monkeypatch.chdir(job)
    graph = spell_out(files.read("study.yaml"), "study.yaml", str(tmp_path / "out"), folder=str(shared))
    same = spell_out(files.read(written(shared, study)), str(shared / "study.yaml"), str(tmp_path / "out"))
    assert graph.nodes.keys() == same.nodes.keys()
    told = (
        r"study\.yaml: stages\.score\.data: /not/here/data\.json: not there on .*, where the study runs; name a folder"
    )
    with pytest.raises(StageError, match=told):
        spell_out(files.read("study.yaml"), "study.yaml", str(tmp_path / "out"), folder="/not/here")
    study["values"]["data"] = "part-*.json"
    with pytest.raises(StageError, match=r"/not/here/part-\*\.json: not there on "):
        spell_out(files.read(written(job, study)), "study.yaml", str(tmp_path / "out"), folder="/not/here")
