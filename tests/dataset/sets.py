"""Rows of public sets, each with the sample that it is, worked out by hand; `cards/` has the sets' own columns.

A card is the head of the set's README on the hub, as far as it says which columns there are (`dataset_info`): the
`datasets` library makes the Arrow types of it and writes the files.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image

from vig_ray.dataset.schema import Image

Told = list[tuple[str, str]]


def picture(red: int) -> bytes:
    """A PNG of one pixel."""
    out = io.BytesIO()
    PIL.Image.new("RGB", (1, 1), (red, 0, 0)).save(out, "PNG")
    return out.getvalue()


ONE, TWO = picture(1), picture(2)
URL, SHA = "https://images.example.org/1.jpg", hashlib.sha256(ONE).hexdigest()


def kept(data: bytes) -> dict[str, Any]:
    """An image as `datasets.Image` keeps it."""
    return {"bytes": data, "path": None}


@dataclass(frozen=True)
class Expected:
    """What a row comes to; `error` is a pattern, and nothing else counts then."""

    conversation: Sequence[tuple[str, str]] = ()
    images: tuple[Image, ...] = ()
    id: str | None = None
    source: str | None = None
    marked: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Set:
    """Some rows of a set: as Parquet where it has a card, else as JSON."""

    card: str | None
    rows: list[tuple[dict[str, Any], Expected]]
    lines: bool = False  # JSON Lines


def asked(*told: str) -> Told:
    """User and assistant in turn."""
    return [("assistant" if index % 2 else "user", text) for index, text in enumerate(told)]


def embedded(*data: bytes) -> tuple[Image, ...]:
    return tuple(Image(bytes=each) for each in data)


def links(checksum: str | None = None) -> tuple[Image, ...]:
    return (Image(uri=URL, sha256=checksum),)


def from_value(*told: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if index % 2 else "human", "value": text} for index, text in enumerate(told)]


_RATINGS = {
    f"{name}_{kind}": [5, 4] if kind == "ratings" else 4
    for name in ("relevance", "image_correspondence", "visual_dependency", "formatting")
    for kind in ("ratings", "min")
}
_PADDING = {"content": None, "from": None, "role": None, "value": None}
_VQA = {"question_type": "what", "image_id": 9, "answer_type": "other", "question_id": 9001, "question": "What is it?"}
_ANSWERS = [
    {"answer": text, "answer_confidence": "yes", "answer_id": number}
    for number, text in enumerate(["bus", "red bus", "red bus", "van"], 1)
]
_TEXT_VQA = {
    "image_id": "0054",
    "question_tokens": ["what", "brand"],
    "image_width": 1,
    "image_height": 1,
    "flickr_original_url": "https://example.org/o.jpg",
    "flickr_300k_url": "https://example.org/s.jpg",
    "image_classes": ["Bus"],
    "set_name": "train",
    "ocr_tokens": ["ACME"],
}
_DOC_VQA = {
    "question_types": ["form"],
    "docId": 14,
    "ucsf_document_id": "xyz",
    "ucsf_document_page_no": "1",
    "data_split": "train",
}
_POINTS = {"image_url": URL, "image_sha256": SHA, "collection_method": "pointing"}

SETS: dict[str, Set] = {
    "The Cauldron": Set(
        "the_cauldron",
        [
            (
                {
                    "images": [kept(ONE)],
                    "texts": [
                        {"user": "What is it?", "assistant": "A bus.", "source": "AI2D"},
                        {"user": "And its colour?\n", "assistant": " Red.", "source": "AI2D"},
                    ],
                },
                Expected(
                    asked("<image>\nWhat is it?", "A bus.", "And its colour?\n", " Red."),
                    embedded(ONE),
                    source="AI2D",
                    marked=True,
                ),
            ),
            (
                {
                    "images": [kept(ONE), kept(TWO)],
                    "texts": [{"user": "What differs?", "assistant": "The red.", "source": "spot"}],
                },
                Expected(
                    asked("<image>\n<image>\nWhat differs?", "The red."), embedded(ONE, TWO), source="spot", marked=True
                ),
            ),
            (
                {
                    "images": [kept(ONE)],
                    "texts": [
                        {"user": "A?", "assistant": "B.", "source": "one"},
                        {"user": "C?", "assistant": "D.", "source": "other"},
                    ],
                },
                Expected(asked("<image>\nA?", "B.", "C?", "D."), embedded(ONE), marked=True),
            ),
            (
                {"images": [kept(ONE)], "texts": [{"user": "A?", "assistant": None, "source": "one"}]},
                Expected(error="BadConversation: pair 0: 'assistant' is null, not a string"),
            ),
            ({"images": [kept(ONE)], "texts": None}, Expected(error="BadConversation: 'texts' is null")),
        ],
    ),
    "FineVision": Set(
        "finevision",
        [
            (
                {
                    "images": [kept(ONE)],
                    "texts": [
                        {"user": "What is it?", "assistant": "A bus."},
                        {"user": "Which colour?", "assistant": "Red."},
                    ],
                    "source": "ai2d_merged",
                    **_RATINGS,
                },
                Expected(
                    asked("<image>\nWhat is it?", "A bus.", "Which colour?", "Red."),
                    embedded(ONE),
                    source="ai2d_merged",
                    marked=True,
                ),
            ),
            (
                {"images": [], "texts": [{"user": "1+1?", "assistant": "2"}], "source": "text_only", **_RATINGS},
                Expected(asked("1+1?", "2"), source="text_only"),
            ),
            (
                {
                    "images": [kept(TWO)],
                    "texts": [{"user": "What is <image>?", "assistant": "Red."}],
                    "source": "s",
                    **_RATINGS,
                },
                Expected(asked("What is <image>?", "Red."), embedded(TWO), source="s"),
            ),
        ],
    ),
    "LLaVA-NeXT": Set(
        "llava_next",
        [
            (
                {
                    "id": "000000033471",
                    "conversations": from_value("<image>\nWhat is it?", "A bus."),
                    "data_source": "sharegpt4v",
                    "image": kept(ONE),
                },
                Expected(asked("<image>\nWhat is it?", "A bus."), embedded(ONE), "000000033471", "sharegpt4v"),
            ),
            (
                {"id": "t", "conversations": from_value("Why?", "So."), "data_source": "sharegpt", "image": None},
                Expected(asked("Why?", "So."), id="t", source="sharegpt"),
            ),
        ],
    ),
    "LLaVA-OneVision": Set(
        "llava_onevision",
        [
            (
                {
                    "id": "identity_1",
                    "image": kept(ONE),
                    "conversations": from_value("<image>\nHow many?", "Two.", "Sure?", "Yes."),
                    "data_source": "CLEVR-Math(MathV360K)",
                },
                Expected(
                    asked("<image>\nHow many?", "Two.", "Sure?", "Yes."),
                    embedded(ONE),
                    "identity_1",
                    "CLEVR-Math(MathV360K)",
                ),
            ),
            (
                {"id": "2", "image": kept(TWO), "conversations": from_value("How?", "So."), "data_source": "x"},
                Expected(asked("<image>\nHow?", "So."), embedded(TWO), "2", "x", marked=True),
            ),
        ],
    ),
    "LLaVA-OneVision-1.5": Set(
        "llava_onevision_15",
        [
            (
                {
                    "id": "1",
                    "image": kept(ONE),
                    "conversations": [
                        {**_PADDING, "from": "human", "value": "<image>\nWhat?"},
                        {**_PADDING, "from": "gpt", "value": "A bus."},
                        {**_PADDING, "role": "user", "content": "Colour?"},
                        {**_PADDING, "role": "assistant", "content": "Red."},
                    ],
                    "data_source": "coco",
                },
                Expected(asked("<image>\nWhat?", "A bus.", "Colour?", "Red."), embedded(ONE), "1", "coco"),
            ),
            (
                {
                    "id": "2",
                    "image": kept(TWO),
                    "conversations": [
                        {**_PADDING, "role": "user", "content": "What?"},
                        {**_PADDING, "role": "assistant", "content": "A van."},
                    ],
                    "data_source": "coco",
                },
                Expected(asked("<image>\nWhat?", "A van."), embedded(TWO), "2", "coco", marked=True),
            ),
            (
                {"id": "3", "image": kept(TWO), "conversations": [_PADDING], "data_source": "coco"},
                Expected(error="BadConversation: turn 0 has neither 'from' with 'value' nor 'role' with 'content'"),
            ),
        ],
    ),
    "ShareGPT4V": Set(
        None,
        [
            (
                {
                    "id": "000000000009",
                    "image": "coco/train2017/000000000009.jpg",
                    "conversations": from_value("What do you see?\n<image>", "A meal."),
                },
                Expected(
                    asked("What do you see?\n<image>", "A meal."),
                    (Image(uri="/data/coco/train2017/000000000009.jpg"),),
                    "000000000009",
                    "coco",
                ),
            ),
        ],
    ),
    "MAmmoTH-VL": Set(
        None,
        [
            (
                {
                    "id": 17,
                    "image": "si_data/1.jpg",
                    "conversations": from_value("<image>\nSolve it.", "x = 2"),
                    "source": "math",
                },
                Expected(asked("<image>\nSolve it.", "x = 2"), (Image(uri="/data/si_data/1.jpg"),), "17", "math"),
            ),
            (
                {"id": 18, "image": ["a/1.jpg", "a/2.jpg"], "conversations": from_value("<image><image>\nA?", "B.")},
                Expected(
                    asked("<image><image>\nA?", "B."),
                    (Image(uri="/data/a/1.jpg"), Image(uri="/data/a/2.jpg")),
                    "18",
                    "a",
                ),
            ),
            (
                {"id": 19, "video": "v/1.mp4", "conversations": from_value("<image>\nWhat happens?", "It runs.")},
                Expected(error="Video: something under 'video'"),
            ),
        ],
    ),
    "Vision-Flan": Set(
        None,
        [
            (
                {
                    "id": "ADE20k+object+1",
                    "image": "images_191task_1k/1.jpg",
                    "conversations": from_value("Is there a bus?\n<image>", "yes"),
                    "task_name": "ADE20k",
                },
                Expected(
                    asked("Is there a bus?\n<image>", "yes"),
                    (Image(uri="/data/images_191task_1k/1.jpg"),),
                    "ADE20k+object+1",
                    "images_191task_1k",
                ),
            ),
        ],
    ),
    "PixMo-Cap": Set(
        "pixmo_cap",
        [
            (
                {"image_url": URL, "caption": "A red bus.", "transcripts": ["a bus", "it is red"]},
                Expected(asked("<image>\nDescribe the image.", "A red bus."), links(), marked=True),
            ),
        ],
    ),
    "PixMo-CapQA": Set(
        "pixmo_cap_qa",
        [
            (
                {
                    "image_url": URL,
                    "question": "[USER] What is it? [ASSISTANT]",
                    "answer": "A bus.",
                    "messages": ["What is it?", "A bus."],
                },
                Expected(asked("<image>\nWhat is it?", "A bus."), links(), marked=True),
            ),
            (
                {
                    "image_url": URL,
                    "question": "[USER]\nWhat is it?\nSay it.\n[ASSISTANT]\nA bus.\n[USER] Red?\n[ASSISTANT]",
                    "answer": "Yes.",
                    "messages": None,
                },
                Expected(asked("<image>\nWhat is it?\nSay it.", "A bus.", "Red?", "Yes."), links(), marked=True),
            ),
            (
                {"image_url": URL, "question": "[ASSISTANT] Hi [USER]", "answer": "Yes.", "messages": None},
                Expected(asked("<image>\n[ASSISTANT] Hi [USER]", "Yes."), links(), marked=True),
            ),
            (
                {"image_url": URL, "question": "[USER] Hi [USER]", "answer": "Yes.", "messages": None},
                Expected(error=r"BadConversation: 'question' has \[USER\]"),
            ),
            (
                {"image_url": URL, "question": "q", "answer": "a", "messages": ["q", "a", "more"]},
                Expected(error="BadConversation: 'messages' holds 3 texts"),
            ),
        ],
    ),
    "PixMo-Points": Set(
        "pixmo_points",
        [
            (
                {**_POINTS, "points": [{"x": 12.345, "y": 67.89}], "count": 1, "label": "Red Bus"},
                Expected(
                    asked(
                        "<image>\nPoint to the red bus in the image.",
                        '<point x="12.3" y="67.9" alt="red bus">red bus</point>',
                    ),
                    links(SHA),
                    marked=True,
                ),
            ),
            (
                # From left to right; 0.35 is 0.4, as numpy rounds it.
                {**_POINTS, "points": [{"x": 50.0, "y": 1.0}, {"x": 0.35, "y": 99.96}], "count": 2, "label": "wheel"},
                Expected(
                    asked(
                        "<image>\nPoint to the wheel in the image.",
                        '<points x1="0.4" y1="100.0" x2="50.0" y2="1.0" alt="wheel">wheel</points>',
                    ),
                    links(SHA),
                    marked=True,
                ),
            ),
            (
                {**_POINTS, "points": [], "count": 0, "label": "cat"},
                Expected(asked("<image>\nPoint to the cat in the image.", "There are none."), links(SHA), marked=True),
            ),
            (
                {**_POINTS, "points": [{"x": 312.0, "y": 4.0}], "count": 1, "label": "cat"},
                Expected(error="BadConversation: point 0: 'x' is 312.0, not in per cent"),
            ),
            (
                {**_POINTS, "image_sha256": "abc", "points": [], "count": 0, "label": "cat"},
                Expected(error="BadImage: 'image_sha256' is 'abc', not 64 hex"),
            ),
        ],
    ),
    "PixMo-AMA": Set(
        "pixmo_ask_model_anything",
        [
            (
                {"image_url": URL, "image_sha256": SHA.upper(), "question": "What is it?", "answer": "A bus."},
                Expected(asked("<image>\nWhat is it?", "A bus."), links(SHA), marked=True),
            ),
        ],
    ),
    "Nemotron-VLM": Set(
        None,
        [
            (
                {
                    "id": "7",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {
                                    "type": "image",
                                    "image": "path/to/image.png",
                                    "metadata": {"width": 1024, "height": 768, "format": "PNG", "mode": "RGB"},
                                },
                                {"type": "text", "text": "What is it?"},
                            ],
                        },
                        {"role": "assistant", "content": [{"type": "text", "text": "A bus."}]},
                    ],
                },
                Expected(asked("<image>What is it?", "A bus."), (Image(uri="/data/path/to/image.png"),), "7", "path"),
            ),
            (
                {
                    "id": "8",
                    "messages": [
                        {"role": "user", "content": [{"type": "video", "video": "v.mp4", "metadata": {}}]},
                        {"role": "assistant", "content": [{"type": "text", "text": "It runs."}]},
                    ],
                },
                Expected(error="Video: turn 0: a part of type 'video'"),
            ),
        ],
        lines=True,
    ),
    "Open M_3": Set(
        "open_m_3",
        [
            (
                {
                    "messages": {
                        "role": ["user", "assistant"],
                        "content": [
                            {"type": ["image", "text"], "text": [None, "What is it?"]},
                            {"type": ["text"], "text": ["A bus."]},
                        ],
                    },
                    "images": [kept(ONE)],
                    "source_dataset": "x",
                    "original_data": "{}",
                },
                Expected(asked("<image>What is it?", "A bus."), embedded(ONE)),
            ),
        ],
    ),
    "VQAv2": Set(
        "vqav2",
        [
            (
                {**_VQA, "multiple_choice_answer": "red bus", "answers": _ANSWERS, "image": kept(ONE)},
                Expected(asked("<image>\nWhat is it?", "red bus"), embedded(ONE), "9001", marked=True),
            ),
            (
                {**_VQA, "multiple_choice_answer": None, "answers": _ANSWERS, "image": kept(ONE)},
                Expected(asked("<image>\nWhat is it?", "red bus"), embedded(ONE), "9001", marked=True),
            ),
            (
                {**_VQA, "multiple_choice_answer": None, "answers": None, "image": kept(ONE)},
                Expected(error="UnknownFormat: .*which lacks 'answers'"),
            ),
        ],
    ),
    "TextVQA": Set(
        "textvqa",
        [
            (
                {
                    **_TEXT_VQA,
                    "question_id": 3,
                    "question": "what brand?",
                    "image": kept(ONE),
                    "answers": ["nokia", "acme", "acme", "nokia", "toshiba"],
                },
                Expected(asked("<image>\nwhat brand?", "nokia"), embedded(ONE), "3", marked=True),
            ),
            (
                {**_TEXT_VQA, "question_id": 4, "question": "what?", "image": kept(ONE), "answers": []},
                Expected(error="NoAnswer: 'answers' is an empty list"),
            ),
        ],
    ),
    "DocVQA": Set(
        "docvqa",
        [
            (
                {
                    **_DOC_VQA,
                    "questionId": "337",
                    "question": "When?",
                    "image": kept(ONE),
                    "answers": ["1/8/93", "1993"],
                },
                Expected(asked("<image>\nWhen?", "1/8/93"), embedded(ONE), "337", marked=True),
            ),
            (
                {**_DOC_VQA, "questionId": "338", "question": "When?", "image": kept(ONE), "answers": None},
                Expected(error="BadAnswer: 'answers' is null"),
            ),
        ],
    ),
    "ChartQA": Set(
        "chartqa",
        [
            (
                {"image": kept(ONE), "query": "How many?", "label": ["14"], "human_or_machine": 0},
                Expected(asked("<image>\nHow many?", "14"), embedded(ONE), marked=True),
            ),
        ],
    ),
    "ChartQA of lmms-lab": Set(
        "chartqa_lmms",
        [
            (
                {"type": "human_test", "question": "How many?", "answer": "14", "image": kept(ONE)},
                Expected(asked("<image>\nHow many?", "14"), embedded(ONE), marked=True),
            ),
        ],
    ),
    "ms-swift's query and response": Set(
        None,
        [
            (
                {
                    "query": "<image>What is it?",
                    "response": "A bus.",
                    "history": [["Hi", "Hello."]],
                    "system": "Be brief.",
                    "images": ["a/1.jpg"],
                },
                Expected(
                    [("system", "Be brief."), *asked("Hi", "Hello.", "<image>What is it?", "A bus.")],
                    (Image(uri="/data/a/1.jpg"),),
                    source="a",
                ),
            ),
            ({"query": "Why?", "response": "So."}, Expected(asked("Why?", "So."))),
            (
                {"query": "<video>What?", "response": "So.", "videos": ["a.mp4"]},
                Expected(error="Video: something under 'videos'"),
            ),
            ({"query": "<video>What?", "response": "So."}, Expected(error="Video: turn 0 has a <video> mark")),
            ({"query": "<audio>What?", "response": "So."}, Expected(error="Audio: turn 0 has a <audio> mark")),
        ],
        lines=True,
    ),
    "Alpaca's columns": Set(
        None,
        [
            (
                {
                    "instruction": "Describe it.",
                    "input": "<image>",
                    "output": "A bus.",
                    "images": ["a/1.jpg"],
                    "history": [],
                    "system": "",
                },
                Expected(asked("Describe it.\n<image>", "A bus."), (Image(uri="/data/a/1.jpg"),), source="a"),
            ),
            (
                {"instruction": "Why?", "input": "", "output": "So.", "history": [["A?", "B."]]},
                Expected(asked("A?", "B.", "Why?", "So.")),
            ),
            (
                {"instruction": "Why?", "output": 3},
                Expected(error="BadConversation: 'output' is a number, not a string"),
            ),
        ],
    ),
    "turns as JSON": Set(
        None,
        [
            (
                {
                    "id": "1",
                    "image": "a/1.jpg",
                    "conversations": '[{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "A bus."}]',
                },
                Expected(asked("<image>?", "A bus."), (Image(uri="/data/a/1.jpg"),), "1", "a"),
            ),
            (
                {"id": "2", "conversations": "[{"},
                Expected(error="BadConversation: 'conversations' is a string, and not JSON"),
            ),
        ],
    ),
}
