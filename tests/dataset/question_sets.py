"""Rows of public sets of captions and of single questions, each with the sample that it is."""

from __future__ import annotations

from tests.dataset.sets import ONE, SHA, URL, Expected, Set, asked, embedded, kept, links
from vig_ray.dataset.schema import Image

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

QUESTIONS: dict[str, Set] = {
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
