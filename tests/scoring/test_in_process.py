"""Scores made in this process: the numbers of the Ray job, its files and record, and no Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from tests.oracle import blurred, plain_logprobs
from tests.selection.made import copy_outputs
from vig_ray.dataset import importing
from vig_ray.dataset.importing import ImportConfig
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.model.prompt import PromptImage
from vig_ray.push.paths import hub_id, model_name
from vig_ray.scoring import in_process, job
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.prepare import Preparer
from vig_ray.scoring.schema import prepared_schema
from vig_ray.stage import read_stage

SAMPLES = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("world")
    path = world.write(str(folder), SAMPLES, 5)
    rows = json.loads(Path(path).read_text())
    rows[3]["image"] = "images/gone.png"
    rows[4]["conversations"] = []
    Path(path).write_text(json.dumps(rows))
    return path


def config(data: str, out: Path, **options: Any) -> ScoreConfig:
    return ScoreConfig(**{"data": data, "model": CHECKPOINT, "out": str(out), "blur": "opencv"} | options)


def rows(out: Path) -> dict[str, dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted((out / "scores").glob("*.parquet"))]
    found = [row for table in tables for row in table.to_pylist()]
    assert len({row["sample_key"] for row in found}) == len(found)
    return {row["sample_key"]: row for row in found}


@pytest.fixture(scope="module")
def here(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few samples: no Ray is started, and the process is left as it was."""
    import ray

    out = tmp_path_factory.mktemp("here")
    threads = cv2.getNumThreads(), torch.get_num_threads()
    ray.shutdown()
    job.run(config(data, out), in_process=None)
    assert not ray.is_initialized()
    assert (cv2.getNumThreads(), torch.get_num_threads()) == threads
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    return out


def test_every_row_has_the_log_probs_of_a_plain_forward(
    here: Path, data: str, demo_model: Any, demo_formatter: Any
) -> None:
    processor = AutoImageProcessor.from_pretrained(CHECKPOINT, backend="pil")  # as LLaVA does
    roles = {"human": "user", "gpt": "assistant"}
    found, compared = rows(here), 0
    assert len(found) == SAMPLES
    for number, row in enumerate(json.loads(Path(data).read_text())):
        scored = found[f"data/{number:010d}"]
        assert bool(scored["error"]) == (number in (3, 4))
        if scored["vig"] is None:
            continue
        picture = Image.open(Path(data).parent / row["image"]).convert("RGB")
        turns = [Turn(roles[turn["from"]], turn["value"]) for turn in row["conversations"]]
        image = PromptImage("picture", lambda picture=picture: np.asarray(picture), demo_formatter.preprocess)  # type: ignore[misc]
        prompt = demo_formatter.prompt(turns, [image])
        assert scored["token_ids"] == prompt.answer_ids.tolist()
        for name, shown in (("clean", picture), ("blur", blurred(picture))):
            expected = plain_logprobs(demo_model, processor, prompt, [shown])
            np.testing.assert_allclose(scored[f"{name}_logprobs"], expected, atol=1e-5)
        compared += 1
    assert compared > SAMPLES // 2


def test_the_ray_job_gives_the_same(here: Path, data: str, tmp_path: Path, local_ray: None) -> None:
    job.run(config(data, tmp_path, workers="1", prepare_workers="1"))
    by_ray, found = rows(tmp_path), rows(here)
    assert by_ray.keys() == found.keys()
    for key, row in by_ray.items():
        for name, value in row.items():
            if name.endswith(("logprobs", "loss")) or name == "vig":
                assert (value is None) == (found[key][name] is None)
                if value is not None:
                    np.testing.assert_allclose(found[key][name], value, atol=1e-5)
            else:
                assert found[key][name] == value
    of_ray, of_here = read_stage(str(tmp_path / "scores")), read_stage(str(here / "scores"))
    assert of_ray is not None
    assert of_here is not None
    assert of_ray["identity"] == of_here["identity"]
    assert of_ray["counts"] == of_here["counts"]
    assert job.run(config(data, here)).read == SAMPLES  # the one finds what the other has done


def test_many_samples_or_a_ray_in_use_mean_a_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = {"few": in_process.FEW - 1, "many": in_process.FEW}
    monkeypatch.setattr(job, "count_samples", counted.__getitem__)
    options = config("d", Path("o"))
    assert job._here(None, "auto", options, "few")
    assert not job._here(None, "auto", options, "many")
    assert not job._here(None, "vllm", options, "few")
    assert not job._here(None, "auto", options.model_copy(update={"address": "auto"}), "few")
    assert not job._here(None, "auto", options.model_copy(update={"vllm": {"max_num_seqs": 4}}), "few")
    assert not job._here(False, "auto", options, "few")
    assert job._here(True, "torch", options, "many")
    with pytest.raises(StageError, match="--engine vllm: runs in a process of its own"):
        job._here(True, "vllm", options, "few")
    with pytest.raises(StageError, match="--address auto: scoring there is by Ray; leave in_process out"):
        job._here(True, "torch", options.model_copy(update={"address": "auto"}), "few")


