"""Every row format, in every variant, against canonical samples written by hand."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dataset.good_rows import FROM, GOOD, ROLE, TEXT, parts
from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.rows import Row, to_sample
from vig_ray.dataset.schema import RowError

FOLDER = ImageFolder("/data")


@pytest.mark.parametrize("case", GOOD)
def test_canonical_sample(case: str) -> None:
    row, conversation, images, identifier, source = GOOD[case]
    sample, marked = to_sample(Row(0, row), FOLDER)
    assert not marked
    assert list(sample.conversation) == conversation
    assert list(sample.images) == images
    assert (sample.id, sample.source) == (identifier, source)


def turns(*values: tuple[Any, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": name, "value": value} for name, value in values]}


Q, A = ("human", "Why?"), ("gpt", "So.")

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no layout": ({"question": "Why?", "answer": "So."}, "UnknownFormat: .*'question', 'answer'.*lacks an image"),
    "nothing": ({}, "UnknownFormat: .*none"),
    "prompt without completion": ({"prompt": [ROLE[0]]}, "UnknownFormat"),
    "prompt a string": ({"prompt": "Why?", "completion": "So."}, "BadConversation: 'prompt' is a string"),
    "two conversations": ({"messages": ROLE, "conversations": FROM}, "UnknownFormat: both"),
    "conversation null": ({"conversations": None}, "UnknownFormat"),
    "conversation a string": ({"conversations": "hello"}, "BadConversation: 'conversations' is a string"),
    "conversation an object": ({"messages": {"role": "user"}}, "BadConversation: 'messages' is an object"),
    "conversation empty": ({"conversations": []}, "NoAnswer"),
    "turn a string": ({"conversations": ["hello"]}, "BadConversation: turn 0 .* is a string"),
    "turn null": ({"messages": [ROLE[0], None]}, "BadConversation: turn 1 .* is null"),
    "turn without a role": ({"messages": [{"content": "x"}]}, "BadConversation: turn 0 has neither"),
    "a turn of two shapes": ({"conversations": [{**FROM[0], **ROLE[0]}]}, "BadConversation: turn 0 has both"),
    "unknown role": (turns(Q, ("bot", "So.")), "BadConversation: turn 1: unknown role 'bot'"),
    "role not a string": (turns(Q, (3, "So.")), "BadConversation: turn 1: unknown role a number"),
    "role unhashable": ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown role a list"),
    "text null": (turns(Q, ("gpt", None)), "BadConversation: turn 1: 'value' is null"),
    "text a number": (turns(Q, ("gpt", 4)), "BadConversation: turn 1: 'value' is a number"),
    "content null": ({"messages": [ROLE[0], {"role": "assistant", "content": None}]}, "turn 1: 'content' is null"),
    "part a string": ({"messages": [{"role": "user", "content": ["x"]}]}, "turn 0: part 0 of 'content' is a string"),
    "part of unknown type": ({"messages": parts({"type": "video"})}, "turn 0: a part of type 'video'"),
    "part without type": ({"messages": parts({"text": "x"})}, "turn 0: a part of type null"),
    "part without text": ({"messages": parts({"type": "text"})}, "turn 0: a part's 'text' is null"),
    "no answer": (turns(Q), "NoAnswer: no assistant turn"),
    "mark without an image": (turns(("human", "<image>?"), A), "ImageCount: 1 <image> .*, 0 images"),
    "marks in two turns, one image": (
        {**turns(("human", "<image>"), A, ("human", "<image>"), A), "image": "1.jpg"},
        "ImageCount: 2 <image> .*, 1 images",
    ),
    "images without a mark or a question": (
        {"conversations": [FROM[1]], "images": ["1.jpg", "2.jpg"]},
        "ImageCount: 0 <image> .*, 2 images",
    ),
    "part without its image": ({"messages": parts({"type": "image"}, TEXT)}, "ImageCount: 1 <image> .*, 0 images"),
    "more images than parts": ({"messages": parts({"type": "image"}), "images": ["1", "2"]}, "1 <image> .*, 2 images"),
    "both image keys": ({**turns(Q, A), "image": "a.jpg", "images": ["b.jpg"]}, "BadImage: .*both"),
    "image a number": ({"messages": ROLE, "image": 5}, "BadImage: an image is a number"),
    "image of nothing": ({"messages": ROLE, "image": {"bytes": None, "path": None}}, "BadImage: an image object"),
    "image of 0 bytes": ({"messages": ROLE, "image": b""}, "BadImage: an image of 0 bytes"),
    "an empty path": ({"messages": ROLE, "images": [""]}, "BadImage: an empty string"),
    "bad base64": ({"messages": ROLE, "images": [{"bytes": "!!!!"}]}, "BadImage: not base64"),
    "bad data URI": ({"messages": ROLE, "image": "data:image/png"}, "BadImage: a data: URI without a comma"),
    "turns that are no JSON": ({"messages": "[{"}, "BadConversation: 'messages' is a string, and not JSON"),
    "turns that are JSON of an object": ({"messages": '{"role": "user"}'}, "BadConversation: 'messages' is an object"),
    "turns as an object of unequal lists": (
        {"messages": {"role": ["user"], "content": ["a", "b"]}},
        "BadConversation: 'messages' is an object of lists of different lengths: 1 'role', 2 'content'",
    ),
    "system twice": (
        {"system": "Be brief.", "messages": [{"role": "system", "content": "Be long."}, *ROLE], "image": "1.jpg"},
        "BadConversation: a system prompt both",
    ),
    "system not a string": ({"system": ["x"], **turns(Q, A)}, "BadConversation: 'system' is a list"),
    "half a surrogate pair": (turns(Q, ("gpt", "So \ud800.")), "UnicodeEncodeError: turn 1"),
    "half a surrogate pair in a path": ({"messages": ROLE, "image": "\udc80.jpg"}, "UnicodeEncodeError: image 0"),
    "half a surrogate pair in the id": ({"id": "\ud800", **turns(Q, A)}, "UnicodeEncodeError: id"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_row(case: str) -> None:
    row, message = BAD[case]
    with pytest.raises(RowError, match=message) as caught:
        to_sample(Row(0, row), FOLDER)
    assert str(caught.value).startswith(caught.value.kind + ": ")
    str(caught.value).encode()  # the message itself can be stored


def test_an_image_nested_without_end_is_an_error_row() -> None:
    image: Any = "1.jpg"
    for _ in range(900):
        image = {"image": image}
    with pytest.raises(RowError, match="BadImage"):
        to_sample(Row(0, {"messages": ROLE, "image": image}), FOLDER)


@pytest.mark.parametrize("bad", [case for case in BAD if "bytes" not in case])
def test_a_bad_row_leaves_its_neighbours_alone(bad: str, bench: Any, make_row: Any) -> None:
    data = bench.write("d.json", [make_row(0), {"id": "bad", **BAD[bad][0]}, make_row(2)])
    rows = bench.load(data, order="as-is")
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert rows[1]["images"] == rows[1]["conversation"] == []
    assert rows[1]["id"] == ("bad" if "id" not in BAD[bad][0] else None)
    assert [row["sample_key"] for row in rows] == ["d/0000000000", "d/0000000001", "d/0000000002"]


# Any text that UTF-8 can hold, marks taken out so that the test knows how many there are.
_TEXT = st.text(st.characters(exclude_categories=["Cs"])).map(lambda text: text.replace("<image>", ""))
_ANSWER = _TEXT.filter(lambda text: text.strip())
_NAME = st.text("abc/.é x%#?", min_size=1).map(lambda name: f"d/{name.replace('..', '')}f")


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[tuple[str, str]], list[str]]:
    """A conversation and its images' paths, a mark somewhere for each."""
    names = draw(st.lists(_NAME, max_size=3))
    exchanges = draw(st.lists(st.tuples(_TEXT, _ANSWER), min_size=1, max_size=3))
    questions = [question for question, _ in exchanges]
    for _ in names:
        at = draw(st.integers(0, len(questions) - 1))
        cut = draw(st.integers(0, len(questions[at])))
        # A mark set inside another would break it.
        if "<image>" in questions[at]:
            cut = 0
        questions[at] = questions[at][:cut] + "<image>" + questions[at][cut:]
    flat = [turn for question, (_, answer) in zip(questions, exchanges, strict=True) for turn in (question, answer)]
    roles = ["user", "assistant"] * len(exchanges)
    return list(zip(roles, flat, strict=True)), names


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    given_rows=st.lists(conversations(), min_size=1, max_size=4),
    kind=st.sampled_from(["json", "ascii", "jsonl", "parquet", "parts"]),
)
def test_any_conversation_comes_out_as_it_went_in(
    given_rows: list[tuple[list[tuple[str, str]], list[str]]], kind: str, bench: Any
) -> None:
    llava = [
        {
            "conversations": [
                {"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in turns
            ],
            "image": names or None,
        }
        for turns, names in given_rows
    ]
    path = bench.folder / f"d.{'jsonl' if kind == 'jsonl' else 'parquet' if kind == 'parquet' else 'json'}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in llava), encoding="utf-8")
    elif kind == "parquet":
        turn = pa.struct([("from", pa.string()), ("value", pa.string())])
        schema = pa.schema([("conversations", pa.list_(turn)), ("image", pa.list_(pa.string()))])
        pq.write_table(pa.Table.from_pylist(llava, schema=schema), path)
    elif kind == "parts":
        path.write_text(json.dumps([_as_parts(turns, names) for turns, names in given_rows]), encoding="utf-8")
    else:
        path.write_text(json.dumps(llava, ensure_ascii=kind == "ascii", indent=1), encoding="utf-8")

    rows = bench.load(path, overwrite=True, rows_per_file=2, order="as-is")
    assert [row["error"] for row in rows] == [None] * len(given_rows)
    for row, (expected, names) in zip(rows, given_rows, strict=True):
        assert [(turn["role"], turn["text"]) for turn in row["conversation"]] == expected
        assert len(row["images"]) == len(names)
        assert all(image["uri"].startswith(f"{bench.folder}/d/") for image in row["images"])


def _as_parts(turns: list[tuple[str, str]], names: list[str]) -> dict[str, Any]:
    """The same conversation with its marks as image parts."""
    messages = []
    for role, text in turns:
        content: list[dict[str, str]] = []
        for index, piece in enumerate(text.split("<image>")):
            content += [{"type": "image"}] * (index > 0)
            content += [{"type": "text", "text": piece}] * bool(piece)
        messages.append({"role": role, "content": content})
    return {"messages": messages, "images": names}
