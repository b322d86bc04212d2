"""What of a model is vision tower, projector and language model, by its structure.

transformers says where the encoder of images and the decoder are; embeddings and the output layer belong to the
language model, and what is left leads from the one to the other. The few exceptions are listed, each with its family.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch

from vig_ray.errors import StageError

Part = Literal["tower", "projector", "language", "unused"]

# Inside the encoder, and yet what leads out of it: Qwen's and GLM's merger.
_PROJECTOR_INSIDE = re.compile(r"(^|\.)(merger|deepstack_merger_list)\.")
# Beside the encoder, and yet a tower of its own: DeepSeek-VL hybrid's for high resolutions.
_TOWER_BESIDE = re.compile(r"^(model\.)?high_res_vision_\w+(\.|$)")
# No part in reading images: the half of Janus that makes them, and hearing (Gemma 3n, Gemma 4).
_UNUSED = re.compile(r"(^|\.)(vqmodel|generation_(embeddings|aligner|head)|audio_tower|embed_audio)\.")


def parts_of(model: Any) -> dict[str, Part]:
    """The part that each parameter of `model` belongs to, by its name; by each of them where it is tied.

    Raises StageError where the model doesn't say which of its modules reads images.
    """
    name = type(model).__name__
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    language = _ids(decoder, model.get_input_embeddings(), head)
    encoder = _encoder(model)
    if encoder is None or encoder is model or _ids(encoder) & language:
        raise StageError(f"{name}: doesn't say which of its modules reads images; it can be scored, not trained")
    tower = _ids(encoder)
    parts: dict[str, Part] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in language:
            parts[path] = "language"
        elif _UNUSED.search(path):
            parts[path] = "unused"
        elif _TOWER_BESIDE.search(path) or (id(parameter) in tower and not _PROJECTOR_INSIDE.search(path)):
            parts[path] = "tower"
        else:
            parts[path] = "projector"
    missing = {"tower", "projector", "language"} - set(parts.values())
    if missing:
        raise StageError(f"{name}: no parameter is of its {', '.join(sorted(missing))}; it can be scored, not trained")
    return parts


def _encoder(model: Any) -> Any:
    holders: tuple[Any, ...] = (model, getattr(model, "model", None))
    for holder in holders:
        if hasattr(holder, "get_encoder"):
            found = holder.get_encoder(modality="image")
            if found is not None and found is not holder:
                return found
    return None


def _ids(*modules: Any) -> set[int]:
    return {id(parameter) for module in modules if module is not None for parameter in module.parameters()}


def trained_names(model: Any, parts: Mapping[str, Part], train: Collection[str], *, lora: bool) -> set[str]:
    """The names of the parameters that are trained. With `lora`, of the language model its adapters alone, and of the
    others what lies in modules of their own: a row's end (LLaVA-NeXT) is no module, so PEFT couldn't keep it."""
    if not lora:
        return {name for name, part in parts.items() if part in train}
    modules = [module for part in ("projector", "tower") for module in whole_modules(model, parts, part)]
    inside = {name for name in parts if any(name.startswith(f"{module}.") for module in modules)}
    adapters = {name for name in parts if is_adapter(name)}
    kept = adapters | inside
    return {name for name, part in parts.items() if part in train and name in kept}


def is_adapter(name: str) -> bool:
    """Whether a parameter is LoRA's."""
    return ".lora_" in name


def adapted_weights(model: Any) -> set[str]:
    """The names of the weights under LoRA's adapters, those of the language model's linear layers."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if name.endswith(".base_layer") and isinstance(module, torch.nn.Linear)
    }


def whole_modules(model: Any, parts: Mapping[str, Part], part: str) -> list[str]:
    """The highest modules all of whose parameters are of `part`, by their paths; no single parameters, and of a list of
    modules each by itself, since PEFT keeps no lists."""
    found: list[str] = []
    of = {id(parameter): parts[name] for name, parameter in model.named_parameters()}
    lists = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.ParameterList, torch.nn.ParameterDict)
    for path, module in model.named_modules():
        if isinstance(module, lists) or any(path.startswith(f"{above}.") for above in found):
            continue
        below = {of[id(parameter)] for parameter in module.parameters()}
        if below == {part}:
            found.append(path)
    return found


def tree(model: Any, parts: Mapping[str, Part], trained: set[str], rates: Mapping[str, float]) -> str:
    """The model's modules down to where a part begins, with its size and whether it is trained: for a person.

    `trained`: names of parameters; `rates`: the highest learning rate of each part. Adapters are told by their number.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    adapters = {name for name in sizes if is_adapter(name)}
    rows: list[tuple[str, str, str, str]] = []

    def state(names: list[str]) -> str | None:
        """None where it isn't one of all."""
        part = parts[names[0]]
        at = f"trained at {_rate(rates[part])}" if part in rates else ""
        added = [name for name in names if name in adapters]
        if added:
            return f"adapters of {_count(sum(sizes[name] for name in added))} {at}"
        count = sum(name in trained for name in names)
        if count == len(names):
            return at
        if count:
            return None
        return (
            "frozen: PEFT can't keep it"
            if adapters and part in {parts[name] for name in trained - adapters}
            else "frozen"
        )

    def add(path: str, names: list[str], depth: int) -> None:
        label, size = path.rpartition(".")[2] or type(model).__name__, _count(sum(sizes[name] for name in names))
        of = {parts[name] for name in names}
        told = state(names) if len(of) == 1 else None
        rows.append((f"{'  ' * depth}{label}", size, of.pop() if told else "", told or ""))
        if told:
            return
        children: dict[str, list[str]] = {}
        for name in names:
            child = name[len(path) + 1 if path else 0 :].partition(".")[0]
            children.setdefault(f"{path}.{child}" if path else child, []).append(name)
        for child, inside in children.items():
            add(child, inside, depth + 1)

    add("", list(sizes), 0)
    widest = max(len(label) for label, *_ in rows)
    lines = [f"{label:<{widest}}  {size:>8}  {part:<9}  {told}".rstrip() for label, size, part, told in rows]
    whole, active = sum(sizes.values()), sum(size for name, size in sizes.items() if name in trained)
    return "\n".join([*lines, f"{_count(active)} of {_count(whole)} parameters are trained"])


def _rate(rate: float) -> str:
    mantissa, _, exponent = f"{rate:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if rate < 1e-3 else f"{rate:g}"


def _count(parameters: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.2f} {name}"
    return str(parameters)
