"""The options that `vig train` and `vig train-text` share, and what follows from them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from vig_ray.options import CommaSeparated, Device, NotEmpty, TrustRemoteCode, WorkerRange
from vig_ray.stage import StageConfig
from vig_ray.training.shares import in_order
from vig_ray.training.trained import trained_parts


class TrainingOptions(StageConfig):
    """The options of any training. `model`, `global_batch` and `lr` mean other things to each, which says what."""

    model: str
    samples: str = Field(description="samples/, as `vig import` or `vig score` wrote it")
    out: str = Field(description="directory that gets the checkpoints, the logs and the trained model, model/")
    workers: WorkerRange | None = Field(
        None,
        description="processes that train, a number or an elastic range such as 2..8; by default one a GPU, or one",
    )
    epochs: int = Field(1, ge=1, description="times each sample is trained on")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps of the run, instead of whole epochs")
    global_batch: int = Field(ge=1)
    lr: float | None = Field(None, gt=0)
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
    trust_remote_code: TrustRemoteCode = False
    held_out: int = Field(0, ge=0, description="samples at the order's end that are not trained on but measured")
    eval_every: int = Field(
        100, ge=1, description="steps between measurements of the held-out loss; it is measured at checkpoints as well"
    )
    save_every: int = Field(100, ge=1, description="steps between checkpoints: what a lost worker costs at most")
    keep: int = Field(2, ge=1, description="checkpoints that are kept, the last ones; the best one is kept too")
    export_at: Annotated[tuple[float, ...], CommaSeparated, AfterValidator(in_order)] = Field(
        (),
        description="also write the model after these shares of the steps, rounded up to a whole step, such as "
        "0.25,0.5: to OUT/at/0.25, in the hub's layout, LoRA merged; training is the same with it or without",
        json_schema_extra={"metavar": "SHARE[,...]"},
    )
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

    @model_validator(mode="after")
    def _goes_together(self) -> TrainingOptions:
        if self.max_steps is not None and self.epochs != 1:
            raise ValueError("--max-steps and --epochs both say when to end; give one")
        if self.quantise and not self.lora:
            raise ValueError("--quantise freezes the language model's weights; it needs --lora to train anything of it")
        if self.offload_optimizer and self.optimizer == "adamw8bit":
            raise ValueError(
                "--offload-optimizer and --optimizer adamw8bit don't go together: 8-bit moments save a GPU's memory, "
                "and are slow to update on a CPU; give one"
            )
        return self

    @property
    def to_train(self) -> tuple[str, ...]:
        """The parts of the model that are trained, as `vig_ray.training.trained` names them."""
        return ("language",)

    @property
    def rates(self) -> dict[str, float]:
        """The highest learning rate of each part; of the language model or its adapters."""
        return {"language": self.lr or (2e-4 if self.lora else 2e-5)}

    @property
    def leading_rate(self) -> float:
        """The highest learning rate that is logged: of the language model, else of what is trained in its place."""
        parts = trained_parts(self.to_train)
        return next(self.rates[part] for part in ("language", "projector", "tower") if part in parts)

    def microbatch_tokens(self, on_gpu: bool) -> int:
        """Tokens of one microbatch of one worker."""
        raise NotImplementedError

    def recomputes(self, on_gpu: bool) -> bool:
        """Whether activations are computed again in the backward pass."""
        return self.activation_checkpointing == "on" or (self.activation_checkpointing == "auto" and on_gpu)
