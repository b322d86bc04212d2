"""The options of `vig train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from vig_ray.options import CommaSeparated, EndOfTurn, NotEmpty, Template
from vig_ray.training.options import TrainingOptions
from vig_ray.training.trained import in_order, trained_parts

# LLaVA-1.5's first stage, where it isn't its second's: `scripts/v1_5/pretrain.sh`.
_ALIGNMENT = {"train": ("projector",), "global_batch": 256}
_ALIGNMENT_LR = 1e-3

VDEP_OPTIONS = (
    "vdep_alpha", "vdep_reduction", "vdep_shift", "vdep_batches", "vdep_ratio", "vdep_doubled", "vdep_target",
    "vdep_layer", "vdep_mode_token", "vdep_norms_every",
)  # fmt: skip
"""What says how `--objective vdep` trains."""


class TrainConfig(TrainingOptions):
    """Instruction tuning on a selection, loss on its active tokens; without one, on all answer tokens.

    With `stage` align, alignment: the defaults are LLaVA-1.5's first stage, and a selection is of captions.
    """

    shown_behind: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": ("stage",),
        "samples": ("selection",),
        "lr": ("projector_lr", "tower_lr", "train"),
        "normalisation": ("objective", *VDEP_OPTIONS),
        "offload_optimizer": ("batch_tokens",),
        "loaders": ("template", "max_length", "end_of_turn", "align"),
    }

    stage: Literal["align", "tune"] = Field(
        "tune",
        description="whose defaults hold: align, LLaVA-1.5's first stage (--train projector, --lr 1e-3, --global-batch "
        "256, --template plain), or tune, its second",
    )
    model: str = Field(description="the aligned model: a checkpoint's folder or a hub id")
    selection: str | None = Field(
        None, description="selection/, as `vig select` wrote it; by default all samples and all their answer tokens"
    )
    global_batch: int = Field(
        128, ge=1, description="samples an optimizer step, over all workers; with --stage align 256"
    )
    lr: float | None = Field(
        None,
        gt=0,
        description="highest learning rate; by default LLaVA-1.5's: 2e-5, with --lora 2e-4, with --stage align 1e-3",
    )
    projector_lr: float | None = Field(
        None,
        gt=0,
        description="that of the projector; by default the same, with --lora LLaVA-1.5's 2e-5, but not with --stage "
        "align",
    )
    tower_lr: float | None = Field(
        None,
        gt=0,
        description="that of the vision tower, where it is trained; by default LLaVA-NeXT's 2e-6, with --stage align "
        "the same as --lr",
    )
    train: Annotated[tuple[str, ...], CommaSeparated, NotEmpty, AfterValidator(in_order)] = Field(
        ("projector", "language"),
        description="parts of the model that are trained, of the tower all or layers A up to B as tower:A..B, with "
        "--stage align the projector alone; --dry-run shows what belongs to which",
        json_schema_extra={"metavar": "projector|language|tower[:A..B][,...]"},
    )
    objective: Literal["next-token", "vdep"] = Field(
        "next-token",
        description="what is trained: answer tokens by cross-entropy, or by VDEP the images' embeddings as well",
    )
    vdep_alpha: float = Field(
        0.001,
        ge=0,
        allow_inf_nan=False,
        description="weight of the image loss beside the text loss; the paper's Tables 4 and 7 don't agree on the best",
    )
    vdep_reduction: Literal["sum", "mean"] = Field(
        "sum", description="squared distance to an image position's embedding: summed over the width, or its mean"
    )
    vdep_shift: int = Field(
        1, ge=0, le=1, description="1: a state predicts the next position's embedding; 0: that of its own position"
    )
    vdep_batches: Literal["hybrid", "joint"] = Field(
        "hybrid", description="image samples of a step: each in image mode or in text mode; or in both at once"
    )
    vdep_ratio: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="hybrid: samples in image mode for each in text mode"
    )
    vdep_doubled: bool = Field(
        False,
        description="hybrid: an epoch has each sample once in text mode, and besides ratio times as many in image mode",
    )
    vdep_target: Literal["detached", "live"] = Field(
        "detached", description="whether the embeddings that are predicted are moved towards their predictions: live"
    )
    vdep_layer: int | None = Field(
        None, ge=1, description="layer whose states predict; by default the last one's, after the final norm"
    )
    vdep_mode_token: str | None = Field(
        None,
        description="token at the beginning of a sample in image mode, such as <auto_image>; one of the tokenizer's, "
        "else a row of the embeddings that no text comes to",
    )
    vdep_norms_every: int = Field(
        100, ge=0, description="steps between measurements of each loss's gradient norm; 0: none"
    )
    batch_tokens: int | None = Field(
        None, ge=1, description="tokens of one microbatch of one worker; by default 16384 on a GPU, 2048 on a CPU"
    )
    template: Template | None = Field(
        None, description="prompt; by default what the selection was made with, or auto, with --stage align plain"
    )
    max_length: int | None = Field(
        None, ge=1, description="longest prompt, tokens; longer ones are cut; by default as the selection was made"
    )
    end_of_turn: EndOfTurn = None
    align: Literal["characters"] | None = Field(
        None,
        description="carry the selection's token weights over to a model with another tokenizer, template or end of "
        "turn, by the characters that tokens cover; by default such a model is refused where there are weights",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_the_stage(cls, given: Any) -> Any:
        aligns = isinstance(given, dict) and given.get("stage") == "align"
        return {**_ALIGNMENT, **given} if aligns else given

    @model_validator(mode="after")
    def _whole(self) -> TrainConfig:
        parts = trained_parts(self.train)
        if self.lora and "language" not in parts:
            raise ValueError("--lora puts adapters on the language model, which --train doesn't name")
        if self.align is not None and self.selection is None:
            raise ValueError("--align carries a selection's weights over; give --selection")
        for part, rate in (("tower", self.tower_lr), ("projector", self.projector_lr)):
            if rate is not None and part not in parts:
                raise ValueError(f"--{part}-lr has no effect where --train doesn't name the {part}")
        follows = "projector" in parts and self.projector_lr is None
        tower_follows = self.aligns and "tower" in parts and self.tower_lr is None
        if self.lr is not None and "language" not in parts and not follows and not tower_follows:
            raise ValueError("--lr has no effect on what --train names; --projector-lr and --tower-lr have")
        if self.aligns and self.lr is None and ("language" in parts or tower_follows):
            raise ValueError(
                f"--stage align trains at {_ALIGNMENT_LR:g}, which is for a new projector alone; give --lr where "
                "--train names more, such as ShareGPT4V's 2e-5"
            )
        return self

    @model_validator(mode="after")
    def _objective_has_its_options(self) -> TrainConfig:
        fields = TrainConfig.model_fields
        given = [name for name in VDEP_OPTIONS if getattr(self, name) != fields[name].default]
        if self.objective != "vdep" and given:
            raise ValueError(f"{_flag(given[0])} has no effect without --objective vdep")
        if self.vdep_batches == "joint":
            hybrid = [name for name in given if name in ("vdep_ratio", "vdep_doubled", "vdep_mode_token")]
            if hybrid:
                raise ValueError(f"{_flag(hybrid[0])} has no effect with --vdep-batches joint, which has one mode")
        return self

    @property
    def to_train(self) -> tuple[str, ...]:
        """What `--train` names."""
        return self.train

    @property
    def aligns(self) -> bool:
        """Whether this is alignment rather than instruction tuning."""
        return self.stage == "align"

    @property
    def usual_template(self) -> Template:
        """The prompt where neither an option nor a selection says which."""
        return "plain" if self.aligns else "auto"

    def microbatch_tokens(self, on_gpu: bool) -> int:
        """Tokens of one microbatch of one worker."""
        return self.batch_tokens or (16384 if on_gpu else 2048)

    @property
    def rates(self) -> dict[str, float]:
        """The highest learning rate of each part; of the language model or its adapters."""
        if self.aligns:
            main = self.lr or _ALIGNMENT_LR
            return {"language": main, "projector": self.projector_lr or main, "tower": self.tower_lr or main}
        main = self.lr or (2e-4 if self.lora else 2e-5)
        return {
            "language": main,
            "projector": self.projector_lr or (2e-5 if self.lora else main),
            "tower": self.tower_lr or 2e-6,
        }


def vdep_of(options: TrainingOptions) -> TrainConfig | None:
    """The options with those of VDEP, where it is the objective."""
    return options if isinstance(options, TrainConfig) and options.objective == "vdep" else None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
