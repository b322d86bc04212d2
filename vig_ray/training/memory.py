"""What training takes of a device's memory, by arithmetic, and what `--gradient-sync step` adds to it.

What `memory_of` counts for a worker, `how` being a `How`. A parameter of n elements in r rows is shared by rows, so
that a worker has n' = ceil(r / workers) / r n of them; s are the bytes of `how.dtype`.

- weights: 4 n' where it is trained (float32), else s n'; in nf4, whole on each worker, n / 2 + b + 4 ceil(b / 256)
  with b = ceil(n / 64) scales of 8 bits and their own scales, and 1,092 for the tables of values and the mean.
- gradients: 4 n' of what is trained; 4 n more where they are kept whole until a step's end.
- optimizer: 8 n' for AdamW's moments and 4 for the count of steps; in 8 bits 2 (n' + 4 n' / block + 1024) + 4 of
  each matrix whose rows come out even (`block_of`). With `offload` the three above, but for nf4, are in `host`.
- gathered: what of the model is whole at a time, in `how.dtype`: all but the decoder layers, from the forward's
  start to the backward's end, two layers, of which one is gathered ahead, and of the unit with the most trained
  weights their gradients in `how.dtype` and in float32, as they are added up. Of nf4 the largest matrix, for a
  product. One worker in float32 gathers nothing.
- activations, for each of `how.tokens` tokens (D width, Q and K width of queries and of keys, I width of the MLP):
  a decoder layer keeps 8 D + s (4 D + 3 Q + 2 K + 4 I) for its backward pass: the norms' inputs in float32; the
  norms' outputs and what they scale; queries, keys and values, the attention's output twice; the MLP's gate, up,
  the gate's activation and their product. Recomputed, s D a layer are kept and the above of one, else of all; and
  s (3 I + 2 D) for gradients under way. The tower's layers that are trained likewise, as many tokens long. In
  front and behind, D (4 + 5 s): embeddings, projector, last norm. With `How.vdep`, as if all tokens were an image's:
  2 s D, the states that predict and their targets, and s D for the gradient of each that has one; and 16 bytes an
  element of the chunk whose differences exist at a time.
- logits: 2 s + 12 bytes an element of the chunk that exists at a time: in `how.dtype`, in float32, their
  log-softmax, and both gradients.

Left out, 1 to 3 GB: CUDA's context and NCCL's buffers, the images themselves, adapters' outputs (of their rank),
and what the allocator wastes. The formula of activations is a dense Llama's; other decoders are told as such.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from vig_ray.errors import StageError
from vig_ray.training.config import vdep_of
from vig_ray.training.next_token import LOGITS_AT_ONCE
from vig_ray.training.optimizer import block_of
from vig_ray.training.options import TrainingOptions
from vig_ray.training.parts import parts_of
from vig_ray.training.sharding import GRADIENT_DTYPE
from vig_ray.training.training_model import TrainingModel
from vig_ray.training.vdep import ELEMENTS_AT_ONCE

Optimizer = Literal["adamw", "adamw8bit"]

WORKERS = (1, 2, 4, 8)
"""The numbers of workers that are told of."""

_MOMENTS = 2
_STEP = 4  # bytes of an optimizer's count of a parameter's updates
_TABLE = 256 * 4  # bytes of the values that 8 bits stand for, of each moment
_TRAINED = 4  # bytes: float32, whatever the forward's precision


@dataclass(frozen=True)
class How:
    """What of a run decides its memory. `tokens`: of one microbatch; `recompute`: activations, in the backward pass.
    `vdep`: its targets, None with another objective."""

    dtype: torch.dtype = torch.bfloat16
    optimizer: Optimizer = "adamw"
    offload: bool = False
    recompute: bool = True
    tokens: int = 16384
    whole_gradients: bool = False
    vdep: Literal["detached", "live"] | None = None

    @classmethod
    def of(cls, config: TrainingOptions) -> How:
        """As a run with these options has it: on GPUs, unless it asks for CPUs."""
        on_gpu, vdep = config.device != "cpu", vdep_of(config)
        return cls(
            getattr(torch, config.dtype or ("bfloat16" if on_gpu else "float32")),
            config.optimizer,
            config.offload_optimizer,
            config.recomputes(on_gpu),
            config.microbatch_tokens(on_gpu),
            config.gradient_sync == "step",
            vdep.vdep_target if vdep else None,
        )

    def text(self) -> str:
        """For a person."""
        kept = "computed again" if self.recompute else "kept"
        dtype = str(self.dtype).removeprefix("torch.")
        images = ", VDEP's of image tokens" if self.vdep else ""
        return f"{dtype}, microbatches of {self.tokens:,} tokens, activations {kept}{images}"


class Memory(NamedTuple):
    """Bytes that one worker takes of its device, and `host` of its machine's memory; see `memory_of`."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    host: int

    @property
    def device(self) -> int:
        """All that lies on the device."""
        return sum(self) - self.host


