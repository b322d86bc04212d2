"""The columns of `scores/`."""

from __future__ import annotations

import pyarrow as pa

SCORES = pa.schema(
    [
        # the sample's key in samples/: unique and stable
        pa.field("sample_key", pa.string(), nullable=False),
        # the dataset's own id, which may repeat
        pa.field("id", pa.string()),
        # the dataset's own sub-dataset, for breakdowns
        pa.field("source", pa.string()),
        # T: trained tokens of the conversation; null where it could not be tokenised
        pa.field("num_answer_tokens", pa.int32()),
        # answer tokens that the length limit cut off, with --too-long truncate; T counts those that are left
        pa.field("num_truncated_tokens", pa.int32()),
        # mean negative log-prob of the answer tokens with the image, nats; null for text-only samples and errors
        pa.field("clean_loss", pa.float64()),
        # the same under the reference
        pa.field("reference_loss", pa.float64()),
        # reference_loss - clean_loss: the sample's Visual Information Gain, nats
        pa.field("vig", pa.float64()),
        # one entry an answer token: its id
        pa.field("token_ids", pa.list_(pa.int32())),
        # log q(token | before, image), natural logarithm
        pa.field("clean_logprobs", pa.list_(pa.float32())),
        # log q(token | before), as the reference sees it
        pa.field("reference_logprobs", pa.list_(pa.float32())),
        # which assistant turn of the conversation the token is in, from 0
        pa.field("turn", pa.list_(pa.int32())),
        # null, or what the model's authors' own training does otherwise: LLaVA's drops what its template can't hold
        pa.field("note", pa.string()),
        # null, or why this sample has no score: "Class: cause"
        pa.field("error", pa.string()),
    ]
)

PREPARED = pa.schema(
    [
        *(
            SCORES.field(name)
            for name in ("sample_key", "id", "source", "num_truncated_tokens", "token_ids", "turn", "note", "error")
        ),
        # the clean and the reference prompt, pickled together; null where there is nothing to run
        pa.field("prompts", pa.large_binary()),
    ]
)
"""What the CPU stage hands to the engines."""
