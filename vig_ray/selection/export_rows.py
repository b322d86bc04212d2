"""A sample in the formats of other trainers, and what each of them can say of token weights.

messages      TRL, transformers: messages of text and image parts, images; weights a token, active characters
swift         ms-swift: messages whose answers are token ids with a loss scale each
llava         LLaVA: id, image, conversations; weights and characters in keys that LLaVA's code doesn't read
llamafactory  LLaMA-Factory: ShareGPT's conversations with <image>, images; it has no weights
sharegpt      the same, for others that read it
axolotl       Axolotl: messages whose image parts name their file; it has no weights with images
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from vig_ray.dataset.schema import IMAGE_MARK
from vig_ray.selection.answer_tokens import AnswerTokens

FormatName = Literal["axolotl", "llamafactory", "llava", "messages", "sharegpt", "swift"]
Row = Mapping[str, Any]

_SHAREGPT_ROLES = {"user": "human", "assistant": "gpt", "system": "system"}
_IMAGES = pa.field("images", pa.list_(pa.string()))
_KEY = pa.field("sample_key", pa.string(), nullable=False)
_KEPT = pa.field("kept", pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())])))
_TOKENS = [
    # the active tokens as characters of the answers: which assistant turn, first, past the last
    pa.field("active_spans", pa.list_(pa.struct([("turn", pa.int32()), ("start", pa.int32()), ("end", pa.int32())]))),
    # one entry an answer token, as in selection/
    pa.field("token_ids", pa.list_(pa.int32())),
    pa.field("token_weights", pa.list_(pa.float32())),
]


class Format(NamedTuple):
    """How a row is made of a row of samples/, the paths of its images, and its answer tokens where they have weights.

    `schema`: its columns, for Parquet; None: a JSON array. `weighted`: whether weights are in the file. `unread`: what
    becomes of those that are there, where the trainer doesn't read them. `leaves_out`: of which rows the trainer makes
    no sample.
    """

    row: Callable[[Row, Sequence[str], AnswerTokens | None], dict[str, Any]]
    schema: pa.Schema | None
    weighted: bool
    unread: str | None = None
    leaves_out: Callable[[Row], bool] | None = None


def kept(row: Row, *, as_pairs: bool) -> dict[str, Any]:
    """What the import kept of the dataset's own columns, {"kept": ...} or nothing; `as_pairs`: for a Parquet column."""
    pairs = row.get("kept")
    if not pairs:
        return {}
    return {"kept": pairs if as_pairs else {pair["name"]: json.loads(pair["value"]) for pair in pairs}}


def _sharegpt_turns(row: Row) -> list[dict[str, str]]:
    return [{"from": _SHAREGPT_ROLES[turn["role"]], "value": turn["text"]} for turn in row["conversation"]]


def _token_columns(tokens: AnswerTokens | None) -> dict[str, Any]:
    if tokens is None:
        return {}
    scored = tokens.scored
    return {
        "active_spans": tokens.spans(),
        "token_ids": tokens.ids[:scored],
        "token_weights": tokens.weights[:scored],
    }


def _llava(row: Row, paths: Sequence[str], tokens: AnswerTokens | None) -> dict[str, Any]:
    exported: dict[str, Any] = {"id": row["id"] if row["id"] is not None else row["sample_key"]}
    if paths:
        exported["image"] = paths[0] if len(paths) == 1 else list(paths)
    return exported | {"conversations": _sharegpt_turns(row)} | _token_columns(tokens)


def _sharegpt(row: Row, paths: Sequence[str], _: AnswerTokens | None) -> dict[str, Any]:
    return {"sample_key": row["sample_key"], "conversations": _sharegpt_turns(row), "images": list(paths)}


