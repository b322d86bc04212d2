"""`vig export`: a trained model as a checkpoint that transformers, vLLM and this project's scorer load.

    OUT/model      the whole model in the hub's layout, LoRA merged into it
    OUT/adapter    with LoRA: adapters and projector alone, as peft loads them on top of the aligned model

`--format llava` writes the layout of LLaVA's own code instead (`llava_layout.py`).
"""

from __future__ import annotations

import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict_loader import load as load_state

from vig_ray.errors import StageError
from vig_ray.model.checkpoint import local_folder, trust
from vig_ray.model.export import CLIP_NAME, save_checkpoint
from vig_ray.model.llava import LlavaFormatter
from vig_ray.model.load import load_formatter, load_model, without_bars, without_weights
from vig_ray.model.plain import PlainFormatter
from vig_ray.model.sentencepiece import FILE
from vig_ray.options import Precision, Template, TrustRemoteCode
from vig_ray.stage import Claim, StageConfig, claim, read_stage
from vig_ray.storage import absolute, check_writable, join, scheme_of
from vig_ray.training.checkpoints import Checkpoint, alone_on_purpose, committed_checkpoints, on_this_machine
from vig_ray.training.llava_layout import read_base, write_llava
from vig_ray.training.parts import is_adapter, modules_beside, parts_of
from vig_ray.training.trained import trained_parts
from vig_ray.training.training_model import TRAINED, Lora

log = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]

MODEL, ADAPTER = "model", "adapter"  # the folders that a run writes at its end
STAGES = ("train", "train-text")

_BASE, _A, _B = ".base_layer", ".lora_A.default.weight", ".lora_B.default.weight"


class ExportConfig(StageConfig):
    """Write the model of a training run, finished or not, as a checkpoint."""

    run: str = Field(description="what `vig train --out` wrote, or the training/ inside it")
    out: str = Field(description="folder that gets the checkpoint; new or empty")
    step: Literal["last", "best"] = Field(
        "last",
        description="which of the run's checkpoints; best: the least held-out loss of its own (a checkpoint that was "
        "made in haste, since a machine was about to go, has none)",
    )
    format: Literal["hub", "llava", "adapter"] = Field(
        "hub", description="hub: transformers' and vLLM's; llava: for LLaVA's own code; adapter: LoRA apart (peft)"
    )
    trust_remote_code: TrustRemoteCode = False
    dtype: Precision | None = Field(
        None, description="precision of the written weights; by default that of the run's forward and backward"
    )


@dataclass(frozen=True)
class Exported:
    """What was written."""

    out: str
    step: int

    def text(self) -> str:
        """One line for a person."""
        return f"{self.out}: the model after step {self.step:,}"


def merged(state: State, lora: Lora | None) -> dict[str, torch.Tensor]:
    """The model's own weights: W + alpha / r * B A where a layer has adapters, names as without them."""
    if lora is None:
        return dict(state)
    tensors = {}
    for name, tensor in state.items():
        if is_adapter(name):
            continue
        plain = name.replace(_BASE, "")
        down = state.get(plain.removesuffix(".weight") + _A) if name.endswith(f"{_BASE}.weight") else None
        if down is not None:
            up = state[plain.removesuffix(".weight") + _B]
            tensor = tensor.float() + (up.float() @ down.float()) * (lora.alpha / lora.rank)
        tensors[plain] = tensor
    return tensors


