"""What fits one GPU: the memory that each way of training takes, by the arithmetic of `vig_ray.training.memory`.

python -m benchmarks.memory prints the tables of docs/training.md: LLaVA-1.5 7B, and an 8B Llama 3 trained on text. The
models lie on torch's meta device: no weights, no GPU, half a minute.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.llava_shape import llava
from vig_ray.training.memory import WORKERS, How, Memory, memory_of
from vig_ray.training.parts import adapted_weights
from vig_ray.training.training_model import Lora, TrainingModel

ADAPTERS = Lora(128, 256.0)


class Case(NamedTuple):
    """A row: what is trained and how, the parameters that are trained, and the memory by the number of workers."""

    name: str
    trained: int
    memory: dict[int, Memory]


def _of(name: str, model: Any, layers: Any, trained: set[str], how: How, quantised: set[str] | None = None) -> Case:
    sizes = {each: parameter.numel() for each, parameter in model.named_parameters()}
    found = {
        workers: memory_of(model, layers, trained, how, workers=workers, quantised=quantised or set())
        for workers in WORKERS
    }
    return Case(name, sum(sizes[each] for each in trained), found)


def llava_7b(lora: Lora | None = None, train: tuple[Any, ...] = ("projector", "language")) -> TrainingModel:
    """LLaVA-1.5 7B in training, on the meta device."""
    return TrainingModel(llava("7b").model("meta", torch.bfloat16), pack=False, lora=lora, train=train)


def llama_8b() -> Any:
    """Llama 3 8B, on the meta device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=8192,
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def _trained(made: TrainingModel, also: Callable[[str], bool] = lambda _: False) -> set[str]:
    return {name for name, parameter in made.model.named_parameters() if parameter.requires_grad or also(name)}


def _upper_half(name: str) -> bool:
    """Whether a parameter is of layers 12 to 23 of the vision tower."""
    layer = re.search(r"vision_tower\..*layers\.(\d+)\.", name)
    return layer is not None and int(layer[1]) >= 12


def cases() -> Iterator[Case]:
    """Every row of the docs' table."""
    whole, plain = llava_7b(), How()
    ways = {"AdamW": plain, "8-bit AdamW": How(optimizer="adamw8bit"), "offloaded": How(offload=True)}
    for name, how in ways.items():
        yield _of(f"all weights, {name}", whole.model, whole.layers(), _trained(whole), how)
    adapted = llava_7b(ADAPTERS)
    of_adapters = adapted.model, adapted.layers(), _trained(adapted)
    yield _of("LoRA", *of_adapters, plain)
    nf4 = adapted_weights(adapted.model)
    yield _of("QLoRA", *of_adapters, plain, nf4)
    yield _of("QLoRA, 8-bit AdamW", *of_adapters, How(optimizer="adamw8bit"), nf4)
    align = llava_7b(train=("projector",))
    yield _of("alignment, the projector", align.model, align.layers(), _trained(align), plain)
    upper = _trained(whole, _upper_half)
    yield _of("alignment as ShareGPT4V", whole.model, whole.layers(), upper, plain)
    text = llama_8b()
    yield _of("Llama 3 8B on text", text, text.model.layers, {name for name, _ in text.named_parameters()}, plain)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"


def text(rows: Iterable[Case]) -> str:
    """The table of the docs, in Markdown."""
    lines = [
        "| | trained | weights | gradients | optimizer | gathered | activations, logits | **one GPU** | 2 | 4 | 8 "
        "| host, one GPU |",
        "|" + "---|" * 12,
    ]
    for name, trained, memory in rows:
        one = memory[1]
        parts = [one.weights, one.gradients, one.optimizer, one.gathered, one.activations + one.logits]
        cells = [*map(_gb, parts), f"**{_gb(one.device)}**", *(_gb(memory[workers].device) for workers in WORKERS[1:])]
        lines.append(f"| {name} | {trained:,} | {' | '.join(cells)} | {_gb(one.host) if one.host else ''} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(text(cases()))
