"""Tasks in lmms-eval's YAML form, by `vig eval`: run, killed, given again, failing; where lmms-eval can be imported.

The oracle of answers is `model.generate` of one question after the other, that of numbers is NumPy.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.gates import gone
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.evaluation.config import EvalConfig
from vig_ray.evaluation.job import run
from vig_ray.evaluation.lmms.run import Failed, LmmsOptions, run_lmms
from vig_ray.stage import read_stage

pytestmark = pytest.mark.lmms

ROOT = Path(__file__).parents[2]
QUESTIONS = 12
NEW_TOKENS = 12
TASK = f"""\
task: vig_colors
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: DATA}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function asked.pictures
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_new_tokens: {NEW_TOKENS}, temperature: 0, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
OTHERS = {
    "gated": "doc_to_visual: !function asked.at_the_gate\n",
    "words": "process_results: !function asked.words\n"
    "metric_list:\n  - {metric: words, aggregation: !function asked.most, higher_is_better: false}\n",
    "broken": "doc_to_text: !function asked.broken\n",
    "choices": "output_type: multiple_choice\ngeneration_kwargs: null\ndoc_to_choice: ['yes', 'no']\n",
}
FUNCTIONS = """\
import os
import time


def pictures(doc):
    return [doc["image"].convert("RGB")]


def at_the_gate(doc):
    with open(os.environ["VIG_TEST_GATE"] + ".reached", "w") as file:
        file.write(str(os.getpid()))
    while os.path.exists(os.environ["VIG_TEST_GATE"]):
        time.sleep(0.05)
    return pictures(doc)


def words(doc, results):
    return {"words": {"number": len(results[0].split())}}


def most(items):
    return max(item["number"] for item in items)


def broken(doc):
    raise KeyError("no such column")
"""


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("lmms_eval", reason="lmms-eval 0.7.3 isn't in this environment; make test-lmms has one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    chance = random.Random(0)
    made = []
    for _ in range(QUESTIONS):
        scene = world.random_scene(chance)
        thing = chance.choice([scene.left, scene.right])
        question, answer = f"What color is the {thing.shape}?", f"The {thing.shape} is {thing.color}."
        made.append({"image": world.draw(scene), "question": question, "answer": answer})
    return made


@pytest.fixture(scope="module")
def tasks(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for --lmms-include."""
    folder = tmp_path_factory.mktemp("tasks")
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    Dataset.from_list(rows, features=features).to_parquet(str(folder / "rows.parquet"))
    (folder / "vig_colors.yaml").write_text(TASK.replace("DATA", str(folder / "rows.parquet")))
    for name, differs in OTHERS.items():
        (folder / f"vig_{name}.yaml").write_text(f"include: vig_colors.yaml\ntask: vig_{name}\n{differs}")
    (folder / "vig_both.yaml").write_text(
        "group: vig_both\ntask: [vig_colors, vig_words]\n"
        "aggregate_metric_list: [{metric: exact_match, aggregation: mean, weight_by_size: true}]\n"
    )
    (folder / "asked.py").write_text(FUNCTIONS)
    return folder


@pytest.fixture(scope="module")
def written(rows: list[dict[str, Any]]) -> list[str]:
    """What the model writes, by transformers alone."""
    model = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    texts = []
    for row in rows:
        content = [{"type": "image"}, {"type": "text", "text": row["question"]}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        inputs = processor(images=[row["image"]], text=prompt, return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        texts.append(processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return texts


def options(tasks: Path, **others: Any) -> LmmsOptions:
    return LmmsOptions(
        through="torch", device="cpu", dtype="float32", environment=sys.prefix, include=str(tasks), **others
    )


def test_a_killed_evaluation_goes_on_where_it_was(
    tasks: Path, rows: list[dict[str, Any]], written: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    gate.touch()
    monkeypatch.setenv("VIG_TEST_GATE", str(gate))
    given = {
        "tasks": ("lmms:vig_both", "lmms:vig_gated", "lmms:vig_broken", "lmms:vig_choices"),
        "model": ("demo=" + CHECKPOINT,), "device": "cpu", "dtype": "float32", "draws": 200,
        "lmms_environment": sys.prefix, "lmms_include": str(tasks), "out": str(out),
    }  # fmt: skip
    command = [sys.executable, "-m", "vig_ray.cli", "eval"]
    for name, value in given.items():
        words = value if name == "model" else [",".join(value) if name == "tasks" else str(value)]
        command += ["--" + name.replace("_", "-"), *words]
    driver = subprocess.Popen(command, cwd=ROOT)
    reached = Path(f"{gate}.reached")
    while driver.poll() is None and not (reached.exists() and reached.read_text()):
        time.sleep(0.1)
    assert driver.poll() is None
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    worker = int(reached.read_text())
    while not gone(worker):  # lmms-eval's process, which ends with ours
        time.sleep(0.05)
    records = out / "evaluation" / "lmms" / "demo"
    before = read_stage(str(records / "vig_both"))
    assert before is not None
    assert before["complete"]
    gate.unlink()

    summary = run(EvalConfig(**given))

    assert read_stage(str(records / "vig_both")) == before
    by_name = {task.name: task for task in summary.tasks}
    assert list(by_name) == ["lmms:vig_both", "lmms:vig_colors", "lmms:vig_words", "lmms:vig_gated"]
    assert [task.part for task in summary.tasks] == [False, True, True, False]
    right = np.array([text == row["answer"] for text, row in zip(written, rows, strict=True)], dtype=float)
    assert 0 < right.mean() < 1
    for name in ("lmms:vig_colors", "lmms:vig_gated"):
        assert by_name[name].questions == QUESTIONS
        number = by_name[name].models["demo"].numbers["exact_match"]
        assert number.value == pytest.approx(right.mean())
        assert number.low is not None
        assert number.low < right.mean() < number.high
    assert by_name["lmms:vig_words"].models["demo"].numbers["words"].value == max(len(text.split()) for text in written)
    whole = by_name["lmms:vig_both"].models["demo"].numbers["exact_match"]
    stderr = right.std(ddof=1) / np.sqrt(QUESTIONS)
    assert whole.value == pytest.approx(right.mean())
    assert whole.high == pytest.approx(right.mean() + 1.96 * stderr, rel=1e-3)
    lines = (records / "vig_gated" / "samples" / "vig_gated.jsonl").read_text().splitlines()
    assert [json.loads(line)["filtered_resps"].strip() for line in lines] == written
    told = "\n".join(summary.told)
    assert "lmms:vig_broken failed: KeyError: 'no such column' (what it said: " in told
    assert "lmms:vig_choices failed: it compares likelihoods, which lmms-eval" in told
    assert summary.failed == 2
    assert json.loads((out / "evaluation" / "summary.json").read_text()) == summary.json()
    with pytest.raises(StageError, match=r"vig_both: holds another run .*limit differ"):
        run_lmms(
            "demo", CHECKPOINT, ["vig_both"], str(out / "evaluation"), options(tasks, limit=2), EvalConfig(**given)
        )


def test_what_is_wrong_is_told_in_one_line(tasks: Path, tmp_path: Path) -> None:
    given = {"model": (CHECKPOINT,), "out": str(tmp_path / "out"), "device": "cpu", "lmms_include": str(tasks)}
    with pytest.raises(StageError, match=r"lmms:vig_color: lmms-eval 0\.7\.3 has no such task; it has vig_colors"):
        run(EvalConfig(tasks="lmms:vig_color", lmms_environment=sys.prefix, **given))
    config = EvalConfig(tasks="lmms:vig_colors", lmms_environment=sys.prefix, **given)
    found = run_lmms("demo", CHECKPOINT, ["vig_colors"], str(tmp_path), options(tasks, timeout=0.5), config)
    failed = found["vig_colors"]
    assert isinstance(failed, Failed)
    assert "it took longer than" in failed.why
    assert "--lmms-timeout" in failed.why
