"""Rows as `vig export-data` writes them, and the loss and gradients that their weights must give, written out plainly.

No code of the project has a part in what is `expected`: prompts are by LLaVA's rules (`tests.training.written`) or the
processor's own, answers are found by the marks around them, each sample has a forward pass of its own with full logits.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from tests.training.written import llava
from vig_ray.demo import world
from vig_ray.model.load import load_formatter
from vig_ray.selection.answer_tokens import answer_tokens
from vig_ray.selection.export_rows import FORMATS

Row = dict[str, Any]


def messages_rows(folder: Path) -> list[Row]:
    """Eight samples without weights: one image, two, none; one turn, two; answers of very different lengths."""
    paths = []
    for number, size in enumerate([(120, 80), (70, 150), (64, 64)]):
        paths.append(str(folder / f"{number}.png"))
        world.draw(world.random_scene(random.Random(number))).resize(size).save(paths[-1])
    long = "A red circle on the left and a blue square on the right, and a dot above the blue square."
    made: list[tuple[list[str], list[tuple[str, str]]]] = [
        (paths[:1], [("What is on the left?", long), ("Is there a dot?", "Yes.")]),
        (paths[1:2], [("Is there a dot?", "No.")]),
        (paths[1:], [("Which is larger?", "The first one.")]),
        ([], [("Where do fish live?", "Fish live in water.")]),
        (paths[2:], [("Describe it.", f"{long} {long}")]),
        (paths[:1], [("What color?", "Blue.")]),
        ([], [("What do cows drink?", "Water, and nothing else, all day long.")]),
        (paths[1:2], [("Left?", "A square."), ("Right?", "A triangle."), ("Dot?", "No dot at all.")]),
    ]
    rows = []
    for number, (images, turns) in enumerate(made):
        messages: list[dict[str, Any]] = []
        for index, (question, answer) in enumerate(turns):
            parts: list[dict[str, str]] = [{"type": "image"} for _ in images] if index == 0 else []
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        rows.append({"sample_key": f"made/{number}", "messages": messages, "images": images})
    return rows


@functools.cache
def processor_of(checkpoint: str) -> Any:
    """The checkpoint's own; LLaVA's images are resized by Pillow, as in LLaVA."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    if type(processor).__name__ == "LlavaProcessor":
        processor.image_processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    return processor


class Plain(NamedTuple):
    """A sample as its model takes it, one a batch; `answers`: the positions of its answer tokens, rising."""

    inputs: dict[str, torch.Tensor]
    answers: list[int]


def plain(checkpoint: str, row: Row) -> Plain:
    """By LLaVA's rules where the checkpoint is a LLaVA-1.5, else by the checkpoint's processor (ChatML)."""
    processor = processor_of(checkpoint)
    pictures = [Image.open(path).convert("RGB") for path in row["images"]]
    if type(processor).__name__ == "LlavaProcessor":
        image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        turns = [
            (message["role"], "".join(part.get("text", "<image>") for part in message["content"]))
            for message in row["messages"]
        ]
        ids, answers = llava(processor.tokenizer, turns, image_token=image_token, features=16)
        pixels = dict(processor.image_processor(images=pictures, return_tensors="pt")) if pictures else {}
        return Plain({"input_ids": torch.tensor([ids])} | pixels, answers)
    left = iter(pictures)
    conversation = [
        {
            "role": message["role"],
            "content": [
                part | ({"image": next(left)} if part["type"] == "image" else {}) for part in message["content"]
            ],
        }
        for message in row["messages"]
    ]
    inputs = dict(processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt"))
    ids = inputs["input_ids"][0].tolist()
    begin = processor.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    answers, place = [], 0
    while place < len(ids):
        if ids[place : place + len(begin)] == begin:
            first = place + len(begin)
            place = ids.index(end, first)
            answers += range(first, place + 1)
        place += 1
    return Plain(inputs, answers)


def weighted(rows: Sequence[Row], checkpoint: str, kind: str) -> list[Row]:
    """The rows with weights: "masks" of 0 and 1, of which one sample has no 1, or "real" ones, some of them 0."""
    rng = np.random.default_rng(5)
    found = []
    for number, row in enumerate(rows):
        count = len(plain(checkpoint, row).answers)
        weights = (rng.random(count) < 0.4).astype(np.float32)
        if kind == "real":
            weights *= rng.exponential(1.0, count).astype(np.float32)
        if number == 1:
            weights[:] = 0
        found.append(row | {"token_weights": weights.tolist()})
    return found


class Expected(NamedTuple):
    """The loss of a global batch, and the gradient of each parameter."""

    loss: float
    gradients: dict[str, torch.Tensor]


def expected(checkpoint: str, rows: Sequence[Row], normalisation: str = "tokens") -> Expected:
    """sum of w_t * -log q(a_t) over the active tokens of all rows, or the mean over samples of such means; in float64,
    as float32 rounds gradients of 50 by as much as a wrong loss could be off."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float64).train()
    whole = 0.0
    counts = [sum(weight != 0 for weight in row["token_weights"]) for row in rows]
    for row, count in zip(rows, counts, strict=True):
        share = sum(counts) if normalisation == "tokens" else count * sum(each > 0 for each in counts)
        inputs, answers = plain(checkpoint, row)
        if not count:
            continue
        logp = model(**inputs, use_cache=False).logits[0].log_softmax(-1)
        at, weights = torch.tensor(answers), torch.tensor(row["token_weights"])
        loss = -(weights * logp[at - 1, inputs["input_ids"][0, at]]).sum() / share
        loss.backward()
        whole += float(loss.detach())
    named = model.named_parameters()
    return Expected(whole, {name: parameter.grad for name, parameter in named if parameter.grad is not None})


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The greatest difference of two sets of gradients; what isn't in one of them is 0 there."""
    worst = 0.0
    for name in one.keys() | other.keys():
        like = one.get(name, other.get(name))
        assert like is not None
        nothing = torch.zeros_like(like)
        worst = max(worst, float((one.get(name, nothing) - other.get(name, nothing)).abs().max()))
    return worst


def sample_of(row: Row) -> dict[str, Any]:
    """A row of `messages` as a row of samples/, with its place in the training order."""
    conversation = [
        {
            "role": message["role"],
            "text": "".join(part.get("text", "<image>") for part in message["content"]),
        }
        for message in row["messages"]
    ]
    images = [{"uri": path, "bytes": None} for path in row["images"]]
    return {"sample_key": row["sample_key"], "conversation": conversation, "images": images, "position": 0}


def write(rows: Sequence[Row], name: Any, path: Path, checkpoint: str | None = None) -> Path:
    """The rows in a format of `vig export-data`, with their weights where the checkpoint is given."""
    formatter = load_formatter(checkpoint) if checkpoint else None
    with path.open("w") as file:
        for row in rows:
            sample, tokens = sample_of(row), None
            if formatter is not None:
                assert checkpoint is not None
                inputs, answers = plain(checkpoint, row)
                ids = inputs["input_ids"][0, answers].tolist()
                tokens = answer_tokens(sample, ids, row["token_weights"], formatter)
            file.write(json.dumps(FORMATS[name].row(sample, row["images"], tokens)) + "\n")
    return path
