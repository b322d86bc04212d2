"""`<image>` marks that rows don't have: where they are put, that they are counted, and that LLaVA's rows stay."""

from __future__ import annotations

from typing import Any

import pytest

from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.marks import put_marks
from vig_ray.dataset.rows import Row, to_sample
from vig_ray.dataset.schema import IMAGE_MARK, Image, RowError, Sample, Turn

FOLDER = ImageFolder("/data")


def sample(images: int, *turns: tuple[str, str]) -> Sample:
    return Sample(None, None, (Image(bytes=b"x"),) * images, tuple(Turn(*turn) for turn in turns))


def texts(found: Sample) -> list[str]:
    return [turn.text for turn in found.conversation]


def test_images_are_put_first_in_the_first_user_turn() -> None:
    told = sample(2, ("system", "S"), ("assistant", "Hi"), ("user", "Q?"), ("assistant", "A."), ("user", "R?"))
    found, marked = put_marks(told)
    assert marked
    assert texts(found) == ["S", "Hi", "<image>\n<image>\nQ?", "A.", "R?"]


@pytest.mark.parametrize(
    "told",
    [
        sample(0, ("user", "Q?"), ("assistant", "A.")),
        sample(1, ("user", "Q? <image>"), ("assistant", "A.")),
        sample(1, ("user", "Q?"), ("assistant", "<image> A.")),
        sample(2, ("user", "<image>Q?"), ("assistant", "A.")),
        sample(1, ("assistant", "A.")),
    ],
)
def test_all_others_stay(told: Sample) -> None:
    assert put_marks(told) == (told, False)


@pytest.mark.parametrize("question", ["<image>\nWhat?", "What?\n<image>", "Why?"])
def test_rows_of_llava_665k_stay_as_they_are(question: str) -> None:
    row: dict[str, Any] = {"id": "1", "conversations": [{"from": "human", "value": question}]}
    row["conversations"].append({"from": "gpt", "value": "So."})
    if IMAGE_MARK in question:
        row["image"] = "coco/1.jpg"
    found, marked = to_sample(Row(0, row), FOLDER)
    assert not marked
    assert texts(found) == [question, "So."]


@pytest.mark.parametrize(
    ("images", "turns"),
    [
        (0, [("user", "<image>?"), ("assistant", "A.")]),
        (2, [("user", "<image>?"), ("assistant", "A.")]),
        (2, [("user", "<image><image><image>?"), ("assistant", "A.")]),
        (1, [("user", "<image>?"), ("assistant", "A."), ("user", "<image>?"), ("assistant", "A.")]),
        (1, [("assistant", "A.")]),
    ],
)
def test_marks_that_do_not_go_with_the_images_are_an_error(images: int, turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": text} for role, text in turns]
    with pytest.raises(RowError, match="ImageCount"):
        to_sample(Row(0, {"messages": messages, "images": [b"x"] * images}), FOLDER)


def test_the_rows_are_counted_and_told(bench: Any) -> None:
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A bus."}]
    marked = [{**turns[0], "content": "<image>What?"}, turns[1]]
    rows = [{"messages": turns, "image": "1.jpg"}, {"messages": marked, "image": "1.jpg"}, {"messages": turns}]
    found = bench.load(bench.write("d.json", rows), order="as-is")
    assert [row["conversation"][0]["text"] for row in found] == ["<image>\nWhat?", "<image>What?", "What?"]
    assert bench.report.marked == 1
    assert "put first in the first user turn: 1 samples" in bench.report.text()


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(
    "turns",
    [
        [("user", "What?"), ("assistant", "A bus."), ("user", "Sure?"), ("assistant", "Yes.")],
        [("system", "Be brief."), ("user", "What?"), ("assistant", "A bus.")],
    ],
)
def test_trl_puts_them_in_the_same_place(images: int, turns: list[tuple[str, str]]) -> None:
    data_utils = pytest.importorskip("trl.data_utils", reason="TRL isn't installed")
    messages = [{"role": role, "content": text} for role, text in turns]
    prepared = data_utils.prepare_multimodal_messages(messages, images=[object()] * images)
    theirs = [
        (
            message["role"],
            "".join("<image>\n" if part["type"] == "image" else part["text"] for part in message["content"]),
        )
        for message in prepared
    ]
    found, _ = put_marks(sample(images, *turns))
    assert [(turn.role, turn.text) for turn in found.conversation] == theirs


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"video": "1.mp4"}, "Video"),
        ({"videos": ["1.mp4"]}, "Video"),
        ({"audio": {"bytes": b"x", "path": None}}, "Audio"),
        ({"audios": ["1.wav"]}, "Audio"),
        ({"messages": [{"role": "user", "content": "<video>?"}, {"role": "assistant", "content": "A."}]}, "Video"),
        ({"messages": [{"role": "user", "content": "<audio>?"}, {"role": "assistant", "content": "A."}]}, "Audio"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "Audio"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "Video"),
    ],
)
def test_videos_and_sounds_are_errors_that_say_so(row: dict[str, Any], kind: str) -> None:
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A bus."}]
    with pytest.raises(RowError, match=f"^{kind}: .*only images") as caught:
        to_sample(Row(0, {"messages": turns, **row}), FOLDER)
    assert caught.value.kind == kind


def test_no_video_is_no_error() -> None:
    turns = [{"role": "user", "content": "How is HTML's tag spelled?"}, {"role": "assistant", "content": "<video>"}]
    to_sample(Row(0, {"messages": turns, "video": None, "videos": [], "audio": ""}), FOLDER)
