"""VDEP as plainly as equation 11 can be written: one sample a pass, states by `output_hidden_states`, targets by
`get_image_features`, transformers and torch alone."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from tests.training.written import llava


class Given(NamedTuple):
    """A sample: token ids, the places of trained tokens and their weights, the model's vision arguments, its mode, and
    further arguments of the model."""

    ids: list[int]
    answers: list[int]
    weights: list[float]
    vision: dict[str, torch.Tensor]
    mode: str
    types: dict[str, torch.Tensor]


class Terms(NamedTuple):
    """L_t and L_i of equation 11, with gradients, and the embeddings that L_i is of."""

    text: torch.Tensor
    image: torch.Tensor
    embeddings: torch.Tensor


def terms(
    model: Any,
    batch: Sequence[Given],
    *,
    reduction: str = "sum",
    shift: int = 1,
    live: bool = False,
    layer: int = -1,
    by_sample: bool = False,
) -> Terms:
    """L_t: mean of -w log q over the active tokens of samples in text mode; L_i: mean squared distance over the image
    positions of samples in image mode; `by_sample`: over each sample's first."""
    texts, images, embeddings = [], [], []
    for sample in batch:
        ids = torch.tensor([sample.ids])
        output = model(input_ids=ids, **sample.vision, **sample.types, output_hidden_states=True)
        places = [(place, w) for place, w in zip(sample.answers, sample.weights, strict=True) if w]
        if sample.mode in ("text", "joint") and places:
            logp = output.logits[0].log_softmax(-1)
            texts.append(torch.stack([-w * logp[place - 1, sample.ids[place]] for place, w in places]))
        if sample.mode in ("image", "joint"):
            features = model.get_image_features(**sample.vision).pooler_output
            features = torch.cat(list(features)).flatten(0, -2)
            where = [place for place, token in enumerate(sample.ids) if token == model.config.image_token_id]
            assert len(where) == len(features)
            distances = []
            for place, embedding in zip(where, features, strict=True):
                if place - shift >= 0:
                    target = embedding if live else embedding.detach()
                    squares = (output.hidden_states[layer][0, place - shift] - target) ** 2
                    distances.append(squares.sum() if reduction == "sum" else squares.mean())
                    embeddings.append(embedding.detach())
            images.append(torch.stack(distances))

    def mean(parts: list[torch.Tensor]) -> torch.Tensor:
        if not parts:
            return torch.zeros(())
        return torch.stack([part.mean() for part in parts]).mean() if by_sample else torch.cat(parts).mean()

    return Terms(mean(texts), mean(images), torch.stack(embeddings) if embeddings else torch.zeros(0, 1))


def plain_vdep_training(
    checkpoint: str, samples: Path, steps: Sequence[Sequence[tuple[str, str]]], *, alpha: float, lr: float, **how: Any
) -> tuple[list[dict[str, float]], Any]:
    """Train a LLaVA-1.5 checkpoint on the samples and in the modes of `steps`, (key, mode) each; all answer tokens.

    What each step told, and the model after them.
    """
    rows = pd.concat([pd.read_parquet(path) for path in sorted(samples.glob("*.parquet"))]).set_index("sample_key")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    images = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).train()
    vision = model.config.vision_config
    trained = []
    for name, parameter in model.named_parameters():
        if ".vision_tower." in name:
            parameter.requires_grad_(False)
        else:
            trained.append(parameter)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    rising, told = math.ceil(0.03 * len(steps)), []

    def given(key: str, mode: str) -> Given:
        row = rows.loc[key]
        turns = [(turn["role"], turn["text"]) for turn in row["conversation"]]
        features = (vision.image_size // vision.patch_size) ** 2
        ids, answers = llava(tokenizer, turns, image_token=model.config.image_token_id, features=features)
        pictures = [Image.open(image["uri"] or io.BytesIO(image["bytes"])).convert("RGB") for image in row["images"]]
        inputs = dict(images(images=pictures, return_tensors="pt")) if pictures else {}
        return Given(ids, answers, [1.0] * len(answers), inputs, mode if pictures else "text", {})

    for step, members in enumerate(steps):
        of_step = terms(model, [given(key, mode) for key, mode in members], **how)
        loss = of_step.text + alpha * of_step.image
        line = {
            "loss": loss.item(),
            "text_loss": of_step.text.item(),
            "image_loss": of_step.image.item(),
            "embedding_variance": of_step.embeddings.var(dim=0, unbiased=False).mean().item(),
            "text_grad_norm": _norm(of_step.text, trained),
            "image_grad_norm": _norm(alpha * of_step.image, trained),
        }
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        angle = math.pi * (step - rising) / (len(steps) - rising)
        for group in optimizer.param_groups:
            group["lr"] = lr * (step / rising if step < rising else 0.5 * (1 + math.cos(angle)))
        optimizer.step()
        optimizer.zero_grad()
        told.append(line)
    return told, model


def _norm(loss: torch.Tensor, trained: list[torch.Tensor]) -> float:
    if not loss.requires_grad:
        return 0.0
    found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in found if gradient is not None))
