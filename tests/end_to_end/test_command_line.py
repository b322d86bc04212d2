"""The command line: wrong input fails at once with one line and starts nothing; options, YAML and environment agree."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from tests.command import call, refused
from tests.end_to_end.conftest import ROOT, read_scores
from vig_ray.cli import _verbs
from vig_ray.demo import CHECKPOINT, world
from vig_ray.stage import read_stage


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    world.write(str(folder), 24, seed=5)
    (folder / "notes.txt").write_text("nothing to import")
    (folder / "not_json.json").write_text("hello")
    pq.write_table(pa.table({"caption": ["a"], "pixels": ["b"]}), folder / "unknown.parquet")
    (folder / "lm").mkdir()
    (folder / "lm" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"--data": "nowhere.json"}, "nowhere.json: no such file"),
        ({"--data": "{small}/notes.txt"}, "notes.txt"),
        ({"--data": "{small}/empty"}, "empty"),
        ({"--data": "{small}/unknown.parquet"}, "'caption', 'pixels'"),
        ({"--images": "{small}/no-folder"}, "no-folder"),
        ({"--model": "./no-model"}, "./no-model: no such folder"),
        ({"--model": "no-model"}, "no-model: no such folder"),
        ({"--model": "nobody/nothing"}, "nobody/nothing: no such folder here; the hub can't be reached"),
        ({"--model": "{small}/empty"}, "no config.json"),
        ({"--model": "{small}/broken"}, "config.json: can't be read"),
        ({"--model": "{small}/lm"}, "takes no images"),
        ({"--reference": "fog"}, "--reference 'fog'"),
        ({"--reference": "blur,blind,blur"}, "--reference 'blur,blind,blur': names blur twice"),
        ({"--reference": ","}, "--reference ',': takes one value, or several with commas between them"),
        ({"--dtype": "int8"}, "--dtype 'int8'"),
        ({"--workers": "8..2"}, "--workers '8..2'"),
        ({"--window": "0"}, "--window '0'"),
        ({"--out": "ftx://bucket/out"}, "ftx://bucket/out"),
        ({"--config": "{small}/none.yaml"}, "none.yaml"),
    ],
)
def test_wrong_options_fail_in_one_line_before_anything_starts(
    small: Path, tmp_path: Path, changes: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("a Ray was started"))
    options = {"--data": "{small}/data.json", "--model": CHECKPOINT, "--out": str(tmp_path / "out")} | changes
    arguments = [part.replace("{small}", str(small)) for option in options.items() for part in option]
    assert told in refused("score", *arguments)
    assert not (tmp_path / "out").exists()


def test_missing_options_are_named() -> None:
    assert refused("score", "--data", "x.json") == "vig: --model is required; --out is required"


def test_unknown_options_in_yaml_are_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: x\nmodel: y\nout: z\nbatchsize: 3\n")
    assert "--batchsize: no such option" in refused("score", "--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("verb", sorted(_verbs()))
def test_help_names_every_option_with_its_default(verb: str) -> None:
    config, _ = _verbs()[verb].load()
    printed = "".join(call(verb, "--help").stdout.split())  # argparse breaks lines at hyphens, too
    for name, field in config.model_fields.items():
        positional = isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("positional")
        assert (name.upper() if positional else f"--{name.replace('_', '-')}") in printed
        assert field.description
        has_default = field.default not in (None, ()) and field.default_factory is None and not field.is_required()
        if has_default and field.annotation is not bool:
            several = field.default if isinstance(field.default, tuple) else (field.default,)
            told = ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in several)
            assert "".join(f"(default: {told})".split()) in printed


@pytest.fixture(scope="module")
def by_line(small: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world, scored by the command line with options from YAML, the environment and the line."""
    folder = tmp_path_factory.mktemp("line")
    options = {"data": str(small / "data.json"), "model": CHECKPOINT, "out": str(folder / "yaml"), "window": 7}
    options |= {"rows-per-file": 8, "reference": "blur", "workers": 1, "prepare-workers": 1}
    (folder / "c.yaml").write_text(yaml.safe_dump(options))
    line = ("--config", str(folder / "c.yaml"), "--out", str(folder))
    call("score", *line, VIG_SCORE_WINDOW="5", VIG_SCORE_OUT="env")
    return folder


