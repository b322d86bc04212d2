"""What a submission is called, and what it tells a job that runs in another folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.job import import_config
from vig_ray.selection.config import SelectConfig
from vig_ray.submission import attempts, config_of, stage_options
from vig_ray.training.config import TrainConfig


@pytest.mark.parametrize(
    ("jobs", "last", "following"),
    [
        ([], None, "a"),
        (["a"], "a", "a-2"),
        (["a-2", "a"], "a-2", "a-3"),
        (["a-2"], "a-2", "a-3"),  # the first one was deleted: `ray job delete a`
        (["a", "a-10", "a-9"], "a-10", "a-11"),
        (["b", "a-b", "ab", "a-02", "a-2-3", "xa"], None, "a"),
    ],
)
def test_an_attempt_takes_a_name_that_is_free(jobs: list[str], last: str | None, following: str) -> None:
    assert attempts("a", jobs) == (last, following)
    assert following not in jobs


@pytest.mark.parametrize(
    ("stage", "paths", "others"),
    [
        (ScoreConfig, ("data", "images", "model", "out"), {}),
        (SelectConfig, ("scores", "samples", "embedding_model", "out"), {}),
        (TrainConfig, ("model", "samples", "selection", "out"), {}),
        (ScoreConfig, ("data",), {"model": "org/name", "out": "s3://bucket/run", "images": "https://host/images"}),
    ],
)
def test_paths_go_in_full(
    stage: Any, paths: tuple[str, ...], others: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "here").mkdir()
    given = dict.fromkeys(paths, "here") | others
    config = config_of(stage)(address="http://head:8265", **given)
    assert stage_options(config) == dict.fromkeys(paths, str(tmp_path / "here")) | others
    config = config_of(stage)(address="http://head:8265", **(given | {paths[0]: "~/there"}))
    if paths[0] != "model":  # a model that isn't here is the hub's
        assert stage_options(config)[paths[0]] == "/home/someone/there"


def test_several_data_go_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here, hub, pattern, bucket = "d=0.7", "hf://datasets/org/set:ocr=0.2", "x/**/*.json=0.1", "s3://b/d.json"
    config = config_of(ScoreConfig)(
        address="http://head:8265", data=(here, hub, pattern, bucket), sample="1%", model="m", out="s3://b/run"
    )
    told = stage_options(config)
    assert told["data"] == [f"{tmp_path}/{here}", hub, f"{tmp_path}/{pattern}", bucket]
    read = ScoreConfig(**told)  # as the job reads it
    assert (read.data, read.sample) == (tuple(told["data"]), 0.01)


@pytest.mark.parametrize("sample", ["100%", "1%"])
def test_a_share_goes_through_the_job_s_file_and_the_import(sample: str) -> None:
    config = config_of(ScoreConfig)(address="http://head:8265", data="s3://b/d", sample=sample, model="m", out="s3://b")
    read = ScoreConfig(**yaml.safe_load(yaml.safe_dump(stage_options(config))))
    assert import_config(read).sample == read.sample == {"100%": 1.0, "1%": 0.01}[sample]


def test_what_is_measured_is_no_path() -> None:
    """`measures` are names to `vig measure`, and a folder to `vig select`."""
    from vig_ray.measuring.config import MeasureConfig
    from vig_ray.submission import config_of, stage_options

    asked = config_of(MeasureConfig)(address="http://h:8265", scores="s3://b/r", out="s3://b/r", measures="el2n,clip")
    assert sorted(stage_options(asked)["measures"]) == ["clip", "el2n"]
