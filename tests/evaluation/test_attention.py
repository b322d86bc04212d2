"""Shares of attention on images of what models answer: against full matrices, and the curves against NumPy."""

from __future__ import annotations

import copy
import importlib
import json
import shutil
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.model.test_image_attention import by_full_matrices
from tests.scoring.prompts import LONG, ask, picture
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.evaluation import curves
from vig_ray.evaluation.answering import Answering
from vig_ray.evaluation.attention import ImageAttention, Place, last_answer, places_of, with_written
from vig_ray.evaluation.config import EvalConfig
from vig_ray.evaluation.job import run
from vig_ray.evaluation.outcomes import Marked, read_marked
from vig_ray.evaluation.statistics import generator_of, unit_weights
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.report import job
from vig_ray.report.job import ReportConfig

SAMPLES = 7


def means(model: Any, formatter: Any, prompt: Prompt) -> dict[str, float]:
    """By layer and head, of transformers' own matrices."""
    found = {}
    for layer, shares_HT in enumerate(by_full_matrices(model, formatter, prompt)):
        found[f"layer {layer}"] = shares_HT.mean()
        found |= {f"layer {layer} head {head}": shares_T.mean() for head, shares_T in enumerate(shares_HT)}
    return found


@pytest.mark.parametrize("kind", ["demo", "qwen3_vl"])
def test_what_was_written_is_run_again_as_it_stands(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if kind == "demo":
        model, formatter = request.getfixturevalue("demo_model"), request.getfixturevalue("demo_formatter")
    else:
        importlib.import_module(f"tests.model.families.{kind}").make(str(tmp_path))
        model, formatter = load_model(str(tmp_path), dtype="float32", device="cpu"), load_formatter(str(tmp_path))
    image = picture(1, formatter)
    question = formatter.question([Turn("user", "<image>\nDescribe the image.")], [image])
    whole = ask(formatter, LONG, image)
    written = with_written(question, whole.answer_ids[:-1])  # all but the end of the turn
    last = last_answer(whole)
    attention = ImageAttention(model, formatter.collate)
    assert written.token_ids.tolist() == whole.token_ids[: len(written.token_ids)].tolist()
    np.testing.assert_array_equal(written.answer_positions, last.answer_positions[:-1])
    for prompt in (written, last):
        found = attention(prompt, heads=True)
        assert found == pytest.approx(means(copy.deepcopy(model).double(), formatter, prompt), abs=1e-6)
    assert attention(with_written(question, whole.answer_ids[:0])) == {}
    assert attention(ask(formatter, "Red.", None)) == {}


def test_names_of_places() -> None:
    names = ["score", "layer 10", "layer 2", "layer 2 head 11", "layer 2 head 9", "layer x"]
    assert list(places_of(names).items()) == [
        (Place(2), "layer 2"), (Place(10), "layer 10"), (Place(2, 9), "layer 2 head 9"),
        (Place(2, 11), "layer 2 head 11"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models over samples of the demo world, one of them a text; and over questions that they answer."""
    folder = tmp_path_factory.mktemp("attention")
    world.write(str(folder), 40, 3)
    rows = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    text = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]}
    rows = [*[row for row in rows if row["source"] in ("turns", "caption")][: SAMPLES - 1], text]
    (folder / "some.json").write_text(json.dumps(rows), encoding="utf-8")
    image = next(row["image"] for row in rows if "image" in row)
    asked = [{"question": text, "answer": "x", "image": image} for text in ("Describe the image.", "What is shown?")]
    (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    other = folder / "other"
    shutil.copytree(CHECKPOINT, other)
    weights = safetensors.torch.load_file(other / "model.safetensors")
    torch.manual_seed(0)
    for name, weight in weights.items():
        if "language_model" in name and "q_proj" in name:
            weights[name] = weight + 0.1 * torch.randn_like(weight)
    safetensors.torch.save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    config = EvalConfig(
        model=(f"demo={CHECKPOINT}", f"other={other}"),
        tasks=("attention", "attention:exact"),
        data={"attention": str(folder / "some.json"), "attention:exact": str(folder / "asked.json")},
        task_options={"attention.heads": "yes", "attention:exact.queries": "written"},
        out=str(folder / "out"),
        draws=200,
        max_length=2048,
    )  # fmt: skip
    summary = run(config, in_process=True)
    assert "attention:exact" in summary.text()
    assert "Rel." not in summary.text()  # analyses are no part of it
    return folder / "out" / "evaluation"


def test_marks_are_those_of_the_full_matrices(evaluated: Path, demo_model: Any, demo_formatter: Any) -> None:
    rows = pq.ParquetDataset(evaluated / "demo").read().to_pylist()
    questions = {
        row["sample_key"]: row for row in pq.ParquetDataset(evaluated / "questions/attention").read().to_pylist()
    }
    exact = copy.deepcopy(demo_model).double()
    mine = [row for row in rows if row["task"] == "attention"]
    assert len(mine) == len(questions) > SAMPLES - 1  # a turn each, none of the text
    for row in mine:
        asked = questions[row["sample_key"]]
        turns = [Turn(turn["role"], turn["text"]) for turn in asked["conversation"]]
        answer = json.loads(row["expected"])
        images = [_image(demo_formatter, each["uri"]) for each in asked["images"]]
        prompt = demo_formatter.prompt([*turns, Turn("assistant", answer)], images)
        expected = means(exact, demo_formatter, last_answer(prompt))
        marks = {each["name"]: each["value"] for each in row["marks"]}
        score = marks.pop("score")
        assert marks == pytest.approx(expected, abs=1e-6)
        assert score == pytest.approx(np.mean([marks[name] for name in marks if "head" not in name]))
    others = [row for row in rows if row["task"] == "attention:exact"]
    assert len(others) == 2
    image = _image(demo_formatter, next(iter(questions.values()))["images"][0]["uri"])
    for row in others:
        turns = [Turn("user", row["prompt"]), Turn("assistant", row["answer"])]
        last = last_answer(demo_formatter.prompt(turns, [image]))
        assert row["finished"]
        assert row["new_tokens"] == len(last.answer_ids) - 1 > 2  # all but the end of the turn
        written = replace(last, answer_positions=last.answer_positions[:-1])
        expected = means(exact, demo_formatter, written)
        told = {each["name"]: each["value"] for each in row["attention"]}
        assert told == pytest.approx({name: share for name, share in expected.items() if "head" not in name}, abs=1e-6)


def _image(formatter: Any, uri: str) -> PromptImage:
    return PromptImage(uri, lambda: np.asarray(Image.open(uri).convert("RGB")), formatter.preprocess)


def test_curves_and_numbers_are_numpys(evaluated: Path, tmp_path: Path) -> None:
    table = pq.read_table(evaluated / "attention.parquet").to_pylist()
    summary = json.loads((evaluated / "summary.json").read_text(encoding="utf-8"))
    marked = {model: read_marked(str(evaluated / model), "attention") for model in ("demo", "other")}
    units = marked["demo"].units.to_pylist()
    place = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    drawn = np.concatenate(list(unit_weights(len(place), 200, generator_of(0, "attention"))))
    weights = np.array([[draw[place[unit]] for unit in units] for draw in drawn])  # of each answer, in each draw
    mine = [row for row in table if row["task"] == "attention"]
    layers = [row["layer"] for row in mine if row["model"] == "demo" and row["head"] is None]
    assert layers == list(range(len(layers)))
    assert len(mine) == 2 * len(layers) * 5  # four heads, and their mean
    for row in mine:
        name = str(Place(row["layer"], row["head"]))
        values, theirs = (marked[model].columns[name] for model in (row["model"], "demo"))
        assert (row["share"], row["answers"]) == (pytest.approx(values.mean()), len(values))
        draws = [np.average(values, weights=each) for each in weights]
        assert [row["low"], row["high"]] == pytest.approx(np.percentile(draws, [2.5, 97.5]))
        if row["model"] == "demo":
            assert row["difference"] is row["difference_low"] is row["difference_high"] is None
            continue
        draws = [np.average(values - theirs, weights=each) for each in weights]
        assert row["difference"] == pytest.approx((values - theirs).mean())
        assert [row["difference_low"], row["difference_high"]] == pytest.approx(np.percentile(draws, [2.5, 97.5]))
    numbers = summary["tasks"][0]["models"]["other"]["numbers"]
    shares = [row["share"] for row in mine if row["model"] == "other" and row["head"] is None]
    thirds = [np.mean(part) for part in np.array_split(shares, 3)]
    expected = [np.mean(shares), *thirds]
    assert [numbers[name]["value"] for name in ("share", "early", "middle", "late")] == pytest.approx(expected)
    written = job.run(ReportConfig(evaluation=str(evaluated.parent), out=str(tmp_path / "report.html"), gallery=1))
    assert written.numbers["evaluation"] == summary
    drawn = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "report-figures").glob("*.svg")}
    assert f"other, layer 1: {100 * shares[1]:.1f} [" in drawn["task-attention-layers"]
    assert "other, layer 1, head 3" in drawn["task-attention-heads"]
    assert "task-attention-exact-layers" in drawn
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "attention on the image by head" in page


def test_draws_of_curves_are_held_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    chance, count = np.random.default_rng(2), 40
    keys = pa.array([f"t/{n}" for n in range(count)])
    units = pa.array([f"u{n // 2}" for n in range(count)])
    marked = {
        model: Marked(
            keys, units, pa.nulls(count, pa.string()), np.arange(count) != failed,
            {str(Place(layer)): chance.random(count) for layer in range(3)}, Counter(), {},
        )
        for model, failed in (("a", 3), ("b", 9), ("c", 3))
    }  # fmt: skip
    whole = curves.curves("t", marked, "a", draws=100, seed=1)
    alive: list[weakref.ref[Any]] = []
    most = 0

    def watched(*arguments: Any) -> Any:
        nonlocal most
        for weights_DU in unit_weights(*arguments):
            alive.append(weakref.ref(weights_DU))
            most = max(most, sum(each() is not None for each in alive))
            yield weights_DU

    monkeypatch.setattr("vig_ray.evaluation.statistics._AT_ONCE", 10 * 20)
    monkeypatch.setattr(curves, "unit_weights", watched)
    parts = curves.curves("t", marked, "a", draws=100, seed=1)
    pd.testing.assert_frame_equal(parts.to_pandas(), whole.to_pandas(), rtol=1e-12)
    assert len(alive) == 10
    assert most <= 2  # the one at hand, and the one before


def test_what_cannot_be_told(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"question": "What?", "answer": "x"}]', encoding="utf-8")

    def fails(**options: Any) -> str:
        config: dict[str, Any] = {"model": CHECKPOINT, "tasks": "attention:exact", "data": str(tmp_path / "rows.json")}
        with pytest.raises(StageError) as told:
            run(EvalConfig(**config | {"out": str(tmp_path / "out")} | options), in_process=True)
        return str(told.value)

    assert "no image, in any of 1 questions" in fails()
    assert "queries=x: expected one of written, answers" in fails(task_options="attention:exact.queries=x")
    prompt = ask(load_formatter(CHECKPOINT), "x", None)
    with pytest.raises(PromptError, match="--engine torch does"):
        Answering(None, None, "").attention(prompt)
