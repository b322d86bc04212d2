"""How fast `vig eval` asks, beside lmms-eval 0.7.3 with its wrapper of transformers: `python -m benchmarks.evaluate`.

    generation   questions whose answer is written, greedy, of at most --new-tokens tokens
    likelihood   questions with four choices, of which the likeliest is the answer

The same model, pictures, questions and prompts (by the chat template) on the same machine, float32, one side after the
other in each round, with --threads of torch.

What is timed is the same on both: decoding and resizing pictures, tokenising, answering, and here marking, too; neither
the start nor loading the model. lmms-eval's wrapper takes one question at a time, and of one with choices one choice;
it can't be told otherwise. It counts a likelihood's pair as text and then fails, which is mended here for its sake.

The environment is that of `vig eval --setup-lmms`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from vig_ray.demo import CHECKPOINT, world
from vig_ray.processes import cores

ROOT = Path(__file__).parents[1]
KINDS = {"generation": "exact", "likelihood": "choices"}
"""What is measured, and the task of `vig eval` that does it."""
_CHOICES = 4
_WARM = 4  # questions


@dataclass(frozen=True)
class Asked:
    """A model and questions. `rows`: as the tasks `exact` and `choices` take them, with paths of pictures in full."""

    name: str
    model: str
    rows: Sequence[dict[str, Any]]


def of_demo(folder: Path, count: int, per_image: int) -> Asked:
    """The demo model, asked for colours."""
    chance = np.random.default_rng(0)
    rows = []
    for number in range(count):
        if number % per_image == 0:
            scene = world.random_scene(random.Random(number))
            picture = folder / f"{number}.png"
            world.draw(scene).save(picture)
        thing = (scene.left, scene.right)[number % 2]
        colors = [thing.color, *chance.permutation(sorted(set(world.COLORS) - {thing.color}))[: _CHOICES - 1]]
        texts = [f"The {thing.shape} is {color}." for color in chance.permutation(colors)]
        right = f"The {thing.shape} is {thing.color}."
        asked = f"What color is the {thing.shape}?"
        rows.append({"question": asked, "image": str(picture), "choices": texts, "answer": right})
    return Asked("demo model", CHECKPOINT, rows)


def of_shape(folder: Path, count: int, per_image: int, layers: int) -> Asked:
    """A LLaVA-1.5 of some layers of 768 at random weights: 576 image tokens, questions of some twenty words."""
    from benchmarks.llava_shape import llava, picture
    from benchmarks.shape_files import words_of, write_checkpoint

    family = llava("12x768")
    family.config.text_config.num_hidden_layers = layers
    family = replace(family, name=f"LLaVA-1.5, {layers} layers of 768")
    words = words_of(family)
    chance = np.random.default_rng(0)
    rows = []
    for number in range(count):
        if number % per_image == 0:
            place = folder / f"{number}.jpg"
            Image.fromarray(picture((640, 480), seed=number)).save(place, quality=90)
        texts = [" ".join(chance.choice(words, int(chance.integers(2, 8)))) for _ in range(_CHOICES)]
        asked = " ".join(chance.choice(words, 12 + int(chance.poisson(10)))) + "?"
        rows.append({"question": asked, "image": str(place), "choices": texts, "answer": texts[0]})
    return Asked(family.name, write_checkpoint(family, folder / "model"), rows)


@dataclass(frozen=True)
class Answered:
    """What one side made of all questions: seconds, what was answered in their order, and the share that is right."""

    seconds: float
    answers: Sequence[str]
    right: float


def ours(asked: Asked, kind: str, folder: Path, new_tokens: int) -> Answered:
    """The steps of the job in this process, window by window, after a few questions to warm up."""
    from vig_ray.evaluation.answer import Answerer
    from vig_ray.evaluation.config import EvalConfig
    from vig_ray.evaluation.generation import Sampling
    from vig_ray.evaluation.mark import Marker
    from vig_ray.evaluation.plan import check
    from vig_ray.evaluation.prepare import QuestionPreparer
    from vig_ray.evaluation.questions import write
    from vig_ray.stage import parquet_files

    task = KINDS[kind]
    folder.mkdir()
    data = folder / "questions.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in asked.rows))
    pictures = {task: os.path.dirname(asked.rows[0]["image"])}
    config = EvalConfig(
        model=(asked.model,), tasks=(task,), data={task: str(data)}, images=pictures, out=str(folder), device="cpu",
        template="chat",
    )  # fmt: skip
    plan = check(config)
    (read,) = plan.questions
    write(read, plan.tasks[0], config, overwrite=False)
    table = pq.read_table(parquet_files(read.directory))
    prompts = plan.models[0].prompts
    prepare = QuestionPreparer(prompts=prompts, passes=(), max_image_pixels=config.max_image_pixels)
    load = {
        "name": "torch", "prompts": prompts, "writes": read.writes, "scores": read.scores, "dtype": "float32",
        "device": "cpu", "batch_tokens": None, "threads": None,
    }  # fmt: skip
    answer = Answerer(load=load, sampling=Sampling(), max_new_tokens={task: new_tokens})
    mark = Marker(tasks=plan.tasks)
    mark(answer(prepare(table.slice(0, _WARM))))
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    for start in range(0, table.num_rows, config.window):
        rows += mark(answer(prepare(table.slice(start, config.window)))).to_pylist()
    seconds = time.perf_counter() - began
    failed = [row["error"] for row in rows if row["error"] is not None]
    assert not failed, failed[:3]
    rows.sort(key=lambda row: row["sample_key"])
    return Answered(seconds, [row["answer"].strip() for row in rows], float(np.mean([row["score"] for row in rows])))


def theirs(asked: Asked, kind: str, folder: Path, new_tokens: int, python: str) -> Answered:
    """lmms-eval, in a process of its environment."""
    folder.mkdir()
    write_task(asked, kind, folder, new_tokens)
    done = folder / "done.json"
    command = [python, "-m", "benchmarks.evaluate", "--lmms-side", str(folder), asked.model, kind]
    with open(folder / "log", "w") as log:
        status = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        sys.exit(f"lmms-eval failed:\n{(folder / 'log').read_text()[-3000:]}")
    return Answered(**json.loads(done.read_text()))


def write_task(asked: Asked, kind: str, folder: Path, new_tokens: int) -> None:
    """The questions as Parquet, and a task of lmms-eval's YAML form over them."""
    from datasets import Dataset, Features, Value
    from datasets import Image as Pictures
    from datasets import Sequence as ListOf

    text = Value("string")
    features = Features(
        {"image": Pictures(), "question": text, "choices": ListOf(text), "answer": text, "right": Value("int64")}
    )
    rows = [{**row, "right": row["choices"].index(row["answer"])} for row in asked.rows]
    Dataset.from_list(rows, features=features).to_parquet(str(folder / "rows.parquet"))
    task: dict[str, Any] = {
        "task": "measured", "dataset_path": "parquet", "test_split": "test", "doc_to_text": "{{question}}",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.parquet")}}, "doc_to_visual": "image",
        "target_delimiter": "",
    }  # fmt: skip
    if kind == "generation":
        task |= {
            "output_type": "generate_until", "doc_to_target": "{{answer}}",
            "generation_kwargs": {"max_new_tokens": new_tokens, "temperature": 0, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }  # fmt: skip
    else:
        task |= {
            "output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "right",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }  # fmt: skip
    (folder / "measured.yaml").write_text(json.dumps(task))  # which is YAML, too


def lmms_side(folder: Path, model: str, kind: str) -> None:
    """What runs in lmms-eval's environment: its own loop, timed where its model answers."""
    from lmms_eval import evaluator
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager

    unwrap = evaluator.unwrap_generation_output
    evaluator.unwrap_generation_output = lambda given: (given, None) if isinstance(given, tuple) else unwrap(given)
    writes = kind == "generation"
    manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False, model_name="llava_hf")
    # Its newer class for what is written, which likelihoods are not asked of.
    made = get_model("llava_hf", force_simple=not writes).create_from_arg_string(
        f"pretrained={model},dtype=float32,device_map=cpu", {"batch_size": 1, "device": "cpu"}
    )
    seconds: list[float] = []
    name = "generate_until" if writes else "loglikelihood"
    setattr(made, name, _timed(getattr(made, name), seconds))
    said = evaluator.simple_evaluate(model=made, tasks=["measured"], task_manager=manager, bootstrap_iters=0)
    right = said["results"]["measured"]["exact_match,none" if writes else "acc,none"]
    samples = sorted(said["samples"]["measured"], key=lambda sample: sample["doc_id"])
    if writes:
        answers = [sample["filtered_resps"][0].strip() for sample in samples]
    else:
        answers = [sample["doc"]["choices"][int(np.argmin([loss for loss, _ in sample["filtered_resps"]]))]
                   for sample in samples]  # fmt: skip
    done = {"seconds": sum(seconds), "answers": answers, "right": right}
    (folder / "done.json").write_text(json.dumps(done))


def _timed(method: Callable[[Any], Any], seconds: list[float]) -> Callable[[Any], Any]:
    def timed(requests: Any) -> Any:
        method(requests[:_WARM])
        began = time.perf_counter()
        answers = method(requests)
        seconds.append(time.perf_counter() - began)
        return answers

    return timed


def measure(asked: Asked, kinds: Sequence[str], folder: Path, rounds: int, new_tokens: int, python: str) -> None:
    """Both sides in turns; prints medians."""
    count = len(asked.rows)
    print(f"{asked.name}: {count} questions on {len({row['image'] for row in asked.rows})} pictures", flush=True)
    for kind in kinds:
        pairs = []
        for number in range(rounds):
            other = theirs(asked, kind, folder / f"lmms-{kind}-{number}", new_tokens, python)
            pairs.append((ours(asked, kind, folder / f"ours-{kind}-{number}", new_tokens), other))
        ratios = [other.seconds / our.seconds for our, other in pairs]
        rates = [count / statistics.median(one.seconds for one in side) for side in zip(*pairs, strict=True)]
        our, other = pairs[-1]
        same = sum(a == b for a, b in zip(our.answers, other.answers, strict=True))
        print(
            f"  {kind:10}  vig eval {rates[0]:.2f} questions/s, lmms-eval {rates[1]:.2f}: "
            f"{statistics.median(ratios):.2f} times ({', '.join(f'{ratio:.2f}' for ratio in ratios)}); the same answer "
            f"to {same} of {count}, right {our.right:.3f} and {other.right:.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", "shape", "all"), default="all")
    parser.add_argument("--kind", choices=(*KINDS, "all"), default="all")
    parser.add_argument("--questions", type=int, help="by default 256 of the demo model, 24 of the larger one")
    parser.add_argument("--per-image", type=int, default=1, help="questions that share a picture; POPE has 6")
    parser.add_argument("--layers", type=int, default=4, help="of the larger model")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores(), help="of torch, on both sides; by default one a core")
    parser.add_argument("--lmms-environment", help="by default in the user's cache")
    parser.add_argument("--lmms-side", nargs=3, metavar=("FOLDER", "MODEL", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lmms_side:
        folder, model, kind = options.lmms_side
        lmms_side(Path(folder), model, kind)
        return
    from vig_ray.evaluation.lmms.environment import python_of

    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the other side
    torch.set_num_threads(options.threads)
    python = python_of(options.lmms_environment)
    kinds = list(KINDS) if options.kind == "all" else [options.kind]
    for name in ("demo", "shape") if options.model == "all" else (options.model,):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
            if name == "demo":
                asked = of_demo(folder, options.questions or 256, options.per_image)
            else:
                asked = of_shape(folder, options.questions or 24, options.per_image, options.layers)
            measure(asked, kinds, folder, options.rounds, options.new_tokens, python)


if __name__ == "__main__":
    main()