def memory_of(
    model: Any,
    layers: Iterable[torch.nn.Module],
    trained: Collection[str],
    how: How,
    *,
    workers: int = 1,
    quantised: Collection[str] = (),
) -> Memory:
    """What each of `workers` takes to train `model`, which may lie on torch's meta device: see above.

    `layers`: its decoder layers, the units that FSDP2 shards; `trained` and `quantised`: names of its parameters.
    """
    sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
    item = how.dtype.itemsize
    shares = {name: _share(shape, workers) for name, shape in sizes.items()}
    nf4 = sum(nf4_bytes(sizes[name].numel()) for name in quantised)
    weights = sum(
        share * (_TRAINED if name in trained else item) for name, share in shares.items() if name not in quantised
    )
    gradients = sum(shares[name] for name in trained) * GRADIENT_DTYPE.itemsize
    moments = sum(state_bytes(sizes[name], shares[name], how.optimizer) for name in trained)
    whole = how.whole_gradients and workers > 1
    held = sum(sizes[name].numel() for name in trained) * GRADIENT_DTYPE.itemsize if whole else 0
    sharded = workers > 1 or how.dtype != torch.float32 or how.offload
    gathered = _gathered(model, layers, trained, quantised, item) if sharded else 0
    gathered += max((sizes[name].numel() for name in quantised), default=0) * item
    layers_of_tower = _layers_of_tower(model, trained)
    vocabulary = int(model.config.get_text_config().vocab_size)
    rows = min(how.tokens, max(1, LOGITS_AT_ONCE // vocabulary))
    return Memory(
        weights=nf4 if how.offload else weights + nf4,
        gradients=held if how.offload else gradients + held,
        optimizer=0 if how.offload else moments,
        gathered=gathered,
        activations=_activations(model.config, layers_of_tower, how),
        logits=rows * vocabulary * (2 * item + 12),
        host=weights + gradients + moments if how.offload else 0,
    )


def _share(shape: torch.Size, workers: int) -> int:
    """Elements that the first worker has of a parameter of this shape."""
    rows = shape[0] if shape else 1
    return -(-rows // workers) * (shape.numel() // rows) if rows else 0


def state_bytes(shape: torch.Size, share: int, optimizer: Optimizer) -> int:
    """Bytes of the optimizer's state of `share` elements of a parameter of this shape."""
    block = block_of(shape) if optimizer == "adamw8bit" else None
    if block is None or not share:
        return _MOMENTS * 4 * share + _STEP
    return _MOMENTS * (share + 4 * share // block + _TABLE) + _STEP


def nf4_bytes(elements: int) -> int:
    """Bytes of a matrix in nf4 with double quantisation: 4 bits an element, 8 a scale of 64, 32 a scale of 256 scales,
    the 16 values of 4 bits, the 256 of 8, and the scales' mean."""
    scales = -(-elements // 64)
    return -(-elements // 2) + scales + 4 * -(-scales // 256) + 4 * (16 + 256 + 1)


def _gathered(
    model: Any, layers: Iterable[torch.nn.Module], trained: Collection[str], quantised: Collection[str], item: int
) -> int:
    names = {parameter: name for name, parameter in model.named_parameters()}
    units = [[names[parameter] for parameter in layer.parameters()] for layer in layers]
    of_layers = {name for unit in units for name in unit}
    rest = [name for name in names.values() if name not in of_layers]
    sizes = {name: parameter.numel() for parameter, name in names.items() if name not in quantised}

    def of(unit: Iterable[str], among: Collection[str]) -> int:
        return sum(sizes[name] for name in unit if name in sizes and name in among)

    ahead = sorted((of(unit, sizes) for unit in units), reverse=True)[:2]
    under_way = max(of(unit, trained) for unit in [*units, rest])
    return (of(rest, sizes) + sum(ahead)) * item + under_way * (item + GRADIENT_DTYPE.itemsize)


def _layers_of_tower(model: Any, trained: Collection[str]) -> int:
    """How many of the vision tower's layers have something that is trained."""
    if getattr(model.config, "vision_config", None) is None:
        return 0
    parts = parts_of(model)
    inside = [re.match(r"(.*?\.\d+)\.", name) for name in trained if parts[name] == "tower"]
    return len({match[1] for match in inside if match is not None})


def _activations(config: Any, layers_of_tower: int, how: How) -> int:
    text, item = config.get_text_config(), how.dtype.itemsize
    kept, once = _of_layers(text, int(text.num_hidden_layers), how)
    if layers_of_tower:
        kept_by_tower, once_by_tower = _of_layers(config.vision_config, layers_of_tower, how)
        kept, once = kept + kept_by_tower, max(once, once_by_tower)
    width = int(text.hidden_size)
    return how.tokens * (kept + once + width * (4 + 5 * item)) + _of_images(width, how)


def _of_images(width: int, how: How) -> int:
    """Bytes that VDEP takes beside the decoder."""
    if how.vdep is None:
        return 0
    elements, with_gradient = how.tokens * width, 2 if how.vdep == "live" else 1
    return elements * how.dtype.itemsize * (2 + with_gradient) + 16 * min(elements, ELEMENTS_AT_ONCE)


def _of_layers(config: Any, layers: int, how: How) -> tuple[int, int]:
    """Bytes a token that `layers` layers keep until their backward pass, and that one of them takes then."""
    item, width = how.dtype.itemsize, int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", 1))
    head = int(getattr(config, "head_dim", None) or width // heads)
    queries, keys = heads * head, int(getattr(config, "num_key_value_heads", None) or heads) * head
    mlp = getattr(config, "intermediate_size", 4 * width)
    mlp = int(max(mlp) if isinstance(mlp, Sequence) else mlp)
    whole = 8 * width + item * (4 * width + 3 * queries + 2 * keys + 4 * mlp)
    under_way = item * (3 * mlp + 2 * width)
    return (layers * item * width, whole + under_way) if how.recompute else (layers * whole, under_way)


def memory_table(of_workers: dict[int, Memory], how: How, device: str) -> str:
    """The memory by the number of workers, for a person; `device`: what of it one worker has."""
    largest = max(max(each.device, each.host) for each in of_workers.values())
    size, unit = (1e9, "GB") if largest >= 1e9 else (1e6, "MB")
    offloaded = any(each.host for each in of_workers.values())
    names = [*Memory._fields[:-1], "all", *(["host"] if offloaded else [])]
    lines = [
        f"memory of a {device} in {unit} ({how.text()}):",
        "  ".join(["workers", *(f"{name:>{max(7, len(name))}}" for name in names)]),
    ]
    for workers, each in of_workers.items():
        figures = [*each[:-1], each.device, *([each.host] if offloaded else [])]
        cells = [f"{figure / size:>{max(7, len(name))},.2f}" for name, figure in zip(names, figures, strict=True)]
        lines.append("  ".join([f"{workers:>7}", *cells]))
    return "\n".join(lines)


def whole_gradients(
    training_model: TrainingModel,
    workers: int,
    free: float,
    *,
    optimizer: Optimizer = "adamw",
    offload: bool = False,
) -> int:
    """The bytes of the gradients that each worker keeps whole until a step's end.

    `free`: bytes that the fullest device has left for them, before the first step. Raises StageError where they don't
    fit beside the worker's share of gradients and optimizer state, which with `offload` lies elsewhere; what
    activations need is not known.
    """
    shapes = [parameter.shape for parameter in training_model.parameters() if parameter.requires_grad]
    whole = sum(shape.numel() for shape in shapes) * GRADIENT_DTYPE.itemsize
    state = sum(state_bytes(shape, shape.numel(), optimizer) - _STEP for shape in shapes)
    share = 0.0 if offload else (whole + state) / workers
    if whole + share > free:
        raise StageError(
            f"--gradient-sync step: {whole / 1e9:,.1f} GB of whole gradients and {share / 1e9:,.1f} GB of optimizer "
            f"state don't fit into the {free / 1e9:,.1f} GB that are free on a device; take --gradient-sync "
            "microbatch, which keeps a share of them on each worker, or --lora"
        )
    return whole


def free_bytes(device: torch.device) -> float:
    """What can still be allocated on a GPU, torch's own reserve included; infinity for a CPU, where nobody knows."""
    if device.type != "cuda":
        return math.inf
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + reserve)
