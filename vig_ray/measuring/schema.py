"""The columns of `measures/`."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa

_COLUMNS: dict[str, tuple[pa.Field, ...]] = {
    # one entry an answer token: the share of attention that the state which predicts it gives to image tokens, mean
    # over heads and layers
    "attention": (pa.field("attention", pa.list_(pa.float32())),),
    # the mean over answer tokens of ||q - onehot||_2
    "el2n": (pa.field("el2n", pa.float64()),),
    # one entry an answer token: CLIP's logit of its text with the image; NaN for tokens that cover no text
    "clip": (pa.field("clip", pa.list_(pa.float32())),),
    "clip-score": (
        # 2.5 max(cosine of answer and image, 0)
        pa.field("clip_score", pa.float64()),
        # tokens of the answer that CLIP's limit cut off
        pa.field("clip_cut", pa.int32()),
    ),
}


def measures_schema(measures: Collection[str]) -> pa.Schema:
    """The columns of `measures/` of a run with these measures. All are null for samples without an image."""
    return pa.schema(
        [
            # the sample's key in samples/ and scores/
            pa.field("sample_key", pa.string(), nullable=False),
            # T: answer tokens; null where the sample wasn't measured
            pa.field("measured_tokens", pa.int32()),
            # one entry an answer token: its id, as in scores/
            pa.field("answer_ids", pa.list_(pa.int32())),
            *(field for name in _COLUMNS if name in measures for field in _COLUMNS[name]),
            # null, or why this sample has no measure: "Class: cause"
            pa.field("error", pa.string()),
        ]
    )
