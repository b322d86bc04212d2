"""The options of `vig train-text`: those that all training has, and its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vig_ray.dataset.options import Share
from vig_ray.model.text_only import Context
from vig_ray.options import CommaSeparated
from vig_ray.training.options import TrainingOptions


class TrainTextConfig(TrainingOptions):
    """Next-token training of a language model on answer texts alone: PRIOR's reference model (its equation 2)."""

    model: str = Field(description="the language model to begin with: a checkpoint's folder or a hub id")
    global_batch: int = Field(2048, ge=1, description="documents an optimizer step, over all workers")
    lr: float | None = Field(
        None, gt=0, description="highest learning rate; by default 2e-5, with --lora 2e-4 (docs/training.md says why)"
    )
    context: Context = Field(
        "answer",
        description="what an answer sees before it: answer, the earlier answers of its sample alone, as PRIOR's "
        "captions; conversation, the questions too, which are not trained on",
    )
    length: int = Field(
        8192,
        ge=2,
        description="tokens that documents are packed to, each of which sees itself alone; a longer document is left "
        "out and told",
    )
    sample: Share = Field(
        None,
        description="take this share of the samples, by the hash that vig import --sample takes others by: shares that "
        "add up to 100 % have none in common",
        json_schema_extra={"metavar": "PERCENT%"},
    )
    exclude: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (),
        description="samples/, scores/ or selection/ whose samples are left out: those that the model is to weigh",
        json_schema_extra={"metavar": "DIR[,...]"},
    )

    def microbatch_tokens(self, on_gpu: bool) -> int:
        """Tokens of one microbatch of one worker: a row's."""
        del on_gpu
        return self.length
