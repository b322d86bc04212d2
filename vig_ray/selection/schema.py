"""The columns of `selection/`."""

from __future__ import annotations

import pyarrow as pa

SELECTION = pa.schema(
    [
        # the sample's key in samples/ and scores/
        pa.field("sample_key", pa.string(), nullable=False),
        # its place in the training order, from 0; every place up to the number of samples is taken once
        pa.field("position", pa.int64(), nullable=False),
        # one entry an answer token, as in scores/; null where the scores have no token columns
        pa.field("token_ids", pa.list_(pa.int32())),
        # the weight of each token's loss: 0 or 1 of a mask, a float of PRIOR; null: 1 each
        pa.field("token_weights", pa.list_(pa.float32())),
    ]
)
