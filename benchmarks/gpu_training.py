"""The training part of benchmarks/gpu.py: packed, padded and transformers.Trainer; a module, no command.

All take the same samples a step, train the same weights with AdamW (fused on a GPU), compute in the same precision and
make activations again in the backward pass. The Trainer gets batches of a quarter of a step, sorted by length. Samples
count when their step is done; the first step, in which everything is warmed up, doesn't.

The share of the matrix rate is that of a forward up to each last answer token, each sample by itself, and of a backward
pass that costs as much for activations and, where all weights are trained, once more for them; what is computed again
doesn't count.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.least import least_flops
from benchmarks.llava_shape import Family, prepared, samples
from vig_ray.model.attention import can_pack
from vig_ray.model.head import token_types_argument
from vig_ray.model.prompt import Prompt
from vig_ray.training.batch import Batcher, TrainingSample, plan_by_kind, trimmed
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.memory import free_bytes
from vig_ray.training.objective import Totals, coefficients
from vig_ray.training.sharding import shard
from vig_ray.training.training_model import Lora, TrainingModel

STEPS = 3  # the first to warm up
RATE = 2e-5
ADAPTERS = Lora(128, 256)
_ROOM = 12e9  # bytes for activations and logits
_TRAINED, _FROZEN = 16, 2  # bytes a weight: float32 weight, gradient and moments; bfloat16


class Told(Protocol):
    """What benchmarks/gpu.py's report offers."""

    device: str

    def add(self, model: str, what: str, **figures: float) -> None: ...
    def skip(self, what: str, why: str) -> None: ...
    def part(self, what: str, seconds: float, run: Any) -> None: ...
    def reset_peak(self) -> None: ...
    def peak(self) -> dict[str, float]: ...
    def wait(self) -> None: ...


def training(report: Told, family: Family, dtype: torch.dtype, rate: float, *, lora: bool, batch: int) -> None:
    """Samples/s of each way; told where the GPU has no room."""
    prompts = prepared(samples(family, STEPS * batch, images=STEPS * batch))
    how = "LoRA" if lora else "all weights"
    kind = f"{family.name}, training, {how}"
    with torch.device("meta"):
        whole = sum(parameter.numel() for parameter in family.model("meta").parameters())
    needed = whole * (_FROZEN if lora else _TRAINED) + _ROOM
    free = free_bytes(torch.device(report.device))
    if report.device == "cuda" and needed > free:
        report.skip(kind, f"it takes about {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free")
        return
    least = sum(least_flops(family.config, [prompt]).total for prompt in prompts[batch:])
    flops = least * (2 if lora else 3)

    def measured(what: str, run: Any) -> None:
        def one() -> None:
            report.reset_peak()
            seconds = run()
            figures = {
                "samples/s": (STEPS - 1) * batch / seconds,
                "share of matrix rate": flops / seconds / rate,
            }
            report.add(family.name, f"training, {how}, {what}", **figures, **report.peak())

        # Beside the arithmetic, at a third of the matrix rate, the model has to be made.
        report.part(f"{kind}, {what}", 0 if report.device == "cpu" else 15 + 1.5 * 3 * flops / rate, one)

    measured("packed", lambda: ours(report, family, prompts, dtype, lora=lora, batch=batch, packed=True))
    measured("padded", lambda: ours(report, family, prompts, dtype, lora=lora, batch=batch, packed=False))
    measured("Trainer", lambda: theirs(report, family, prompts, dtype, lora=lora, batch=batch))


def ours(
    report: Told, family: Family, prompts: Sequence[Prompt], dtype: torch.dtype, *, lora: bool, batch: int, packed: bool
) -> float:
    """Seconds of all steps but the first, as one worker of `vig train` has them."""
    device = torch.device(report.device)
    model = family.model(report.device, dtype)
    training_model = TrainingModel(
        model, pack=can_pack(model), checkpoint_activations=device.type == "cuda", lora=ADAPTERS if lora else None,
        dtype=dtype,
    )  # fmt: skip
    with _process_group(device):
        shard(training_model, DistributedContext(0, 1, device), dtype)
        trained = [parameter for parameter in training_model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=RATE, fused=device.type == "cuda")
        batcher = Batcher(model, family.formatter.collate, device=device, dtype=dtype, packed=packed)
        began = 0.0
        for step in range(STEPS):
            if step == 1:
                report.wait()
                began = time.perf_counter()
            _one_step(training_model, batcher, prompts[step * batch : (step + 1) * batch], packed=packed)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        report.wait()
        return time.perf_counter() - began


