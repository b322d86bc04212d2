"""Rows of every format, in every variant, with the canonical samples that they are, written by hand."""

from __future__ import annotations

import base64
from typing import Any

from vig_ray.dataset.schema import Image

A_BYTES = b"\x89PNG not really"
A_BASE64 = base64.b64encode(A_BYTES).decode()
DATA_URI = f"data:image/png;base64,{A_BASE64}"

USER = ("user", "<image>\nWhat?")
ANSWER = ("assistant", "A bus.")
JPG = Image(uri="/data/coco/1.jpg")
FROM = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A bus."}]
ROLE = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A bus."}]
REPLY = {"role": "assistant", "content": "A bus."}


def parts(*content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}, REPLY]


TEXT = {"type": "text", "text": "\nWhat?"}

# row, conversation, images, id, source
GOOD: dict[str, tuple[dict[str, Any], list[tuple[str, str]], list[Image], str | None, str | None]] = {
    "llava": (
        {"id": "7", "image": "coco/1.jpg", "conversations": FROM},
        [USER, ANSWER],
        [JPG],
        "7",
        "coco",
    ),
    "llava, a list of images": (
        {
            "id": 7,
            "image": ["vg/a.jpg", "coco/1.jpg"],
            "conversations": [{"from": "human", "value": "<image><image>?"}, FROM[1]],
        },
        [("user", "<image><image>?"), ANSWER],
        [Image(uri="/data/vg/a.jpg"), JPG],
        "7",
        "vg",
    ),
    "llava, text only": (
        {"id": "t", "conversations": [{"from": "human", "value": "Why?"}, FROM[1]]},
        [("user", "Why?"), ANSWER],
        [],
        "t",
        None,
    ),
    "llava, image null": (
        {"image": None, "conversations": [{"from": "human", "value": "Why?"}, FROM[1]]},
        [("user", "Why?"), ANSWER],
        [],
        None,
        None,
    ),
    "llava, image empty": (
        {"image": "", "images": [], "conversations": [{"from": "human", "value": "Why?"}, FROM[1]]},
        [("user", "Why?"), ANSWER],
        [],
        None,
        None,
    ),
    "llava, the mark stays where it is": (
        {"image": "1.jpg", "conversations": [{"from": "human", "value": "  What? <image> \n"}, FROM[1]]},
        [("user", "  What? <image> \n"), ANSWER],
        [Image(uri="/data/1.jpg")],
        None,
        None,
    ),
    "sharegpt, other role names and a leading answer": (
        {
            "images": ["coco/1.jpg"],
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "assistant", "value": "Hello."},
                {"from": "user", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "A bus."},
            ],
        },
        [("system", "Be brief."), ("assistant", "Hello."), USER, ANSWER],
        [JPG],
        None,
        "coco",
    ),
    "llama-factory, conversations of role and content": (
        {"conversations": ROLE, "images": ["coco/1.jpg"], "system": "Be brief."},
        [("system", "Be brief."), USER, ANSWER],
        [JPG],
        None,
        "coco",
    ),
    "llama-factory, messages of from and value": (
        {"messages": FROM, "images": ["coco/1.jpg"]},
        [USER, ANSWER],
        [JPG],
        None,
        "coco",
    ),
    "llama-factory, messages of role and content": (
        {"messages": ROLE, "images": ["coco/1.jpg"], "system": ""},
        [USER, ANSWER],
        [JPG],
        None,
        "coco",
    ),
    "ms-swift, path struct": (
        {"messages": ROLE, "images": [{"path": "coco/1.jpg"}]},
        [USER, ANSWER],
        [JPG],
        None,
        "coco",
    ),
    "ms-swift, base64 in bytes": (
        {"messages": ROLE, "images": [{"bytes": A_BASE64}]},
        [USER, ANSWER],
        [Image(bytes=A_BYTES)],
        None,
        None,
    ),
    "hugging face, struct of bytes and path": (
        {"messages": ROLE, "image": {"bytes": A_BYTES, "path": "1.jpg"}},
        [USER, ANSWER],
        [Image(bytes=A_BYTES)],
        None,
        None,
    ),
    "hugging face, struct of a path alone": (
        {"messages": ROLE, "images": [{"bytes": None, "path": "coco/1.jpg"}]},
        [USER, ANSWER],
        [JPG],
        None,
        "coco",
    ),
    "raw bytes": ({"messages": ROLE, "image": A_BYTES}, [USER, ANSWER], [Image(bytes=A_BYTES)], None, None),
    "data URI": ({"messages": ROLE, "image": DATA_URI}, [USER, ANSWER], [Image(bytes=A_BYTES)], None, None),
    "data URI, percent-encoded": (
        {"messages": ROLE, "image": "data:,a%00b"},
        [USER, ANSWER],
        [Image(bytes=b"a\0b")],
        None,
        None,
    ),
    "trl, parts, image of the row": (
        {"messages": parts({"type": "image"}, TEXT), "images": ["coco/1.jpg"]},
        [USER, ANSWER],
        [JPG],
        None,
        "coco",
    ),
    "trl, parts in the middle, text joined with nothing between": (
        {
            "messages": parts(
                {"type": "text", "text": "Compare "},
                {"type": "image"},
                {"type": "text", "text": " with "},
                {"type": "text", "text": "this: "},
                {"type": "image"},
            ),
            "images": ["a/1.jpg", "b/2.jpg"],
        },
        [("user", "Compare <image> with this: <image>"), ANSWER],
        [Image(uri="/data/a/1.jpg"), Image(uri="/data/b/2.jpg")],
        None,
        "a",
    ),
    "hugging face, parts with every key, most null": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "text": None, "index": 0},
                        {"type": "text", "text": "\nWhat?", "index": None},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "A bus.", "index": None}]},
            ],
            "images": [{"bytes": A_BYTES, "path": None}],
            "conversations": None,
            "source": "mix",
        },
        [USER, ANSWER],
        [Image(bytes=A_BYTES)],
        None,
        "mix",
    ),
    "part with image": (
        {"messages": parts({"type": "image", "image": "coco/1.jpg"}, TEXT)},
        [USER, ANSWER],
        [JPG],
        None,
        "coco",
    ),
    "part with url": (
        {"messages": parts({"type": "image", "url": "https://x.org/1.jpg"}, TEXT)},
        [USER, ANSWER],
        [Image(uri="https://x.org/1.jpg")],
        None,
        None,
    ),
    "part with path": (
        {"messages": parts({"type": "image", "path": "coco/1.jpg"}, TEXT)},
        [USER, ANSWER],
        [JPG],
        None,
        "coco",
    ),
    "part with bytes": (
        {"messages": parts({"type": "image", "bytes": A_BYTES}, TEXT)},
        [USER, ANSWER],
        [Image(bytes=A_BYTES)],
        None,
        None,
    ),
    "part with base64": (
        {"messages": parts({"type": "image", "base64": A_BASE64[:8] + "\n" + A_BASE64[8:]}, TEXT)},
        [USER, ANSWER],
        [Image(bytes=A_BYTES)],
        None,
        None,
    ),
    "part with image_url": (
        {"messages": parts({"type": "image_url", "image_url": {"url": DATA_URI, "detail": "low"}}, TEXT)},
        [USER, ANSWER],
        [Image(bytes=A_BYTES)],
        None,
        None,
    ),
    "own image and the row's, in the order of their marks": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "image", "path": "own.jpg"}]},
                REPLY,
                {"role": "user", "content": "and <image>?"},
                REPLY,
            ],
            "images": ["first.jpg", "last.jpg"],
        },
        [("user", "<image><image>"), ANSWER, ("user", "and <image>?"), ANSWER],
        [Image(uri="/data/first.jpg"), Image(uri="/data/own.jpg"), Image(uri="/data/last.jpg")],
        None,
        None,
    ),
    "llava-onevision-1.5, turns of two shapes": (
        {"conversations": [FROM[0], ROLE[1]], "image": "coco/1.jpg"},
        [USER, ANSWER],
        [JPG],
        None,
        "coco",
    ),
    "turns with nulls under the other shape's keys": (
        {
            "conversations": [
                {**FROM[0], "role": None, "content": None},
                {"from": None, "value": None, **ROLE[1]},
            ],
            "image": "coco/1.jpg",
        },
        [USER, ANSWER],
        [JPG],
        None,
        "coco",
    ),
    "from with content": (
        {
            "conversations": [{"from": "human", "content": "<image>\nWhat?"}, {"role": "assistant", "value": "A bus."}],
            "image": "coco/1.jpg",
        },
        [USER, ANSWER],
        [JPG],
        None,
        "coco",
    ),
    "turns as an object of lists": (
        {"messages": {"role": ["user", "assistant"], "content": ["<image>\nWhat?", "A bus."]}, "image": "coco/1.jpg"},
        [USER, ANSWER],
        [JPG],
        None,
        "coco",
    ),
    "trl, prompt and completion": (
        {"prompt": [ROLE[0]], "completion": [ROLE[1]], "image": "coco/1.jpg", "dataset": "vqa"},
        [USER, ANSWER],
        [JPG],
        None,
        "vqa",
    ),
    "data_source, bytes, no path": (
        {"messages": ROLE, "image": A_BYTES, "data_source": "gqa", "source": 3},
        [USER, ANSWER],
        [Image(bytes=A_BYTES)],
        None,
        "gqa",
    ),
}