def test_yaml_environment_and_command_line_in_that_order(by_line: Path) -> None:
    record = read_stage(str(by_line / "scores"))
    assert record is not None
    assert record["config"]["out"] == str(by_line)
    assert record["config"]["window"] == 5
    assert record["config"]["rows_per_file"] == 8
    assert len(list((by_line / "scores").glob("*.parquet"))) >= 3
    assert len(read_scores(by_line)) == 24


def test_python_and_imported_samples_give_what_the_command_line_gives(
    small: Path, by_line: Path, tmp_path: Path
) -> None:
    from vig_ray.scoring import job
    from vig_ray.scoring.config import ScoreConfig

    done = call("import", "--data", str(small / "data.json"), "--out", str(tmp_path / "imported"))
    assert "read 24 = " in done.stdout
    imported, out = str(tmp_path / "imported"), str(tmp_path / "scored")
    summary = job.run(ScoreConfig(data=imported, model=CHECKPOINT, out=out, workers=1, prepare_workers=1))
    assert summary.read == 24
    assert json.loads(json.dumps(summary.counts()))["read"] == 24
    rows = read_scores(out)
    assert [row["sample_key"] for row in rows] == [row["sample_key"] for row in read_scores(by_line)]
    for row, other in zip(rows, read_scores(by_line), strict=True):
        assert row["token_ids"] == other["token_ids"]
        assert row["vig"] == pytest.approx(other["vig"], abs=1e-5)
    assert not (tmp_path / "scored" / "samples").exists()


def test_a_model_with_its_own_chat_template(small: Path, tmp_path: Path, local_ray: None, qwen_checkpoint: str) -> None:
    """A tiny Qwen2.5-VL through the whole job: the rows say what a plain forward says."""
    import numpy as np
    from PIL import Image
    from transformers import AutoImageProcessor

    from tests.oracle import blurred, plain_logprobs
    from vig_ray.dataset.schema import Turn
    from vig_ray.model.load import load_formatter, load_model
    from vig_ray.model.prompt import PromptImage
    from vig_ray.scoring import job
    from vig_ray.scoring.config import ScoreConfig

    data = small / "data.json"
    given_options = {"workers": 1, "prepare_workers": 1, "blur": "opencv", "order": "as-is"}
    config = ScoreConfig(data=str(data), model=qwen_checkpoint, out=str(tmp_path), **given_options)
    assert job.run(config).failed == 0
    formatter, processor = load_formatter(qwen_checkpoint), AutoImageProcessor.from_pretrained(qwen_checkpoint)
    model = load_model(qwen_checkpoint, dtype="float32", device="cpu")
    exact = copy.deepcopy(model).double()  # float32 itself may be off by more than the tolerance
    checked, ours, theirs, truth = 0, [], [], []
    for given, row in zip(json.loads(data.read_text()), read_scores(tmp_path), strict=True):
        if "image" not in given:
            assert row["vig"] is None
            continue
        picture = Image.open(small / given["image"]).convert("RGB")
        image = PromptImage("p", lambda picture=picture: np.asarray(picture), formatter.preprocess)
        roles = {"human": "user", "gpt": "assistant"}
        prompt = formatter.prompt([Turn(roles[t["from"]], t["value"]) for t in given["conversations"]], [image])
        assert row["token_ids"] == prompt.answer_ids.tolist()
        for name, shown in (("clean_logprobs", picture), ("blur_logprobs", blurred(picture))):
            ours += row[name]
            theirs += plain_logprobs(model, processor, prompt, [shown]).tolist()
            truth += plain_logprobs(exact, processor, prompt, [shown]).tolist()
        checked += 1
    rounding = float(np.abs(np.subtract(theirs, truth)).max())
    np.testing.assert_allclose(ours, theirs, atol=max(1e-5, rounding), rtol=0)
    assert checked > 15