def _not_in_pairs(row: Row) -> bool:
    """Whether a conversation isn't, after its system turn, questions and answers in turn."""
    roles = [turn["role"] for turn in row["conversation"]]
    roles = roles[1:] if roles[0] == "system" else roles
    return roles != ["user", "assistant"] * (len(roles) // 2)


def _parts(text: str, image: Callable[[], dict[str, str]]) -> Iterator[dict[str, str]]:
    """A turn's text and images, as the parts of a message."""
    for index, piece in enumerate(text.split(IMAGE_MARK)):
        if index:
            yield image()
        if piece:
            yield {"type": "text", "text": piece}


def _messages(row: Row, paths: Sequence[str], tokens: AnswerTokens | None) -> dict[str, Any]:
    messages = [
        {"role": turn["role"], "content": list(_parts(turn["text"], lambda: {"type": "image"}))}
        for turn in row["conversation"]
    ]
    return {
        "sample_key": row["sample_key"],
        "messages": messages,
        "images": list(paths),
        "position": row["position"],
    } | _token_columns(tokens)


def _axolotl(row: Row, paths: Sequence[str], _: AnswerTokens | None) -> dict[str, Any]:
    left = iter(paths)
    messages = [
        {"role": turn["role"], "content": list(_parts(turn["text"], lambda: {"type": "image", "path": next(left)}))}
        for turn in row["conversation"]
    ]
    return {"sample_key": row["sample_key"], "messages": messages}


def _swift(row: Row, paths: Sequence[str], tokens: AnswerTokens | None) -> dict[str, Any]:
    """Answers as ms-swift takes them from rollouts: token ids, the end of turn among them, with a loss scale each.

    Messages are JSON in a string, which ms-swift reads: in a column of Arrow they couldn't be text and tokens alike.
    """
    answers = {} if tokens is None else {turn: (ids, weights) for turn, ids, weights in tokens.of_turns()}
    messages: list[dict[str, Any]] = []
    number = 0
    for turn in row["conversation"]:
        message: dict[str, Any] = {"role": turn["role"], "content": turn["text"]}
        if turn["role"] == "assistant":
            if number in answers:
                ids, weights = answers[number]
                message["content"] = {"token_ids": ids, "loss_scale": weights}
            elif tokens is not None:
                message["loss"] = False  # a turn of which nothing is trained
            number += 1
        messages.append(message)
    return {
        "sample_key": row["sample_key"],
        "messages": json.dumps(messages, ensure_ascii=False),
        "images": list(paths),
    }


def _list_of(**fields: pa.DataType) -> pa.DataType:
    return pa.list_(pa.struct(list(fields.items())))


_SHAREGPT = _list_of(**{"from": pa.string(), "value": pa.string()})
_SHAREGPT_SCHEMA = pa.schema([_KEY, ("conversations", _SHAREGPT), _IMAGES, _KEPT])
_CONTENT = _list_of(type=pa.string(), text=pa.string())
_MESSAGES_SCHEMA = pa.schema(
    [
        _KEY,
        ("messages", _list_of(role=pa.string(), content=_CONTENT)),
        _IMAGES,
        # the sample's place in the training order
        ("position", pa.int64()),
        *_TOKENS,
        _KEPT,
    ]
)
_WITH_PATH = _list_of(type=pa.string(), text=pa.string(), path=pa.string())
_AXOLOTL_SCHEMA = pa.schema([_KEY, ("messages", _list_of(role=pa.string(), content=_WITH_PATH)), _KEPT])
_SWIFT_SCHEMA = pa.schema([_KEY, ("messages", pa.string()), _IMAGES, _KEPT])

FORMATS: dict[FormatName, Format] = {
    "axolotl": Format(_axolotl, _AXOLOTL_SCHEMA, False),
    "llamafactory": Format(_sharegpt, _SHAREGPT_SCHEMA, False, leaves_out=_not_in_pairs),
    "llava": Format(_llava, None, True, "LLaVA's own code doesn't read token_weights: it trains all answer tokens"),
    "messages": Format(_messages, _MESSAGES_SCHEMA, True),
    "sharegpt": Format(_sharegpt, _SHAREGPT_SCHEMA, False),
    "swift": Format(_swift, _SWIFT_SCHEMA, True),
}
