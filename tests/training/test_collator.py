"""Batches for other trainers against what each family's own processor gives, and the loss of the model on both."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from tests.training.written import llava
from vig_ray.demo import CHECKPOINT, world
from vig_ray.model.load import load_formatter, load_model
from vig_ray.training.collator import ActiveTokensCollator


def processor_of(checkpoint: str) -> Any:
    """The checkpoint's own processor, padding on the right as one does in training."""
    formatter = load_formatter(checkpoint)
    processor = getattr(formatter, "processor", None)
    if processor is None:  # LLaVA-1.5's images are resized by Pillow, as in LLaVA
        processor = AutoProcessor.from_pretrained(checkpoint)
        processor.image_processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    processor.tokenizer.padding_side = "right"
    return processor


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """As `vig export-data --format messages` writes them: two images of different shapes, two images in a row, none."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, size in enumerate([(120, 80), (70, 150), (64, 64)]):
        paths.append(str(folder / f"{number}.png"))
        world.draw(world.random_scene(random.Random(number))).resize(size).save(paths[-1])

    def row(number: int, images: list[str], question: str, answer: str) -> dict[str, Any]:
        parts: list[dict[str, str]] = [{"type": "image"} for _ in images]
        return {
            "sample_key": f"made/{number}",
            "images": images,
            "messages": [
                {"role": "user", "content": [*parts, {"type": "text", "text": question}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ],
        }

    return [
        row(0, paths[:1], "What is on the left?", "A red circle on the left and a blue square on the right."),
        row(1, paths[1:2], "Is there a dot?", "No."),
        row(2, paths[1:], "Which is larger?", "The first one."),
        row(3, [], "Where do fish live?", "Fish live in water."),
    ]


def processed(processor: Any, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The batch as the processor's documentation has it: `apply_chat_template` on messages that hold their images."""
    conversations = []
    for row in rows:
        pictures = iter(row["images"])
        user, assistant = row["messages"]
        parts = [
            {"type": "image", "image": Image.open(next(pictures))} if part["type"] == "image" else part
            for part in user["content"]
        ]
        conversations.append([{"role": "user", "content": parts}, assistant])
    return dict(
        processor.apply_chat_template(
            conversations, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
        )
    )


@pytest.mark.parametrize("which", [slice(None), slice(3, 4)], ids=["with images", "text only"])
@pytest.mark.parametrize("family", ["llava", "qwen", "gemma"])
def test_a_batch_is_what_the_processor_gives(
    family: str, which: slice, rows: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    checkpoint: str = CHECKPOINT if family == "llava" else request.getfixturevalue(f"{family}_checkpoint")
    processor = processor_of(checkpoint)
    expected = processed(processor, rows[which])
    model = load_model(checkpoint, dtype="float32", device="cpu")
    is_image = expected["input_ids"] == model.config.image_token_id
    for name in expected.keys() & {"mm_token_type_ids", "token_type_ids"}:
        assert torch.equal(expected[name], is_image.long())
    if family == "llava":  # tokens are LLaVA's own, which its processor's differ from; the rest is the processor's
        expected |= llava_tokens(processor.tokenizer, rows[which], model.config.image_token_id)
    batch = ActiveTokensCollator(checkpoint)(rows[which])
    labels = batch.pop("labels")
    with torch.no_grad():
        ours, theirs = (float(model(**inputs, labels=labels, use_cache=False).loss) for inputs in (batch, expected))
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert batch.keys() == expected.keys()
    for name, tensor in expected.items():
        assert batch[name].dtype == tensor.dtype, name
        assert batch[name].shape == tensor.shape, name
        assert torch.allclose(batch[name].double(), tensor.double(), atol=1e-5), name


def llava_tokens(tokenizer: Any, rows: list[dict[str, Any]], image_token: int) -> dict[str, torch.Tensor]:
    """Ids and mask of a batch by LLaVA's rules."""
    prompts = []
    for row in rows:
        user, assistant = ("".join(part.get("text", "<image>") for part in m["content"]) for m in row["messages"])
        turns = [("user", user), ("assistant", assistant)]
        prompts.append(llava(tokenizer, turns, image_token=image_token, features=16).ids)
    return dict(tokenizer.pad({"input_ids": prompts}, return_tensors="pt"))


def test_labels_are_the_answers_with_their_end_of_turn(rows: list[dict[str, Any]], qwen_checkpoint: str) -> None:
    batch = ActiveTokensCollator(qwen_checkpoint)(rows)
    tokenizer = processor_of(qwen_checkpoint).tokenizer
    for row, labels, ids in zip(rows, batch["labels"], batch["input_ids"], strict=True):
        answer = row["messages"][1]["content"][0]["text"]
        assert tokenizer.decode(labels[labels != -100]) == f"{answer}<|im_end|>"
        assert torch.equal(labels[labels != -100], ids[labels != -100])


def qwen_end(checkpoint: str) -> int:
    return int(processor_of(checkpoint).tokenizer.convert_tokens_to_ids("<|im_end|>"))


def test_workers_that_are_started_anew_get_one_like_it(rows: list[dict[str, Any]], qwen_checkpoint: str) -> None:
    """A DataLoader pickles it where its processes are spawned."""
    collator = ActiveTokensCollator(qwen_checkpoint, end_of_turn="")
    expected = collator(rows)
    assert qwen_end(qwen_checkpoint) not in expected["labels"]
    batch = pickle.loads(pickle.dumps(collator))(rows)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
