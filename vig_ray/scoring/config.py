"""The options of `vig score`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from vig_ray.dataset.images import MAX_PIXELS
from vig_ray.dataset.options import DataOptions
from vig_ray.options import (
    BlurName,
    Device,
    EndOfTurn,
    EngineName,
    EngineOptions,
    Precision,
    References,
    Template,
    TrustRemoteCode,
    WorkerRange,
)

# What says how, where and within which limits a model runs; of a server it is the server's operator who says it.
_OF_THE_SCORER = (
    "marginal_images", "reference_seed", "reference_model", "reference_context", "align", "passes", "blur", "engine",
    "vllm", "dtype", "device", "template", "max_length", "end_of_turn", "trust_remote_code", "too_long",
    "max_image_pixels", "workers", "prepare_workers", "batch_tokens", "window", "address",
)  # fmt: skip


class ScoreConfig(DataOptions):
    """Score every answer token of a dataset with and without its image."""

    model: str = Field(description="vision-language model: a checkpoint's folder or a hub id; not with --server")
    server: str | None = Field(
        None,
        description="address of a vig serve that scores instead of this machine, such as http://localhost:8000; its "
        "first model and reference, or those that are named, and its limits are those of the run",
        json_schema_extra={"metavar": "URL"},
    )
    server_model: str | None = Field(None, description="model of --server that scores; default: its first")
    server_key: str | None = Field(
        None, description="file with the key of --server", json_schema_extra={"metavar": "FILE"}
    )
    server_requests: int = Field(4, ge=1, description="batches of 16 samples that --server is asked for at a time")
    out: str = Field(description="directory that gets scores/ (and samples/, where the data is imported here)")
    reference: References = Field(
        ("blur",),
        description="what stands for 'no image': blur (VIG), blind (VisNec), text (PRIOR, by --reference-model), or a "
        "cheaper one (docs/scoring.md); several share the clean pass, and vig is of the first; finished scores get "
        "those that they lack",
    )
    marginal_images: int = Field(
        8, ge=2, description="images that --reference marginal is the mean over, the same ones for all samples"
    )
    reference_seed: int = Field(0, ge=0, description="which images of the dataset --reference marginal and swap draw")
    reference_model: str | None = Field(
        None, description="language model of --reference text: a checkpoint's folder or a hub id"
    )
    reference_context: Literal["answer", "conversation"] = Field(
        "answer",
        description="what the language model sees before an answer: the answers before it alone, as PRIOR's captions, "
        "or the questions, too",
    )
    align: Literal["none", "characters"] = Field(
        "none",
        description="a language model with another tokenizer: refused, or its log-probs carried over to the model's "
        "tokens by the characters that tokens cover",
    )
    passes: Literal["all", "text"] = Field(
        "all", description="text: the language model's pass alone, where only PRIOR's weights are wanted"
    )
    blur: BlurName = Field(
        "fast", description="how blurred images are computed: fast, or by opencv's convolution, ten times as slow"
    )
    engine: EngineName = Field(
        "auto",
        description="what computes the log-probs: auto takes vllm where it is installed and there is a GPU, else "
        "torch; MODULE:NAME is one of your own",
    )
    vllm: EngineOptions = Field(
        default_factory=dict,
        description="options of vLLM's engine, as vllm serve names them: tensor_parallel_size=2 quantization=fp8 ...",
    )
    dtype: Precision | None = Field(
        None, description="precision of the model; by default float32 on a CPU, the checkpoint's own on a GPU"
    )
    device: Device = Field(
        "auto", description="where the model runs; auto takes GPUs if Ray has any when the job starts"
    )
    template: Template = Field(
        "auto",
        description="prompt: llava_v1 (LLaVA-1.5 to the letter), chat (the checkpoint's chat template), plain (image "
        "and caption, as in LLaVA's alignment) or auto, one of the first two",
    )
    max_length: int | None = Field(
        None,
        ge=1,
        description="longest prompt, tokens with images; by default 2048 for LLaVA-1.5, else the model's own",
    )
    end_of_turn: EndOfTurn = None
    trust_remote_code: TrustRemoteCode = False
    too_long: Literal["error", "truncate"] = Field(
        "error", description="a longer prompt: a row with error set, or cut at the limit and told, as LLaVA trains"
    )
    max_image_pixels: int = Field(MAX_PIXELS, ge=1, description="largest image, pixels; a larger one is an error")
    workers: WorkerRange | None = Field(
        None,
        description="engines at a time, a number or a range such as 1..8; by default up to one a GPU, or a CPU core",
    )
    prepare_workers: WorkerRange | None = Field(
        None,
        description="CPU processes that decode and tokenise, a number or a range; by default up to one a core",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens of a forward, by default 16384 on a GPU and 1024 on a CPU with torch; vLLM's "
        "max_num_batched_tokens, by default its own",
    )
    window: int = Field(256, ge=1, description="rows that an engine sorts and batches together")
    rows_per_file: int = Field(
        2048, ge=1, description="rows a block: what a killed run has to do again, and the most rows of a scores file"
    )
    address: str | None = Field(
        None,
        description="Ray cluster to use, such as auto; by default RAY_ADDRESS, or a Ray of its own on this machine",
    )
    overwrite: bool = Field(False, description="replace what an earlier run with other options left in --out")
    strict: bool = Field(False, description="exit with status 1 if any row could not be scored")

    @model_validator(mode="before")
    @classmethod
    def _of_the_text_pass_alone(cls, given: Any) -> Any:
        """--passes text says which reference it is."""
        if isinstance(given, dict) and given.get("passes") == "text" and "reference" not in given:
            return given | {"reference": "text"}
        return given

    @model_validator(mode="before")
    @classmethod
    def _of_a_server(cls, given: Any) -> Any:
        """A server has a model already."""
        if isinstance(given, dict) and given.get("server") is not None and "model" not in given:
            return given | {"model": ""}
        return given

    @model_validator(mode="after")
    def _by_server(self) -> ScoreConfig:
        if self.server is None:
            for option in ("server_key", "server_requests", "server_model"):
                if getattr(self, option) != ScoreConfig.model_fields[option].default:
                    raise ValueError(f"--{option.replace('_', '-')} has no effect without --server")
            if not self.model:
                raise ValueError("--model is required, or --server")
            return self
        fields = ScoreConfig.model_fields
        decided = [
            name
            for name in _OF_THE_SCORER
            if getattr(self, name) != fields[name].get_default(call_default_factory=True)
        ]
        if decided := (["model"] if self.model else []) + decided:
            options = ", ".join(f"--{option.replace('_', '-')}" for option in decided)
            raise ValueError(f"{options}: with --server, the server decides that; leave it out")
        if len(self.reference) != 1:
            raise ValueError("--reference: one at a time with --server")
        return self

    @model_validator(mode="after")
    def _text_reference(self) -> ScoreConfig:
        if self.passes == "text" and self.reference != ("text",):
            raise ValueError("--passes text makes the text pass alone, and --reference names others; leave it out")
        for option, names in (("marginal_images", ("marginal",)), ("reference_seed", ("marginal", "swap"))):
            if getattr(self, option) != ScoreConfig.model_fields[option].default and not {*names} & {*self.reference}:
                named = " or ".join(names)
                raise ValueError(f"--{option.replace('_', '-')} has no effect without --reference {named}")
        if "text" in self.reference:
            if self.reference_model is None:
                raise ValueError("--reference text is the loss of a language model, which --reference-model names")
            return self
        for option in ("reference_model", "reference_context", "align"):
            if getattr(self, option) != ScoreConfig.model_fields[option].default:
                raise ValueError(f"--{option.replace('_', '-')} has no effect without --reference text")
        return self
