"""What of a model is vision tower, projector and language model, by its structure.

transformers says where the encoder of images and the decoder are; embeddings and the output layer belong to the
language model, and what is left leads from the one to the other. The few exceptions are listed, each with its family.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import torch

from vig_ray.errors import StageError
from vig_ray.training.trained import tower_layers, trained_parts

Part = Literal["tower", "projector", "language", "unused"]

# Inside the encoder, and yet what leads out of it: Qwen's and GLM's merger.
_PROJECTOR_INSIDE = re.compile(r"(^|\.)(merger|deepstack_merger_list)\.")
# Beside the encoder, and yet a tower of its own: DeepSeek-VL hybrid's for high resolutions.
_TOWER_BESIDE = re.compile(r"^(model\.)?high_res_vision_\w+(\.|$)")
# All that there is between patches and the language model, where there is no tower: Fuyu's.
_PATCHES = re.compile(r"(^|\.)vision_embed_tokens\.")
# No part in reading images: the half of Janus that makes them, and hearing (Gemma 3n, Gemma 4).
_UNUSED = re.compile(r"(^|\.)(vqmodel|generation_(embeddings|aligner|head)|audio_tower|embed_audio)\.")


def parts_of(model: Any) -> dict[str, Part]:
    """The part that each parameter of `model` belongs to, by its name; by each of them where it is tied.

    A model that reads patches without a tower (Fuyu) has none. Raises StageError where the model doesn't say which of
    its modules reads images.
    """
    name = type(model).__name__
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    language = _ids(decoder, model.get_input_embeddings(), head)
    encoder = _encoder(model)
    if encoder is None and language >= _ids(model):  # a language model alone
        return {path: "language" for path, _ in model.named_parameters(remove_duplicate=False)}
    wanted = {"tower", "projector", "language"}
    if encoder is None or encoder is model or _ids(encoder) & language:
        if not any(_PATCHES.search(path) for path, _ in model.named_parameters()):
            raise StageError(f"{name}: doesn't say which of its modules reads images; it can be scored, not trained")
        encoder = None
        wanted.remove("tower")
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
    missing = wanted - set(parts.values())
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
    """The names of the parameters that are trained, `train` being what `--train` names.

    With `lora`, of the language model its adapters alone, and of the others what lies in modules of their own: a row's
    end (LLaVA-NeXT) is no module, so PEFT couldn't keep it. Raises StageError where the model hasn't got what is named.
    """
    chosen = trained_parts(train)
    for part in chosen:
        if part not in parts.values():
            raise StageError(f"--train {part}: a {type(model).__name__} has no {part}")
    layers = _tower_layers(model, parts, train)
    wanted = {
        name
        for name, part in parts.items()
        if part in chosen and (layers is None or part != "tower" or _inside(name, layers))
    }
    if not lora:
        return wanted
    beside = modules_beside(model, parts, train)
    return {name for name in wanted if is_adapter(name) or _inside(name, beside)}


def modules_beside(model: Any, parts: Mapping[str, Part], train: Collection[str]) -> list[str]:
    """The modules of projector and tower that are trained whole, by their paths; as `whole_modules`."""
    chosen, layers = trained_parts(train), _tower_layers(model, parts, train)
    found = whole_modules(model, parts, "projector") if "projector" in chosen else []
    if layers is not None:
        return [*found, *layers]
    return [*found, *(whole_modules(model, parts, "tower") if "tower" in chosen else [])]


def _tower_layers(model: Any, parts: Mapping[str, Part], train: Collection[str]) -> list[str] | None:
    """The paths of the layers that `tower:A..B` names, None where no range is named; counted from 0 in the largest list
    of modules that the tower has. Raises StageError where it hasn't so many."""
    wanted = tower_layers(train)
    if wanted is None:
        return None
    lists = {
        path: sum(parameter.numel() for parameter in module.parameters())
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and {parts[f"{path}.{name}"] for name, _ in module.named_parameters(remove_duplicate=False)} == {"tower"}
    }
    path = max(lists, key=lambda path: lists[path], default=None)
    count = len(model.get_submodule(path)) if path is not None else 0
    if path is None or wanted.stop > count:
        raise StageError(
            f"--train tower:{wanted.start}..{wanted.stop}: the vision tower has {count} layers, 0..{count} all of them"
        )
    return [f"{path}.{number}" for number in wanted]


def _inside(name: str, modules: Collection[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


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

    def told_of(names: list[str]) -> tuple[str, str]:
        """Part and state of what is alike in both, else two empty texts."""
        of = {parts[name] for name in names}
        told = state(names) if len(of) == 1 else None
        return (of.pop(), told) if told else ("", "")

    def add(path: str, label: str, names: list[str], depth: int) -> None:
        told = told_of(names)
        rows.append((f"{'  ' * depth}{label}", _count(sum(sizes[name] for name in names)), *told))
        if told[0]:
            return
        children: dict[str, list[str]] = {}
        for name in names:
            children.setdefault(name[len(path) + 1 if path else 0 :].partition(".")[0], []).append(name)
        for first, last, inside in _in_runs(children, told_of):
            below = f"{path}.{first}" if path else first
            add(below, first if first == last else f"{first}..{int(last) + 1}", inside, depth + 1)

    add("", type(model).__name__, list(sizes), 0)
    widest = max(len(label) for label, *_ in rows)
    lines = [f"{label:<{widest}}  {size:>8}  {part:<9}  {told}".rstrip() for label, size, part, told in rows]
    whole, active = sum(sizes.values()), sum(size for name, size in sizes.items() if name in trained)
    return "\n".join([*lines, f"{_count(active)} of {_count(whole)} parameters are trained"])


def _in_runs(
    children: Mapping[str, list[str]], told_of: Callable[[list[str]], tuple[str, str]]
) -> list[tuple[str, str, list[str]]]:
    """Layers one after the other that are told alike as one: the first's number, the last's, and all their names."""
    runs: list[tuple[str, str, list[str]]] = []
    before = ("", "")
    for child, inside in children.items():
        told = told_of(inside)
        if child.isdigit() and runs and told == before and told[0] and runs[-1][1] == str(int(child) - 1):
            runs[-1] = (runs[-1][0], child, [*runs[-1][2], *inside])
        else:
            runs.append((child, child, inside))
        before = told
    return runs


def _rate(rate: float) -> str:
    mantissa, _, exponent = f"{rate:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if rate < 1e-3 else f"{rate:g}"


def _count(parameters: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.2f} {name}"
    return str(parameters)
