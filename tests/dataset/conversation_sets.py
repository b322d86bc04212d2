"""Rows of public sets of conversations, each with the sample that it is."""

from __future__ import annotations

from tests.dataset.sets import ONE, TWO, Expected, Set, asked, embedded, from_value, kept
from vig_ray.dataset.schema import Image

_RATINGS = {
    f"{name}_{kind}": [5, 4] if kind == "ratings" else 4
    for name in ("relevance", "image_correspondence", "visual_dependency", "formatting")
    for kind in ("ratings", "min")
}
_PADDING = {"content": None, "from": None, "role": None, "value": None}

CONVERSATIONS: dict[str, Set] = {
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
}
