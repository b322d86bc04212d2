"""From one checkpoint to a model that is spread over all workers, read by the first of them alone.

The first worker loads the model into its host memory, as it is stored; the others build it without weights, on torch's
meta device. Then it is sharded unit by unit (FSDP2): a unit's tensors go from the first worker to the devices of all,
become what they are trained in, and are cut into shards. So the host memory of all machines together holds one model,
however many workers they have, and a device holds one unit more than its shards.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from vig_ray.errors import StageError
from vig_ray.model.head import applied_softcap
from vig_ray.model.load import load_model, without_weights
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.training_model import TrainingModel

# What gradients are added up in, over microbatches and over workers.
GRADIENT_DTYPE = torch.float32


def read_by_one(
    checkpoint: str, distributed: DistributedContext, *, text_only: bool = False
) -> tuple[Any, float | None]:
    """The checkpoint's model on the CPU, in the precision it is stored in, and the soft cap of its logits.

    Workers other than the first get the same model without weights. `text_only`: it is a language model. Raises
    StageError, on every worker, where the first one can't load it.
    """
    model: Any = None
    softcap: float | None = None
    failure: StageError | None = None
    if distributed.rank == 0:
        try:
            model = load_model(checkpoint, dtype="auto", device="cpu", text_only=text_only)
            softcap = applied_softcap(model)
        except StageError as error:
            failure = error
    softcap, failure = distributed.gather_objects((softcap, failure))[0]
    if failure is not None:
        raise failure
    if model is None:
        try:
            model = without_weights(checkpoint, text_only=text_only)
        except StageError as error:
            raise StageError(f"{error}; several workers need it so, train with --workers 1") from error
    return model, softcap


def shard(
    training_model: TrainingModel,
    distributed: DistributedContext,
    dtype: torch.dtype,
    *,
    quantise: bool = False,
    offload: bool = False,
) -> bool:
    """Spread weights, gradients and optimizer state over all workers (FSDP2); returns whether it did.

    One unit a decoder layer, and one for the rest. All values are the first worker's. Weights that are trained become
    float32, whatever the checkpoint's precision; forward and backward run in `dtype`. A single worker in float32 needs
    no FSDP.

    `quantise`: put the linear layers under adapters in nf4; these every worker keeps whole, on its device. `offload`:
    keep each worker's share of all else, with its gradients and optimizer state, in the memory of its machine.

    Raises StageError, on every worker, where a model built without weights has other tensors than the loaded one.
    """
    tensors = _same_everywhere(training_model, distributed)
    sharded = distributed.workers > 1 or dtype != torch.float32 or offload
    mesh = init_device_mesh(distributed.device.type, (distributed.workers,)) if sharded else None
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=GRADIENT_DTYPE, cast_forward_inputs=False)
    host = CPUOffloadPolicy(pin_memory=distributed.device.type == "cuda") if offload else OffloadPolicy()
    names = {module: name for name, module in training_model.named_modules()}
    filled: set[torch.nn.Module] = set()
    kept_whole: set[torch.nn.Parameter] = set()
    for unit in [*training_model.layers(), training_model]:
        modules = [module for module in unit.modules() if module not in filled]
        _fill({names[module]: module for module in modules}, tensors, distributed)
        filled.update(modules)
        if quantise:
            layers = _in_nf4(modules, dtype)
            filled.update(layers)
            kept_whole.update(layer.weight for layer in layers)
        if mesh is not None:
            fully_shard(unit, mesh=mesh, mp_policy=precision, offload_policy=host, ignored_params=kept_whole)
    return sharded


def _in_nf4(modules: Iterable[torch.nn.Module], dtype: torch.dtype) -> list[Any]:
    """Put the linear layers that these modules adapt in nf4, one after the other; returns what took their place."""
    from vig_ray.compat.bitsandbytes import Nf4Linear

    quantised: list[Any] = []
    for module in modules:
        linear = getattr(module, "base_layer", None)
        if isinstance(linear, torch.nn.Linear):
            module.base_layer = Nf4Linear(linear, dtype)
            quantised.append(module.base_layer)
    return quantised


class _Tensor(NamedTuple):
    """A parameter or buffer; `first`: the name of the first place where it hangs, its own unless it is tied."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_parameter: bool
    trained: bool
    first: str


def _places(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The parameters and buffers that hang at a module itself, also those that hang elsewhere too."""
    return [
        *module.named_parameters(recurse=False, remove_duplicate=False),
        *module.named_buffers(recurse=False, remove_duplicate=False),
    ]


def _same_everywhere(training_model: TrainingModel, distributed: DistributedContext) -> dict[str, _Tensor]:
    """The first worker's tensors by their names, which all others' are to become: names and shapes must agree."""
    tensors: dict[str, _Tensor] = {}
    first: dict[int, str] = {}
    for path, module in training_model.named_modules():
        for name, tensor in _places(module):
            where = f"{path}.{name}"
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            tensors[where] = _Tensor(
                tuple(tensor.shape),
                tensor.dtype,
                is_parameter,
                tensor.requires_grad,
                first.setdefault(id(tensor), where),
            )
    everyone: list[dict[str, _Tensor]] = distributed.gather_objects(tensors)
    shapes = [
        {where: (tensor.shape, tensor.is_parameter) for where, tensor in described.items()} for described in everyone
    ]
    for other in shapes[1:]:
        odd = sorted(dict(shapes[0].items() ^ other.items()))
        if odd:
            raise StageError(
                f"{type(training_model.model).__name__} has other tensors after loading than when it is built from its "
                f"config, {odd[0]} among them: several workers can't share it; train with --workers 1"
            )
    return everyone[0]


def _fill(modules: dict[str, torch.nn.Module], tensors: dict[str, _Tensor], distributed: DistributedContext) -> None:
    """Put the first worker's parameters and buffers of these modules, which `tensors` describes, on every worker's
    device, in float32 where they are trained.

    Buffers that no state dict has (frequencies of rotary positions) go the same way. A tensor that hangs in several
    places (tied embeddings) is sent once, and hangs in the same places on every worker.
    """
    filled: dict[str, torch.Tensor] = {}
    for path, module in modules.items():
        for name, tensor in _places(module):
            where = f"{path}.{name}"
            described = tensors[where]
            if described.first not in filled:
                filled[described.first] = _received(tensor, described, distributed)
            setattr(module, name, filled[described.first])


def _received(tensor: torch.Tensor, described: _Tensor, distributed: DistributedContext) -> torch.Tensor:
    """The first worker's value of a tensor, on this worker's device."""
    if distributed.rank == 0:
        value = tensor.detach().to(distributed.device).contiguous()
    else:
        value = torch.empty(described.shape, dtype=described.dtype, device=distributed.device)
    if distributed.workers > 1 and value.numel():
        dist.broadcast(value.view(-1).view(torch.uint8), src=0)  # as bytes: not every backend knows every type
    if not described.is_parameter:
        return value
    return torch.nn.Parameter(value.float() if described.trained else value, requires_grad=described.trained)
