"""The columns of `scores/`, and of what the CPU stage hands to the engines."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from vig_ray.dataset.schema import KEPT
from vig_ray.tables.passes import CLEAN, MARGINAL, TEXT, logprobs_column, loss_column

TEXT_EXACT = pa.field("text_exact", pa.int32())
FURTHER: dict[str, tuple[pa.Field, ...]] = {
    # how many of text_logprobs are the language model's own or sums of them, not shared out by characters
    TEXT: (TEXT_EXACT,),
    MARGINAL: (
        # one entry an image: the mean negative log-prob of the answer tokens with it, nats
        pa.field("marginal_losses", pa.list_(pa.float64())),
        # one entry an answer token: its log-prob, mean over these images
        pa.field("marginal_means", pa.list_(pa.float32())),
        # one entry an answer token: what one of these images gains over the others, nats, mean over them
        pa.field("marginal_null", pa.list_(pa.float32())),
        # the Monte-Carlo standard error of marginal_loss, nats
        pa.field("marginal_error", pa.float64()),
    ),
}
"""Columns that a reference has beside its loss and its log-probs."""


def scores_schema(references: Sequence[str]) -> pa.Schema:
    """The columns of `scores/` of a run with these references, in their order."""
    passes = (CLEAN, *references)
    return pa.schema(
        [
            # the sample's key in samples/: unique and stable
            pa.field("sample_key", pa.string(), nullable=False),
            # the dataset's own id, which may repeat
            pa.field("id", pa.string()),
            # the dataset's own sub-dataset, for breakdowns
            pa.field("source", pa.string()),
            # the columns of the dataset that --keep named, each value as JSON text; null where there are none
            KEPT,
            # T: trained tokens of the conversation; null where it could not be tokenised
            pa.field("num_answer_tokens", pa.int32()),
            # answer tokens that the length limit cut off, with --too-long truncate; T counts those that are left
            pa.field("num_truncated_tokens", pa.int32()),
            # clean_loss, blur_loss ...: mean negative log-prob of the answer tokens in each pass, nats; null for
            # text-only samples, where the pass failed, and clean_loss where the text pass alone was made
            *(pa.field(loss_column(name), pa.float64()) for name in passes),
            # the first reference's loss - clean_loss: the sample's Visual Information Gain, nats
            pa.field("vig", pa.float64()),
            # one entry an answer token: its id
            pa.field("token_ids", pa.list_(pa.int32())),
            # clean_logprobs, blur_logprobs ...: log q(token | before, image), natural logarithm, as each pass sees the
            # image or what stands for none
            *(pa.field(logprobs_column(name), pa.list_(pa.float32())) for name in passes),
            # which assistant turn of the conversation the token is in, from 0
            pa.field("turn", pa.list_(pa.int32())),
            # of a run with the references text and marginal
            *(field for name in references for field in FURTHER.get(name, ())),
            # null, or what the model's authors' own training does otherwise: LLaVA's drops what its template can't hold
            pa.field("note", pa.string()),
            # null, or why this sample has no score: "Class: cause"; "Blind: cause" where the pass of a reference
            # failed, "; " between several
            pa.field("error", pa.string()),
        ]
    )


_PROMPT = pa.struct(
    [
        # of the arrays of the group: which one is the prompt's token_ids, and so on, as Prompt tells of them
        *(pa.field(name, pa.int32()) for name in ("token_ids", "answer_positions", "turns")),
        *(pa.field(name, pa.int32()) for name in ("image_mask", "image_spans", "answer_chars")),
        pa.field("hide_images", pa.bool_()),
        pa.field("truncated", pa.int32()),
        pa.field("note", pa.string()),
        # of the images of the group: which ones are the prompt's, in order
        pa.field("images", pa.list_(pa.int32())),
        # of the images of the group: which one is the whole sample's arrays; null for prompts from parts
        pa.field("whole", pa.int32()),
        # a PromptError in the place of a prompt; all else is null then
        pa.field("error", pa.struct([pa.field("kind", pa.string()), pa.field("cause", pa.string())])),
    ]
)

# the prompts of the passes that are to be run; null where there is nothing to run
PROMPTS = pa.field("prompts", pa.list_(_PROMPT))


def prepared_schema(held: Sequence[str] = ()) -> pa.Schema:
    """The columns of a sample that the CPU stage has prepared. `held`: passes whose results it has already."""
    of_rows = ["sample_key", "id", "source", "kept", "num_truncated_tokens", "token_ids", "turn", "note", "error"]
    of_passes = [column(name) for name in held for column in (loss_column, logprobs_column)]
    of_passes += [field.name for name in held for field in FURTHER.get(name, ())]
    scores = scores_schema([name for name in held if name != CLEAN])
    return pa.schema(
        [
            *(scores.field(name) for name in (*of_rows, *of_passes, *(["vig"] if held else []))),
            PROMPTS,
            # the characters of each answer token, first and past the last, one after the other, where the text pass is
            # of other tokens; null where its log-probs are theirs
            pa.field("onto_chars", pa.list_(pa.int32())),
        ]
    )


def groups_schema(held: Sequence[str] = ()) -> pa.Schema:
    """The columns of what the CPU stage hands to the engines, for samples with the columns of `prepared_schema`."""
    return groups_of(prepared_schema(held))


def groups_of(samples: pa.Schema) -> pa.Schema:
    """The columns of groups of samples that have these columns, `PROMPTS` among them: a row is a group, with what they
    share. `vig_ray.scoring.prepared` writes and reads it."""
    array = pa.struct(
        [
            # as NumPy writes it: <f4
            pa.field("dtype", pa.string()),
            pa.field("shape", pa.list_(pa.int64())),
            # row-major, and zeros up to a multiple of 64 bytes
            pa.field("data", pa.large_binary()),
        ]
    )
    image = pa.struct(
        [
            # null for the arrays of a whole sample
            pa.field("key", pa.string()),
            # by the name of the model's argument: which one of the group's arrays
            pa.field("arrays", pa.map_(pa.string(), pa.int32())),
        ]
    )
    return pa.schema(
        [
            pa.field("samples", pa.list_(pa.struct(list(samples)))),
            pa.field("images", pa.list_(image)),
            # each once, whatever has it
            pa.field("arrays", pa.large_list(array)),
        ]
    )
