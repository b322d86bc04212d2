"""The arithmetic of memory: against the tensors that torch really has, and for LLaVA-1.5 7B as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from benchmarks import memory as benchmark
from tests.docs.pages import ROOT
from tests.training.runs import Beginning, held, setup_of, together
from tests.training.test_checkpoints import ALONE
from vig_ray.demo import CHECKPOINT
from vig_ray.model.load import without_weights
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.config import TrainConfig
from vig_ray.training.memory import WORKERS, How, Memory, memory_of
from vig_ray.training.parts import adapted_weights
from vig_ray.training.run import Setup
from vig_ray.training.training_model import Lora, TrainingModel
from vig_ray.training.vdep import ImageEmbeddings
from vig_ray.training.worker import train

LORA: dict[str, Any] = {"lora": True, "lora_rank": 64, "lora_alpha": 64.0}
RUNS: dict[str, dict[str, Any]] = {
    "all": {},
    "8 bits": {"optimizer": "adamw8bit"},
    "tower": {"train": ("projector", "language", "tower"), "dtype": "bfloat16"},
    "adapters": LORA,
    "nf4": LORA | {"quantise": "nf4", "optimizer": "adamw8bit"},
}


def expected_of(setup: Setup, workers: int) -> Memory:
    """By a model without weights."""
    config = setup.config
    lora = Lora(config.lora_rank, config.lora_alpha) if config.lora else None
    made = TrainingModel(without_weights(CHECKPOINT), pack=False, lora=lora, train=config.train)
    trained = {name for name, parameter in made.model.named_parameters() if parameter.requires_grad}
    quantised = adapted_weights(made.model) if config.quantise else set()
    how = How(getattr(torch, setup.dtype), config.optimizer, tokens=2048)
    return memory_of(made.model, made.layers(), trained, how, workers=workers, quantised=quantised)


def test_one_worker_has_what_was_reckoned(chosen: Path, tmp_path: Path) -> None:
    """Weights, gradients and optimizer state to the last byte."""
    for name in ("all", "8 bits", "nf4"):
        setup = setup_of(chosen, max_steps=2, global_batch=2, **RUNS[name])
        began = Beginning()
        manager = CheckpointManager(str(tmp_path / name), keep=1, distributed=ALONE)
        found = held(train(setup, ALONE, manager, began))
        memory = expected_of(setup, 1)
        assert (found["weights"], began.gradients, found["optimizer"]) == memory[:3], name


@pytest.mark.long
def test_each_of_several_workers_has_what_was_reckoned(chosen: Path, tmp_path: Path) -> None:
    """The first has the most, where rows don't come out even."""
    setups = {name: setup_of(chosen, max_steps=2, global_batch=4, **options) for name, options in RUNS.items()}
    for name, left in together(3, tmp_path, setups).items():
        found = left["held"]["weights"], left["began"]["gradients"], left["held"]["optimizer"]
        assert found == expected_of(setups[name], 3)[:3], name


@pytest.mark.parametrize(("heads", "keys"), [(8, 8), (8, 2)])
def test_what_a_layer_keeps_for_its_backward_pass(heads: int, keys: int) -> None:
    """The formula of activations against what autograd saves of a Llama's layer in bfloat16."""
    config = LlamaConfig(
        hidden_size=256, intermediate_size=688, num_attention_heads=heads, num_key_value_heads=keys,
        num_hidden_layers=1, vocab_size=64, attn_implementation="sdpa",
    )  # fmt: skip
    layer = LlamaDecoderLayer(config, 0).bfloat16()
    tokens = 512
    hidden = torch.randn(1, tokens, 256).bfloat16().requires_grad_()
    rotations = LlamaRotaryEmbedding(config)(hidden, torch.arange(tokens)[None])
    given = {tensor.untyped_storage().data_ptr() for tensor in (*layer.parameters(), *rotations)}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(hidden, position_embeddings=rotations)
    assert output.shape == hidden.shape

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.layers = config, torch.nn.ModuleList([layer])

    memory = memory_of(Model(), [layer], set(), How(recompute=False, tokens=tokens))
    beside = tokens * (2 * (3 * 688 + 2 * 256) + 256 * (4 + 5 * 2))  # gradients under way, and what isn't the layer's
    assert sum(saved.values()) == pytest.approx(memory.activations - beside, rel=0.1)


