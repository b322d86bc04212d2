"""The options of `vig train`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from vig_ray.options import CommaSeparated, Device, EndOfTurn, NotEmpty, Template, TrustRemoteCode, WorkerRange
from vig_ray.stage import StageConfig
from vig_ray.training.trained import in_order, trained_parts

# LLaVA-1.5's first stage, where it isn't its second's: `scripts/v1_5/pretrain.sh`.
_ALIGNMENT = {"train": ("projector",), "global_batch": 256}
_ALIGNMENT_LR = 1e-3


class TrainConfig(StageConfig):
    """Instruction tuning on a selection, loss on its active tokens; without one, on all answer tokens.

    With `stage` align, alignment: the defaults are LLaVA-1.5's first stage, and a selection is of captions.
    """

    stage: Literal["align", "tune"] = Field(
        "tune",
        description="whose defaults hold: align, LLaVA-1.5's first stage (--train projector, --lr 1e-3, --global-batch "
        "256, --template plain), or tune, its second",
    )
    model: str = Field(description="the aligned model: a checkpoint's folder or a hub id")
    samples: str = Field(description="samples/, as `vig import` or `vig score` wrote it")
    selection: str | None = Field(
        None, description="selection/, as `vig select` wrote it; by default all samples and all their answer tokens"
    )
    out: str = Field(description="directory that gets the checkpoints, the logs and the trained model, model/")
    workers: WorkerRange | None = Field(
        None,
        description="processes that train, a number or an elastic range such as 2..8; by default one a GPU, or one",
    )
    epochs: int = Field(1, ge=1, description="times each sample is trained on")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps of the run, instead of whole epochs")
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
    dry_run: bool = Field(
        False, description="only print the model's parts, what is trained, how many steps, and the memory it takes"
    )
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="learning rate after the warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's; not for biases and norms")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are scaled down to this norm; 0: they aren't")
    normalisation: Literal["tokens", "samples"] = Field(
        "tokens", description="the loss of a global batch: mean over its active tokens, or over each sample's first"
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
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="precision of forward and backward; weights and optimizer are float32 in any case; by default "
        "bfloat16 on GPUs, float32 on CPUs",
    )
    device: Device = Field("auto", description="auto takes GPUs if Ray has any at the start")
    lora: bool = Field(False, description="train adapters (LoRA) on the language model's linear layers, and projector")
    lora_rank: int = Field(128, ge=1, description="LoRA's r")
    lora_alpha: float = Field(256.0, gt=0, description="LoRA's alpha")
    quantise: Literal["nf4"] | None = Field(
        None,
        description="with --lora: keep the linear layers under adapters in 4 bits (QLoRA: nf4, double quantisation)",
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="adamw8bit keeps AdamW's moments in 8 bits, 2 bytes a trained weight instead of 8"
    )
    offload_optimizer: bool = Field(
        False,
        description="keep the optimizer's state in the machine's memory and update there; weights and gradients come "
        "to the GPU a layer at a time (FSDP2's CPU offload)",
    )
    batch_tokens: int | None = Field(
        None, ge=1, description="tokens of one microbatch of one worker; by default 16384 on a GPU, 2048 on a CPU"
    )
    micro_batch: int | None = Field(None, ge=1, description="most samples of one microbatch of one worker")
    packing: bool = Field(True, description="lay samples end to end instead of padding them; the result is the same")
    activation_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="compute activations again in the backward pass instead of keeping them; auto: on GPUs"
    )
    gradient_sync: Literal["microbatch", "step"] = Field(
        "microbatch",
        description="when workers add up their gradients: after each microbatch, or once a step, which sends less and "
        "keeps whole gradients on every worker meanwhile, 4 bytes a trained weight: 28 GB for 7 billion",
    )
    loaders: int | None = Field(
        None, ge=0, description="processes a worker that read and decode ahead; by default 4 with a GPU, else none"
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
    trust_remote_code: TrustRemoteCode = False
    held_out: int = Field(0, ge=0, description="samples at the order's end that are not trained on but measured")
    eval_every: int = Field(
        100, ge=1, description="steps between measurements of the held-out loss; it is measured at checkpoints as well"
    )
    save_every: int = Field(100, ge=1, description="steps between checkpoints: what a lost worker costs at most")
    keep: int = Field(2, ge=1, description="checkpoints that are kept, the last ones; the best one is kept too")
    max_failures: int = Field(
        8, ge=-1, description="workers or nodes that may be lost before the run gives up; -1: any number"
    )
    resize_every: float = Field(
        60.0, ge=0, description="seconds between looks whether machines came or went, where --workers is a range"
    )
    watch: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow", "none"], ...], CommaSeparated, NotEmpty] = Field(
        ("tensorboard",),
        description="where figures go besides log.jsonl: tensorboard (files in OUT/tensorboard), wandb, mlflow",
        json_schema_extra={"metavar": "tensorboard|wandb|mlflow|none[,...]"},
    )
    seed: int = Field(0, ge=0, description="order of later epochs, and of the first one without a selection")
    name: str | None = Field(None, description="name of the run; by default that of --out")
    address: str | None = Field(
        None, description="Ray cluster to use, such as auto; by default RAY_ADDRESS, or a Ray of its own here"
    )
    overwrite: bool = Field(False, description="replace what an earlier run with other options left in --out")

    @model_validator(mode="before")
    @classmethod
    def _of_the_stage(cls, given: Any) -> Any:
        aligns = isinstance(given, dict) and given.get("stage") == "align"
        return {**_ALIGNMENT, **given} if aligns else given

    @model_validator(mode="after")
    def _whole(self) -> TrainConfig:
        parts = trained_parts(self.train)
        if self.max_steps is not None and self.epochs != 1:
            raise ValueError("--max-steps and --epochs both say when to end; give one")
        if self.lora and "language" not in parts:
            raise ValueError("--lora puts adapters on the language model, which --train doesn't name")
        if self.align is not None and self.selection is None:
            raise ValueError("--align carries a selection's weights over; give --selection")
        if self.quantise and not self.lora:
            raise ValueError("--quantise freezes the language model's weights; it needs --lora to train anything of it")
        if self.offload_optimizer and self.optimizer == "adamw8bit":
            raise ValueError(
                "--offload-optimizer and --optimizer adamw8bit don't go together: 8-bit moments save a GPU's memory, "
                "and are slow to update on a CPU; give one"
            )
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
        fields = type(self).model_fields
        given = [name for name in VDEP_OPTIONS if name in fields and getattr(self, name) != fields[name].default]
        if self.objective != "vdep" and given:
            raise ValueError(f"{_flag(given[0])} has no effect without --objective vdep")
        if self.vdep_batches == "joint":
            hybrid = [name for name in given if name in ("vdep_ratio", "vdep_doubled", "vdep_mode_token")]
            if hybrid:
                raise ValueError(f"{_flag(hybrid[0])} has no effect with --vdep-batches joint, which has one mode")
        return self

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

    def recomputes(self, on_gpu: bool) -> bool:
        """Whether activations are computed again in the backward pass."""
        return self.activation_checkpointing == "on" or (self.activation_checkpointing == "auto" and on_gpu)

    @property
    def leading_rate(self) -> float:
        """The highest learning rate that is logged: of the language model, else of what is trained in its place."""
        parts = trained_parts(self.train)
        return next(self.rates[part] for part in ("language", "projector", "tower") if part in parts)

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


VDEP_OPTIONS = tuple(name for name in TrainConfig.model_fields if name.startswith("vdep_"))
"""What says how `--objective vdep` trains."""


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
