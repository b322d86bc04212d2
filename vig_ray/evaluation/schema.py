"""The columns of the answers of a model, and of what its steps hand to each other."""

from __future__ import annotations

import pyarrow as pa

from vig_ray.dataset.schema import SAMPLES
from vig_ray.scoring.schema import PROMPTS

_NUMBERS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))
_CHOICES = pa.list_(
    pa.struct(
        [
            ("text", pa.string()),
            # over the tokens of its text, nats
            ("logprob", pa.float64()),
            # of its first token, nats
            ("first", pa.float64()),
            ("tokens", pa.int32()),
        ]
    )
)
_PASSES = pa.list_(pa.struct([("name", pa.string()), ("logprobs", pa.list_(pa.float32()))]))

_ANSWER = (
    # what the model answered: as it wrote it, or the likeliest of the choices
    pa.field("answer", pa.string()),
    # whether it stopped by itself, and not at the most new tokens
    pa.field("finished", pa.bool_()),
    # tokens that it wrote; null where it wrote none
    pa.field("new_tokens", pa.int32()),
    # of each choice its log-probs; null where the model wrote
    pa.field("choices", _CHOICES),
    # where log-probs of the right answer are asked for, one entry a token of it: its id
    pa.field("token_ids", pa.list_(pa.int32())),
    # how many answer tokens the turns before have
    pa.field("tokens_before", pa.int32()),
    # and by pass log q(token | before, image), natural logarithm
    pa.field("passes", _PASSES),
)

PREPARED = pa.schema(
    [
        # the question, as it lies in questions/, its images without their bytes
        *(SAMPLES.field(name) for name in ("sample_key", "id", "source", "kept", "images", "conversation", "error")),
        # of what is asked: the prompt to write an answer to, if any, then one a choice, then one a pass
        PROMPTS,
    ]
)
"""A question that the CPU stage has prepared."""

ANSWERED = pa.schema([*(field for field in PREPARED if field.name != "prompts"), *_ANSWER])
"""A question with what the engine made of it, before it is marked."""

ANSWERS = pa.schema(
    [
        # the question's key in questions/
        pa.field("sample_key", pa.string(), nullable=False),
        # the benchmark's own
        pa.field("id", pa.string()),
        pa.field("task", pa.string()),
        # a category of the benchmark; null where it has none
        pa.field("group", pa.string()),
        # questions of one unit are drawn together by the bootstrap; null: by itself
        pa.field("unit", pa.string()),
        # the user's turn
        pa.field("prompt", pa.string()),
        # what the answer is compared with, JSON
        pa.field("expected", pa.string()),
        *_ANSWER,
        # what the answer is worth: one of the marks
        pa.field("score", pa.float64()),
        # all of them, by which the task's metrics are computed
        pa.field("marks", _NUMBERS),
        # null, or why this question has no marks: "Class: cause"
        pa.field("error", pa.string()),
    ]
)
"""A row of OUT/evaluation/MODEL: one a question."""
