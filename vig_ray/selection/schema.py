"""The columns of `selection/`."""

from __future__ import annotations

import pyarrow as pa

from vig_ray.dataset.schema import KEPT

SELECTION = pa.schema(
    [
        # the sample's key in samples/ and scores/
        pa.field("sample_key", pa.string(), nullable=False),
        # its place in the training order, from 0; every place below the number of samples occurs once
        pa.field("position", pa.int64(), nullable=False),
        # one entry an answer token, as in scores/; null where the scores have no token columns
        pa.field("token_ids", pa.list_(pa.int32())),
        # the weight of each token's loss: 0 or 1 for a mask, a float for PRIOR; null where all are 1
        pa.field("token_weights", pa.list_(pa.float32())),
        # the columns of the dataset that --keep named, as in scores/; null where there are none
        KEPT,
    ]
)