def test_a_killed_run_goes_on_and_blocks_are_bounded(
    data: str, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = config(data, tmp_path, rows_per_file=7, window=3)
    blocks: list[int] = []
    called = in_process._called

    def killed(actor: Any, block: Any, count: int) -> Any:
        if type(actor).__name__ == "Preparer":
            blocks.append(block.num_rows)
            if len(blocks) == 3:
                raise KeyboardInterrupt
        return called(actor, block, count)

    with monkeypatch.context() as patch:
        patch.setattr(in_process, "_called", killed)
        with pytest.raises(KeyboardInterrupt):
            job.run(options, in_process=True)
    assert max(blocks) == 7
    assert len(rows(tmp_path)) == sum(blocks[:2]) < SAMPLES
    job.run(options, in_process=True)
    assert len(rows(tmp_path)) == SAMPLES
    for key, row in rows(here).items():
        if row["vig"] is not None:
            assert rows(tmp_path)[key]["vig"] == pytest.approx(row["vig"], abs=1e-5)


@pytest.mark.long
def test_what_was_begun_here_goes_on_by_ray(
    data: str, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: None
) -> None:
    """But for what was written last, just before the kill, and isn't recorded."""
    options = config(data, tmp_path, rows_per_file=7, workers="1", prepare_workers="1")
    recorded: list[str] = []
    commit = in_process.commit_block

    def killed(output: Any, path: str, keys: Any) -> None:
        if len(recorded) == 2:
            raise KeyboardInterrupt
        commit(output, path, keys)
        recorded.append(Path(path).name)

    with monkeypatch.context() as patch:
        patch.setattr(in_process, "commit_block", killed)
        with pytest.raises(KeyboardInterrupt):
            job.run(options, in_process=True)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "scores").glob("*.parquet")}
    assert len(before) == 3
    job.run(options)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "scores").glob("*.parquet")}
    assert {name: after.get(name) for name in recorded} == {name: before[name] for name in recorded}
    assert not (before.keys() - set(recorded)) & after.keys()
    assert {key: row["error"] for key, row in rows(tmp_path).items()} == {
        key: row["error"] for key, row in rows(here).items()
    }


def test_a_killed_run_of_samples_with_other_columns_is_refused(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"data": data, "out": str(tmp_path), "limit": 4}
    importing.run(ImportConfig(**given))
    options = config(str(tmp_path), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(job, "run_steps_here", lambda *_, **__: {}["killed"])
        with pytest.raises(KeyError):
            job.run(options, in_process=True)
    for path in (tmp_path / "scores").parent.glob("scores.stage.json"):
        assert not json.loads(path.read_text())["complete"]
    (tmp_path / "scores").mkdir(exist_ok=True)
    run = json.loads((tmp_path / "scores.stage.json").read_text())["run"]
    (tmp_path / "scores" / f"{run}-000000-0.parquet").write_bytes(b"")
    importing.run(ImportConfig(**given, keep="id", overwrite=True))
    with pytest.raises(StageError, match="samples: keep differ"):
        job.run(options, in_process=True)


def test_the_record_has_a_models_folder_in_full(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that who reads it in another working directory finds it, and takes it for no repository on the hub."""
    folder = Path(CHECKPOINT)
    monkeypatch.chdir(folder.parent.parent)
    model = f"{folder.parent.name}/{folder.name}"
    job.run(config(data, tmp_path, model=model, limit=2), in_process=True)
    monkeypatch.chdir(tmp_path)
    record = read_stage(str(tmp_path / "scores")) or {}
    assert record["config"]["model"] == str(folder)
    assert hub_id(record["config"]["model"]) is None
    assert model_name(record["config"]["model"]) == folder.name


def test_what_is_kept_of_added_rows_is_that_of_the_samples() -> None:
    """Scores of a version that kept nothing lack it."""
    names = prepared_schema(("clean", "blur")).names
    earlier = {name: None for name in names if name not in ("kept", "prompts")} | {"sample_key": "a/0"}
    kept = [{"name": "rating", "value": "4"}]
    made = Preparer.__new__(Preparer)
    made._columns = names
    for there in (earlier, earlier | {"kept": None}):
        assert made._added({"kept": kept, "images": [], "sample_key": "a/0"}, there, {})["kept"] == kept


def test_another_reference_is_added(data: str, here: Path, tmp_path: Path) -> None:
    copy_outputs(here, tmp_path, "samples", "scores")
    summary = job.run(config(data, tmp_path, reference="blur,blind"), in_process=True)
    assert summary.references["blind"].samples == summary.references["blur"].samples > 0
    for key, row in rows(here).items():
        added = rows(tmp_path)[key]
        assert {name: added[name] for name in row} == row
        assert (added["blind_loss"] is None) == (row["vig"] is None)


def test_scoring_is_imported_without_ray() -> None:
    code = (
        "import sys, vig_ray.scoring\n"
        "from vig_ray.api import inspect, report, score, select\n"
        "sys.exit(' '.join({'ray', 'torch', 'transformers', 'vllm'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
