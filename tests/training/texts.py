"""A small language model, runs of `train-text` without Ray, and the same training as plainly as it can be written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.tiny_models import write_language_model
from vig_ray.demo import CHECKPOINT
from vig_ray.tables.rows import Rows
from vig_ray.training.documents import Documents
from vig_ray.training.index import of_samples
from vig_ray.training.run import Setup
from vig_ray.training.text_config import TrainTextConfig

_SHAPE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings",
)  # fmt: skip


def write_llama(folder: Path) -> str:
    """A Llama of the demo model's shape with its tokenizer, to be trained."""
    config = AutoConfig.from_pretrained(CHECKPOINT).text_config
    shape = {name: getattr(config, name) for name in _SHAPE}
    return write_language_model(folder, AutoTokenizer.from_pretrained(CHECKPOINT), by=1.0, **shape)


def text_setup(samples: Path, model: str, **options: Any) -> Setup:
    options = {"global_batch": 8, "max_steps": 8, "lr": 5e-4, **options}
    config = TrainTextConfig(model=model, samples=str(samples), out="-", **options)
    return Setup(
        config,
        Documents(model, config.context, config.length),
        of_samples(str(samples), config.seed),
        str(samples),
        None,
        dtype=config.dtype or "float32",
        loaders=config.loaders or 0,
        batch_tokens=config.length,
        checkpoint_activations=config.activation_checkpointing == "on",
    )


def document(tokenizer: Any, conversation: list[dict[str, str]], context: str) -> tuple[list[int], list[int]]:
    """Token ids, and labels with -100 where nothing is trained, by the tokenizer alone."""
    ids, labels = [tokenizer.bos_token_id], [-100]
    for turn in conversation:
        if turn["role"] == "assistant":
            said = [*tokenizer(turn["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            ids += said
            labels += said
        elif context == "conversation":
            asked = tokenizer(turn["text"].replace("<image>", "").strip() + "\n", add_special_tokens=False)["input_ids"]
            ids += asked
            labels += [-100] * len(asked)
    return ids, labels


def plain_text_training(setup: Setup) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses and the weights of the same run: a document a pass, transformers' own loss with labels, torch's AdamW.

    Only the order of the samples is the setup's.
    """
    config, sampler = setup.config, setup.sampler
    rows = Rows(setup.samples, ["conversation"]).get(setup.index.sample_at)
    tokenizer = AutoTokenizer.from_pretrained(setup.prompts.model)
    model = AutoModelForCausalLM.from_pretrained(setup.prompts.model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr or 0.0, weight_decay=0.0)
    losses, rising = [], math.ceil(config.warmup * sampler.steps)
    for step in range(sampler.steps):
        made = [
            document(tokenizer, rows[at]["conversation"], setup.config.context)  # type: ignore[attr-defined]
            for at in sampler.positions(step)
        ]
        active = sum(label != -100 for _, labels in made for label in labels)
        whole = 0.0
        for ids, labels in made:
            mean = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
            loss = mean * sum(label != -100 for label in labels) / active
            loss.backward()
            whole += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        angle = math.pi * (step - rising) / (sampler.steps - rising)
        for group in optimizer.param_groups:
            group["lr"] = (config.lr or 0.0) * (step / rising if step < rising else 0.5 * (1 + math.cos(angle)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(whole)
    return losses, model.state_dict()
