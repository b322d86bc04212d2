"""What models answer, question by question, against plain forwards and transformers' own generate; added to later."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from tests.evaluation.made import ENGINE, config_of, rows_of
from tests.oracle import blurred, plain_logprobs
from vig_ray.api import evaluate
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.evaluation import job
from vig_ray.model.prompt import PromptImage
from vig_ray.stage import read_stage


def picture_of(path: Path, formatter: Any) -> tuple[Image.Image, PromptImage]:
    picture = Image.open(path).convert("RGB")
    return picture, PromptImage(str(path), lambda: np.asarray(picture), formatter.preprocess)


def test_choices_have_the_log_probs_of_a_plain_forward_each(
    asked: Path, data: Path, demo_model: Any, demo_formatter: Any
) -> None:
    processor = AutoImageProcessor.from_pretrained(CHECKPOINT, backend="pil")
    rows = rows_of(asked, "demo")
    given = [json.loads(line) for line in (data / "asked/choices.jsonl").read_text().splitlines()]
    right = []
    for number, question in enumerate(given[:5]):
        row = rows.loc[f"choices/{number:010d}"]
        picture, image = picture_of(data / "asked" / question["image"], demo_formatter)
        sums = []
        for choice, told in zip(question["choices"], row["choices"], strict=True):
            turns = [Turn("user", f"<image>\n{question['question']}"), Turn("assistant", choice)]
            plain = plain_logprobs(demo_model, processor, demo_formatter.prompt(turns, [image]), [picture])
            assert told["text"] == choice
            assert told["tokens"] == len(plain) - 1  # without </s>
            assert told["logprob"] == pytest.approx(plain[:-1].astype(np.float64).sum(), abs=1e-5)
            assert told["first"] == pytest.approx(plain[0], abs=1e-5)
            sums.append(plain[:-1].astype(np.float64))
        by = {
            "sum": [np.sum(one) for one in sums],
            "token": [np.mean(one) for one in sums],
            "character": [np.sum(one) / len(text) for one, text in zip(sums, question["choices"], strict=True)],
        }
        expected = next(
            place for place, text in enumerate(question["choices"])
            if question["answer"] in (place, "ABCD"[place], text)
        )  # fmt: skip
        marks = {pair["name"]: pair["value"] for pair in row["marks"]}
        for name, values in by.items():
            assert marks[name] == (np.argmax(values) == expected)
        assert row["answer"] == question["choices"][int(np.argmax(by["token"]))]
        assert row["score"] == marks["score"] == marks["token"]
        right.append(marks["score"])
    assert 0 < np.mean(right) <= 1


def test_written_answers_are_those_of_generate(asked: Path, data: Path, demo_model: Any, demo_formatter: Any) -> None:
    import torch

    rows = rows_of(asked, "demo")
    processor = AutoImageProcessor.from_pretrained(CHECKPOINT, backend="pil")
    for number, line in list(enumerate((data / "asked/exact.jsonl").read_text().splitlines()))[:4]:
        question, row = json.loads(line), rows.loc[f"exact/{number:010d}"]
        picture = Image.open(data / "asked" / question["image"]).convert("RGB")
        text = (
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            f"detailed, and polite answers to the user's questions. USER: <image>\n{question['question']} ASSISTANT:"
        )
        before, after = text.split("<image>")
        tokenizer = demo_formatter.tokenizer
        around = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after)]
        ids = [tokenizer.bos_token_id, *around[0], *[demo_model.config.image_token_id] * 16, *around[1]]
        given = torch.tensor([ids])
        with torch.no_grad():
            out = demo_model.generate(
                input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=32,
                **processor(images=[picture], return_tensors="pt"),
            )  # fmt: skip
        expected = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()
        assert row["answer"] == expected
        assert row["score"] == (
            expected.casefold().strip(" .") in [each.casefold().strip(" .") for each in question["answer"]]
        )


def test_held_out_samples_have_the_losses_of_plain_forwards(
    asked: Path, data: Path, demo_model: Any, demo_formatter: Any
) -> None:
    """The whole conversation in one forward, by hand from its file: losses of each turn, with the image and blurred."""
    processor = AutoImageProcessor.from_pretrained(CHECKPOINT, backend="pil")
    rows = rows_of(asked, "demo")
    rows = rows[rows["task"] == "held-out"].set_index("id")
    samples = json.loads((data / "own/data.json").read_text())
    for number, sample in enumerate(samples[:10]):
        turns = [
            Turn("user" if turn["from"] == "human" else "assistant", turn["value"]) for turn in sample["conversations"]
        ]
        pictures, images = [], []
        if "image" in sample:
            picture, image = picture_of(data / "own" / sample["image"], demo_formatter)
            pictures, images = [picture], [image]
        prompt = demo_formatter.prompt(turns, images)
        clean = plain_logprobs(demo_model, processor, prompt, pictures)
        without = plain_logprobs(demo_model, processor, prompt, [blurred(one) for one in pictures])
        for turn in range(len(turns) // 2):
            row = rows.loc[f"data/{number:010d}#{turn + 1}"]
            here = prompt.turns == turn
            passes = {one["name"]: one["logprobs"] for one in row["passes"]}
            np.testing.assert_allclose(passes["clean"], clean[here], atol=1e-5)
            assert row["token_ids"].tolist() == prompt.answer_ids[here].tolist()
            assert row["tokens_before"] == (prompt.turns < turn).sum()
            assert row["unit"] == f"data/{number:010d}"
            assert row["group"] == sample["source"]
            assert list(passes) == ["clean", *(["blur"] if pictures else [])]
            if pictures:
                np.testing.assert_allclose(passes["blur"], without[here], atol=2e-2)  # two ways to blur
    assert len(rows) == sum(len(sample["conversations"]) // 2 for sample in samples)
    every = [{one["name"]: one["logprobs"].astype(np.float64) for one in row} for row in rows["passes"]]
    loss, tokens = -sum(one["clean"].sum() for one in every), sum(len(one["clean"]) for one in every)
    gains = [np.mean(one["clean"] - one["blur"]) for one in every if "blur" in one]
    summary = json.loads((asked / "evaluation/summary.json").read_text())
    numbers = next(task for task in summary["tasks"] if task["name"] == "held-out")["models"]["demo"]["numbers"]
    assert numbers["loss"]["value"] == pytest.approx(loss / tokens, abs=1e-6)
    assert numbers["gain"]["value"] == pytest.approx(np.mean(gains), abs=1e-5)
    assert numbers["active loss"] == {"value": None, "low": None, "high": None}  # without a selection


def test_the_torch_engine_and_generator_share_a_model(asked: Path, data: Path, tmp_path: Path) -> None:
    """As `--engine torch` has them, in batches: what transformers' generate and the engine alone have given."""
    config = config_of(data, tmp_path, (f"demo={CHECKPOINT}",), "choices,exact,held-out", engine="torch", draws=0)
    job.run(config, in_process=True)
    rows, alone = rows_of(tmp_path, "demo"), rows_of(asked, "demo")
    columns = ["answer", "error", "new_tokens", "finished", "tokens_before"]
    pd.testing.assert_frame_equal(rows[columns], alone[columns])
    for key, row in rows.iterrows():
        for name, of in (("choices", "logprob"), ("passes", "logprobs")):
            if row[name] is not None:
                for one, other in zip(row[name], alone.loc[key, name], strict=True):
                    np.testing.assert_allclose(one[of], other[of], atol=2e-5)


