"""Tasks around a task, asked of the demo model: the same answers where the question is the same, losses by
transformers' own forward, numbers by pandas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.evaluation.made import rows_of
from tests.oracle import blurred
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.evaluation import job
from vig_ray.evaluation.config import EvalConfig
from vig_ray.model.prompt import PromptImage

ASKED = 5
TASKS = ("exact", "swap:exact", "blind-faith:exact", "blind-faith:choices")


@pytest.fixture(scope="module")
def inside(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inside")
    config = EvalConfig(
        model=(f"demo={CHECKPOINT}",), tasks=TASKS, engine="torch", limit=ASKED, draws=20, out=str(out),
        data={"exact": str(data / "asked/exact.jsonl"), "blind-faith:choices": str(data / "asked/choices.jsonl")},
        task_options={"blind-faith:exact.template": "It is said: {text}\\n{prompt}"}, rows_per_file=10,
    )  # fmt: skip
    job.run(config, in_process=True)
    return out


def of_task(out: Path, task: str) -> pd.DataFrame:
    """Answers with the question's images, and the marks as columns."""
    rows = rows_of(out, "demo").query("task == @task")
    assert rows["error"].isna().all()
    questions = pd.read_parquet(out / "evaluation/questions" / task).set_index("sample_key")
    marks = pd.DataFrame([{each["name"]: each["value"] for each in row} for row in rows["marks"]], index=rows.index)
    kept = [{each["name"]: json.loads(each["value"]) for each in row} for row in questions["kept"].loc[rows.index]]
    rows["right"] = [one["answer"] for one in kept]
    return rows.join(questions[["images", "conversation"]]).join(marks.drop(columns="score"))


def numbers(out: Path, task: str) -> dict[str, float]:
    summary = json.loads((out / "evaluation/summary.json").read_text(encoding="utf-8"))
    (found,) = [one for one in summary["tasks"] if one["name"] == task]
    assert found["main"] == ("exact" if task == "exact" else None)
    return {name: one["value"] for name, one in found["models"]["demo"]["numbers"].items()}


def test_the_same_question_has_the_same_answer(inside: Path) -> None:
    plain = of_task(inside, "exact")["answer"].tolist()
    assert len(plain) == ASKED
    for task in ("swap:exact", "blind-faith:exact"):
        assert of_task(inside, task).query("way == 0")["answer"].tolist() == plain


def test_losses_are_transformers_own(inside: Path, demo_model: Any, demo_formatter: Any) -> None:
    rows = of_task(inside, "swap:exact")
    assert len(rows) == 4 * ASKED
    own = {row.unit: row.images[0]["uri"] for row in rows.itertuples() if row.way == 0}
    for row in rows.itertuples():
        pictures = [Image.open(each["uri"]).convert("RGB") for each in row.images]
        if row.way == 1:
            assert Path(row.images[0]["uri"]).read_bytes() != Path(own[row.unit]).read_bytes()
        elif row.way == 2:
            pictures = [blurred(picture) for picture in pictures]
        assert len(pictures) == (row.way != 3)
        images = [PromptImage("x", lambda p=p: np.asarray(p), demo_formatter.preprocess) for p in pictures]  # type: ignore[misc]
        turns = [Turn("user", row.conversation[0]["text"]), Turn("assistant", row.right)]
        prompt = demo_formatter.prompt(turns, images)
        ids = torch.from_numpy(prompt.token_ids.astype(np.int64))[None]
        pixels = demo_formatter.collate([image.inputs for image in images], "cpu", torch.float32) if images else {}
        with torch.no_grad():
            logp = demo_model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels).logits[0].log_softmax(-1)
        nll = -sum(float(logp[place - 1, ids[0, place]]) for place in prompt.answer_positions.tolist())
        found = rows.loc[row.Index]
        assert found["swap tokens"] == len(prompt.answer_positions)
        assert found["swap nll"] == pytest.approx(nll, abs=0.02 if row.way == 2 else 1e-4)


def test_numbers_are_those_of_the_rows(inside: Path) -> None:
    rows, found = of_task(inside, "swap:exact"), numbers(inside, "swap:exact")
    by_way = rows.groupby("way")
    share, loss = by_way["score"].mean(), by_way["swap nll"].sum() / by_way["swap tokens"].sum()
    assert [found[name] for name in ("own", "other", "blur", "none")] == pytest.approx(share)
    assert [found["loss"], *(found[f"rise {name}"] for name in ("other", "blur", "none"))] == pytest.approx(
        [loss[0], *(loss[way] - loss[0] for way in (1, 2, 3))]
    )
    assert loss[0] + 0.1 < min(loss[1], loss[2], loss[3])  # the model sees
    for task in ("blind-faith:exact", "blind-faith:choices"):
        rows, found = of_task(inside, task), numbers(inside, task)
        assert len(rows) == 2 * ASKED
        base, corrupted = rows.groupby("way")["score"].mean()
        assert (found["base"], found["corrupted"]) == pytest.approx((base, corrupted))
        assert found["norm"] == pytest.approx(corrupted / base)
        assert found["followed"] == pytest.approx(rows["followed"].mean())
        told = rows.query("way == 1")["prompt"]
        assert told.str.contains("It is said: The" if task.endswith("exact") else "A description of the image").all()
        assert rows["unit"].nunique() == ASKED