def test_overwrite_deletes_only_what_a_scoring_run_wrote(small: Path, tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "precious.txt").write_text("mine")
    line = ("--data", str(small / "data.json"), "--model", CHECKPOINT, "--out", str(tmp_path), "--overwrite")
    assert "precious.txt was not written by `vig score`" in call("score", *line, status=2).stderr
    assert (tmp_path / "scores" / "precious.txt").read_text() == "mine"


def test_numbers_and_ranges_of_workers_alike() -> None:
    from vig_ray.scoring.config import ScoreConfig

    for given, kept in ((4, "4"), ("4", "4"), ("1..8", "1..8")):
        assert ScoreConfig(data="d", model="m", out="o", workers=given).workers == kept


def test_strict_import_tells_by_its_status(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"conversations": []}\n')
    line = ("import", "--data", str(tmp_path / "d.jsonl"), "--out", str(tmp_path / "a"))
    call(*line)
    assert "failed 1" in call(*line, "--strict", status=1).stdout


def test_everything_on_object_storage(small: Path, s3, local_ray: None) -> None:
    """Data, images and scores on an S3-compatible server; resumable there as anywhere."""
    client = s3()
    client.create_bucket(Bucket="world")
    for file in [small / "data.json", *(small / "images").iterdir()]:
        client.upload_file(str(file), "world", f"demo/{file.relative_to(small)}")
    line = ("score", "--data", "s3://world/demo/data.json", "--model", CHECKPOINT, "--out", "s3://world/out")
    call(*line, "--workers", "1", "--prepare-workers", "1")
    keys = [one["Key"] for one in client.list_objects_v2(Bucket="world", Prefix="out/")["Contents"]]
    parts = [key for key in keys if key.startswith("out/scores/") and key.endswith(".parquet")]
    rows = []
    for key in parts:
        body = client.get_object(Bucket="world", Key=key)["Body"].read()
        rows += pq.read_table(pa.BufferReader(body)).to_pylist()
    assert len({row["sample_key"] for row in rows}) == len(rows) == 24
    assert all(row["error"] is None for row in rows)
    assert "already complete" in call(*line).stderr


def test_a_missing_bucket_is_one_line(small: Path, s3) -> None:
    told = refused("score", "--data", "s3://no-such-bucket/d.json", "--model", CHECKPOINT, "--out", "s3://x/y")
    assert "s3://no-such-bucket/d.json" in told


# What of scoring and training runs on Ray or vLLM itself; the rest runs anywhere.
ON_RAY = (
    "scoring.by_server",
    "scoring.in_process",
    "scoring.job",
    "scoring.passes",
    "scoring.placement",
    "scoring.steps",
    "training.job",
    "training.text_job",
    "training.progress_actor",
    "training.ray_group",
)
ON_VLLM = ("scoring.engines.vllm", "scoring.engines.vllm_worker")


def test_models_scoring_and_training_can_be_imported_without_ray() -> None:
    """A machine with torch and transformers alone runs the engine, and the steps of training."""
    code = (
        "import importlib, pkgutil, sys; sys.modules['ray'] = sys.modules['vllm'] = None\n"
        "for package in ('model', 'scoring', 'training'):\n"
        "    package = importlib.import_module(f'vig_ray.{package}')\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        f"        if module.name.removeprefix('vig_ray.') not in {(*ON_RAY, *ON_VLLM)!r}:\n"
        "            print(importlib.import_module(module.name).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True
    )
    assert {"vig_ray.scoring.engines.torch", "vig_ray.scoring.references.average"} < set(done.stdout.split())