def test_a_model_that_sees_less_is_told_apart(asked: Path, data: Path) -> None:
    both = (f"demo={CHECKPOINT}", str(data / "worse"))
    files = {path: path.stat().st_mtime_ns for path in asked.rglob("*.parquet")}
    found = job.run(config_of(data, asked, both, "choices,exact,held-out"), in_process=True)
    assert {path: path.stat().st_mtime_ns for path in asked.rglob("*.parquet")} == files  # nothing is asked again
    held_out = next(task for task in found.tasks if task.name == "held-out").models["worse"]
    assert held_out.differences["loss"].value > 0
    assert held_out.differences["exact"].value < 0
    assert held_out.differences["exact"].excludes_zero
    assert list(found.relatives()["worse"].of_task) == ["choices", "exact"]  # held-out counts by token
    assert not found.told
    assert found.models == {"demo": CHECKPOINT, "worse": str(data / "worse")}
    assert "worse" in found.text()
    for name in ("demo", "worse"):
        record = read_stage(str(asked / "evaluation" / name)) or {}
        assert record["complete"]
        assert [task["name"] for task in record["identity"]["tasks"]] == ["choices", "exact", "held-out"]
        assert not list(asked.rglob(".eval-*"))
    with pytest.raises(StageError, match="choices are to other questions"):
        job.run(config_of(data, asked, both, "choices", limit=5), in_process=True)
    with pytest.raises(StageError, match="max_new_tokens differ"):
        job.run(config_of(data, asked, both, "choices", max_new_tokens=3), in_process=True)


def test_a_notebook_finds_what_is_there(asked: Path, data: Path, tmp_path: Path) -> None:
    out = shutil.copytree(asked, tmp_path / "moved")
    found = evaluate(
        {"demo": CHECKPOINT}, "choices", data=data / "asked/choices.jsonl", out=out, engine=ENGINE, rows_per_file=10,
        draws=50, in_process=True,
    )  # fmt: skip
    assert found.answers("demo").table().num_rows == len(rows_of(asked, "demo"))
    assert found.numbers["tasks"][0]["models"]["demo"]["answered"] == 24
    assert repr(found).startswith("      choices\n")
    with pytest.raises(StageError, match="worse: no model is called that; there are demo"):
        found.answers("worse")