def _one_step(training_model: TrainingModel, batcher: Batcher, prompts: Sequence[Prompt], *, packed: bool) -> None:
    """Forward and backward over a step's samples."""
    ones = [np.ones(len(prompt.answer_positions), dtype=np.float32) for prompt in prompts]
    given = [TrainingSample(place, "", prompt, ones[place]) for place, prompt in enumerate(prompts)]
    needed = [each for each in map(trimmed, given) if each is not None]
    totals = Totals.of(ones)
    most = 16384 if next(training_model.parameters()).device.type == "cuda" else 2048
    for members in plan_by_kind(needed, max_tokens=most, packed=packed, whole_together=False):
        chosen = [needed[member] for member in members]
        shares = [coefficients(sample.weights_T, totals, "tokens") for sample in chosen]
        loss, _ = training_model(batcher(chosen, shares))
        loss.backward()


class _process_group:  # noqa: N801  # a context, as its uses read
    """One of a single process, which FSDP's mixed precision needs on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._needed = device.type == "cuda"

    def __enter__(self) -> None:
        if self._needed:
            self._folder = tempfile.TemporaryDirectory()
            torch.distributed.init_process_group(
                "nccl", init_method=f"file://{self._folder.name}/meet", rank=0, world_size=1
            )

    def __exit__(self, *_: Any) -> None:
        if self._needed:
            torch.distributed.destroy_process_group()
            self._folder.cleanup()


def theirs(
    report: Told, family: Family, prompts: Sequence[Prompt], dtype: torch.dtype, *, lora: bool, batch: int
) -> float:
    """Seconds of all steps but the first of transformers.Trainer, in mixed precision where `dtype` isn't float32."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    on_gpu, mixed = report.device == "cuda", dtype != torch.float32
    model = family.model(report.device, dtype if lora else torch.float32)
    _choose_weights(model, lora=lora)
    types = token_types_argument(model)
    ended: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            report.wait()
            ended.append(time.perf_counter())

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    def collated(chosen: Sequence[Prompt]) -> dict[str, Any]:
        longest = max(len(prompt.token_ids) for prompt in chosen)
        ids_BL = torch.zeros((len(chosen), longest), dtype=torch.int64)
        mask_BL, labels_BL, image_BL = torch.zeros_like(ids_BL), torch.full_like(ids_BL, -100), torch.zeros_like(ids_BL)
        for row, prompt in enumerate(chosen):
            length = len(prompt.token_ids)
            ids_BL[row, :length] = torch.from_numpy(prompt.token_ids)
            mask_BL[row, :length] = 1
            image_BL[row, :length] = torch.from_numpy(prompt.image_mask)
            labels_BL[row, prompt.answer_positions] = torch.from_numpy(prompt.answer_ids).long()
        images = [image.inputs for prompt in chosen for image in prompt.images]
        batch = {"input_ids": ids_BL, "attention_mask": mask_BL, "labels": labels_BL}
        batch |= {types: image_BL} if types else {}
        return batch | family.formatter.collate(images, "cpu", dtype if lora else torch.float32)

    rows = [
        prompt
        for step in range(STEPS)
        for prompt in sorted(prompts[step * batch : (step + 1) * batch], key=lambda prompt: -len(prompt.token_ids))
    ]
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out, per_device_train_batch_size=batch // 4, gradient_accumulation_steps=4, max_steps=STEPS,
            learning_rate=RATE, remove_unused_columns=False, report_to=[], use_cpu=not on_gpu, bf16=mixed,
            optim="adamw_torch_fused" if on_gpu else "adamw_torch", gradient_checkpointing=on_gpu,
            gradient_checkpointing_kwargs={"use_reentrant": False}, save_strategy="no", logging_strategy="no",
            disable_tqdm=True,
        )  # fmt: skip
        trainer = InOrder(model, arguments, train_dataset=rows, data_collator=collated)
        trainer.add_callback(Clock())
        trainer.train()
    return ended[-1] - ended[0]


def _choose_weights(model: Any, *, lora: bool) -> None:
    """What vig train trains: the projector and the language model, or adapters on its linear layers and the projector,
    in float32."""
    if lora:
        from peft import LoraConfig, inject_adapter_in_model

        decoder = {id(module) for module in model.get_decoder().modules()}
        linear = [
            name for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and id(module) in decoder
        ]  # fmt: skip
        options = LoraConfig(r=ADAPTERS.rank, lora_alpha=ADAPTERS.alpha, target_modules=linear)
        inject_adapter_in_model(options, model)
    for name, parameter in model.named_parameters():
        reads = any(part in name for part in ("projector", "merger"))
        tower = not reads and any(part in name for part in ("vision_tower", "visual."))
        parameter.requires_grad_(not tower and (not lora or "lora_" in name or reads))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