def write_model(
    state: State, base: str, template: Template | None, out: str, dtype: str, train: Collection[str]
) -> None:
    """Write a model's whole weights to folder `out`, in the hub's layout, with what goes with them.

    `base`: the checkpoint that it was trained from, whose config, tokenizer and processor go with it. A model that was
    trained with LLaVA's prompt gets a processor that pads and LLaVA's chat template, whatever `base` has. `template`:
    None for a language model, which has no prompt. `train`: the parts that were trained.
    """
    folder = local_folder(base, weights=False)
    model = without_weights(base, text_only=template is None)
    config = model.config
    config.dtype = dtype
    if "tower" in trained_parts(train):
        vars(config).pop(CLIP_NAME, None)
    weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}
    formatter: Any = load_formatter(base, template) if template is not None else None
    if isinstance(formatter, PlainFormatter):
        formatter = formatter.of  # an aligned model is asked questions next
    if isinstance(formatter, LlavaFormatter):
        save_checkpoint(model, _llava_processor(formatter, config), out, state=weights)
        if os.path.isfile(os.path.join(folder, FILE)):  # what LLaVA's own code reads
            shutil.copy(os.path.join(folder, FILE), os.path.join(out, FILE))
        return
    model.save_pretrained(out, state_dict=weights)
    code = glob.glob("**/*.py", root_dir=folder, recursive=True)
    for name in [*os.listdir(folder), *(name for name in code if os.path.dirname(name))]:
        is_text = name.endswith((".json", ".jinja", ".txt", ".model", ".py")) and not name.endswith(".index.json")
        if is_text and name != "config.json":
            os.makedirs(os.path.dirname(os.path.join(out, name)), exist_ok=True)
            shutil.copy(os.path.join(folder, name), os.path.join(out, name))


def _llava_processor(formatter: LlavaFormatter, config: Any) -> Any:
    from transformers import LlavaImageProcessorPil, LlavaProcessor

    from vig_ray.model.chat_template import LLAVA_V1

    side = formatter.side
    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=list(formatter.mean),
            image_std=list(formatter.std),
            resample=formatter.resample,
            do_pad=True,
        ),
        tokenizer=formatter.tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=LLAVA_V1,
    )


def write_adapter(
    state: State, base: str, lora: Lora, train: Collection[str], out: str, *, text_only: bool = False
) -> None:
    """Write adapters, and whole what else was trained, to folder `out`, as `peft.PeftModel.from_pretrained(model, out)`
    loads them. `text_only`: of a language model."""
    from peft import LoraConfig, TaskType

    model = without_weights(base, text_only=text_only)
    parts = parts_of(model)
    modules = sorted({name.split(".lora_A.")[0] for name in state if ".lora_A." in name})
    whole = modules_beside(model, parts, train)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=modules,
        modules_to_save=whole or None,
        base_model_name_or_path=base,
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
    )
    os.makedirs(out, exist_ok=True)
    config.save_pretrained(out)
    tensors = {
        f"base_model.model.{name.replace('.default', '')}": tensor.contiguous()
        for name, tensor in state.items()
        if is_adapter(name) or any(name.startswith(f"{module}.") for module in whole)
    }
    save_file(tensors, os.path.join(out, "adapter_model.safetensors"), metadata={"format": "pt"})


def training_directory(given: str) -> tuple[str, dict[str, Any]]:
    """The training/ directory that a user means, and its record. Raises StageError."""
    for directory in (join(given, "training"), given):
        record = read_stage(directory)
        if record is not None and record["stage"] in STAGES:
            return directory, record
    raise StageError(
        f"{given}: no training run here; --run takes what `vig train --out` or `vig train-text --out` wrote"
    )


def run(config: ExportConfig) -> Exported:
    """Write the checkpoint; needs the memory of one model, and neither Ray nor a GPU. Raises StageError."""
    directory, record = training_directory(config.run)
    if scheme_of(config.out):
        raise StageError(f"--out {config.out}: takes a folder on this machine; copy it from there")
    check_writable(config.out)
    trained = record["config"]
    lora = Lora(trained["lora_rank"], trained["lora_alpha"]) if trained["lora"] else None
    if config.format == "adapter" and lora is None:
        raise StageError(f"{directory}: trained without --lora, so there is no adapter")
    chosen = _checkpoint(directory, config.step)
    base, template = record["prompts"]["model"], record["prompts"].get("template")
    if config.trust_remote_code:
        trust(base)
    dtype = config.dtype or record["dtype"]
    identity = {"run": record.get("identity"), "checkpoint": chosen.name, "format": config.format, "dtype": dtype}
    output = claim(config.out, "export", identity, resumes=False)
    if output.complete:
        log.info("%s: already complete, nothing to export", config.out)
        return Exported(config.out, chosen.step)
    if config.format == "llava":
        read_base(base)  # before the weights, so that a model which LLaVA's code can't hold is told at once
    text_only = template is None
    train = tuple(trained.get("train", ("language",) if text_only else TRAINED))
    state = _whole_state(join(directory, "checkpoints"), chosen.name, base, lora, train, text_only=text_only)
    output.begin(config)
    if config.format == "adapter" and lora is not None:
        write_adapter(state, base, lora, train, output.work, text_only=text_only)
    elif config.format == "llava":
        write_llava(merged(state, lora), base, output.work, dtype, train, place=absolute(config.out))
    else:
        write_model(merged(state, lora), base, template, output.work, dtype, train)
    output.publish(output.work, os.path.basename(absolute(config.out)))
    output.commit(config)
    return Exported(config.out, chosen.step)