@pytest.mark.parametrize("target", ["detached", "live"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_vdep_takes_of_its_states_and_targets(dtype: torch.dtype, target: Any) -> None:
    """Against the most that torch's profiler sees allocated at a time."""
    tokens, width = 512, 256
    states, embeddings = (torch.randn(tokens, width).to(dtype).requires_grad_() for _ in range(2))
    objective = ImageEmbeddings(factor=1.0, reduction="sum", shift=0, live=target == "live", layer=None)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        state_ND, target_ND = states[torch.arange(tokens)], embeddings[torch.arange(tokens)]
        loss, _ = objective.sum(state_ND, target_ND, torch.ones(tokens), lambda hidden: hidden, 0)
        loss.backward()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    config = LlamaConfig(hidden_size=width, intermediate_size=64, num_hidden_layers=1, vocab_size=64)
    model = torch.nn.Module()
    model.config = config
    how = How(dtype, tokens=tokens)
    with_it, without = (memory_of(model, [], set(), each).activations for each in (replace(how, vdep=target), how))
    assert 0.7 < max(np.cumsum(sizes)) / (with_it - without) <= 1


@pytest.fixture(scope="module")
def cases() -> dict[str, benchmark.Case]:
    return {case.name: case for case in benchmark.cases()}


def test_a_7b_trains_what_the_papers_train(cases: dict[str, benchmark.Case]) -> None:
    whole = benchmark.llava_7b()
    sizes = {name: parameter.numel() for name, parameter in whole.model.named_parameters()}
    tower = sum(size for name, size in sizes.items() if "vision_tower" in name)
    assert sum(sizes.values()) == 7_063_427_072
    assert cases["alignment, the projector"].trained == 20_979_712
    assert cases["all weights, AdamW"].trained == 7_063_427_072 - tower
    # r (in + out) of seven matrices a layer.
    adapters = 32 * 128 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert cases["LoRA"].trained == cases["QLoRA"].trained == adapters + 20_979_712
    # A layer of CLIP's: four projections with biases, an MLP, two norms.
    layer = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
    assert cases["alignment as ShareGPT4V"].trained == 7_063_427_072 - tower + 12 * layer
    assert cases["Llama 3 8B on text"].trained == 8_030_261_248


def test_the_memory_of_a_7b_by_hand(cases: dict[str, benchmark.Case]) -> None:
    trained, frozen, linear = 6_759_896_064, 303_531_008, 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    whole = cases["all weights, AdamW"].memory
    for workers in WORKERS:
        one = whole[workers]
        assert one.weights == pytest.approx((4 * trained + 2 * frozen) / workers, rel=1e-4)
        assert one.gradients == pytest.approx(4 * trained / workers, rel=1e-4)
        assert one.optimizer == pytest.approx(8 * trained / workers, rel=1e-4)
    assert cases["all weights, 8-bit AdamW"].memory[1].optimizer == pytest.approx(2 * trained * (1 + 4 / 256), rel=1e-3)
    away = cases["all weights, offloaded"].memory[1]
    assert (away.weights, away.gradients, away.optimizer) == (0, 0, 0)
    assert away.host == sum(whole[1][:3])
    nf4 = cases["QLoRA"].memory
    assert nf4[8].weights > nf4[1].weights / 2  # whole on each
    assert cases["LoRA"].memory[1].weights - nf4[1].weights == pytest.approx(linear * (2 - 0.5159), rel=1e-3)
    # Kept: 32 layers' inputs. Gathered: embeddings and head, tower and projector, two layers.
    of_layer = linear // 32
    assert whole[1].activations > 16384 * 32 * 4096 * 2
    assert whole[1].gathered > 2 * (trained + frozen - linear + 2 * of_layer)


def test_the_docs_say_so(cases: dict[str, benchmark.Case]) -> None:
    assert benchmark.text(cases.values()) in (ROOT / "docs" / "training.md").read_text()


def test_a_run_is_reckoned_as_its_options_say() -> None:
    given: dict[str, Any] = {"model": "m", "samples": "s", "out": "o"}
    assert How.of(TrainConfig(**given)) == How(torch.bfloat16, "adamw", False, True, 16384, False)
    chosen = {"optimizer": "adamw8bit", "batch_tokens": 4096, "activation_checkpointing": "off"}
    on_cpus = TrainConfig(**given, **chosen, device="cpu", gradient_sync="step")
    assert How.of(on_cpus) == How(torch.float32, "adamw8bit", False, False, 4096, True)
    vdep = How.of(TrainConfig(**given, objective="vdep", vdep_target="live"))
    assert vdep == How(torch.bfloat16, "adamw", False, True, 16384, False, "live")
    assert vdep.text().endswith("activations computed again, VDEP's of image tokens")