def run_without_bars(config: ExportConfig) -> Exported:
    """As `run`, without transformers' progress bars of files and weights: what `vig export` does."""
    with without_bars():
        return run(config)


def _checkpoint(directory: str, step: Literal["last", "best"]) -> Checkpoint:
    """The checkpoint that is meant, of those of a training/ directory. Raises StageError where there is none."""
    checkpoints = committed_checkpoints(join(directory, "checkpoints"))
    if step == "best":
        checkpoints = sorted((each for each in checkpoints if each.score is not None), key=lambda each: -each.score)  # type: ignore[operator]
    if not checkpoints:
        raise StageError(f"{directory}: no checkpoint{' with a held-out loss' if step == 'best' else ''} yet")
    return checkpoints[-1]


def untrained_state(
    base: str, lora: Lora | None, train: Collection[str], *, frozen: str = "float32", text_only: bool = False
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """The weights of `base` by the names that they have in training, adapters among them, and which are trained.

    `frozen`: the precision of what isn't. `text_only`: of a language model.
    """
    from vig_ray.training.training_model import TrainingModel

    model = load_model(base, dtype="auto" if frozen != "float32" else frozen, device="cpu", text_only=text_only)
    training_model = TrainingModel(model, pack=False, lora=lora, dtype=getattr(torch, frozen), train=train)
    state: dict[str, torch.Tensor] = {key: tensor.detach() for key, tensor in training_model.model.state_dict().items()}
    trained = {key for key, parameter in training_model.model.named_parameters() if parameter.requires_grad}
    return state, trained


def _whole_state(
    directory: str, name: str, base: str, lora: Lora | None, train: Collection[str], *, text_only: bool
) -> dict[str, torch.Tensor]:
    """The model's weights after a checkpoint: those that were trained from there, the frozen ones from `base`."""
    state, trained = untrained_state(base, lora, train, text_only=text_only)
    with on_this_machine(directory, name) as folder, alone_on_purpose():
        load_state({"model": {key: state[key] for key in trained}}, checkpoint_id=folder, no_dist=True)
    return state


class Written(NamedTuple):
    """What a run writes: the weights of its model by the names that they have in training, what it was trained from and
    with which prompt (None: a language model), its adapters, the parts that were trained, and the precision."""

    state: State
    base: str
    template: Template | None
    lora: Lora | None
    train: Collection[str]
    dtype: str

    def model(self, out: str) -> None:
        """Write the model to the folder `out`, LoRA merged."""
        write_model(merged(self.state, self.lora), self.base, self.template, out, self.dtype, self.train)


@contextmanager
def _near(output: Claim) -> Iterator[str]:
    """A folder to write to; on the disk of OUT, so that nothing is copied, if that isn't remote."""
    near = None if scheme_of(output.work) else output.work
    if near is not None:
        os.makedirs(near, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=near) as folder:
        yield folder


def write_results(what: Written, output: Claim) -> None:
    """Write OUT/model, and with LoRA OUT/adapter, at the end of a run; OUT may be remote."""
    with _near(output) as folder:
        what.model(os.path.join(folder, MODEL))
        output.publish(os.path.join(folder, MODEL), MODEL)
        if what.lora is not None:
            write_adapter(
                what.state, what.base, what.lora, what.train, os.path.join(folder, ADAPTER),
                text_only=what.template is None,
            )  # fmt: skip
            output.publish(os.path.join(folder, ADAPTER), ADAPTER)


def write_so_far(what: Written, output: Claim, name: str) -> None:
    """Write OUT/NAME, the model before the end of a run, as OUT/model is written; OUT may be remote."""
    with _near(output) as folder:
        what.model(os.path.join(folder, MODEL))
        output.publish(os.path.join(folder, MODEL), name)
