"""Training as plainly as it can be written: one process, one sample a pass, full logits, transformers and torch alone.

Reads samples/ and selection/ by pandas; prompts, images, the schedule, the loss and the order are spelled out again.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from tests.training.written import llava


def plain_training(
    checkpoint, samples, selection, *, steps, batch, lr, warmup=0.03, by_sample=False, rates=None, until=None
):
    """The losses of `steps` steps on a LLaVA-1.5 checkpoint and the model after them.

    `rates`: the parts that are trained, each with its highest learning rate; by default projector and language model.
    `until`: so many of the steps, of which the schedule has all.
    """
    rates = rates or {"projector": lr, "language": lr}
    rows = pd.concat([pd.read_parquet(path) for path in sorted(Path(samples).glob("*.parquet"))]).set_index(
        "sample_key"
    )
    chosen = pd.concat([pd.read_parquet(path) for path in sorted(Path(selection).glob("*.parquet"))])
    chosen = chosen.sort_values("position").reset_index(drop=True)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    images = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")  # as LLaVA does
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).train()
    vision = model.config.vision_config
    features = (vision.image_size // vision.patch_size) ** 2
    of = {"projector": [], "language": [], "tower": []}
    for name, parameter in model.named_parameters():
        inside = [part for part in ("vision_tower", "multi_modal_projector") if f".{part}." in name]
        of["language" if not inside else inside[0].split("_")[-1]].append(parameter)
    trained = [parameter for part in rates for parameter in of[part]]
    optimizer = torch.optim.AdamW([{"params": of[part]} for part in rates], lr=lr, weight_decay=0.0)
    rising, losses = math.ceil(warmup * steps), []
    for step in range(until or steps):
        part = chosen.iloc[step * batch : (step + 1) * batch]
        weights = [
            w if w is not None else [1.0] * len(ids) for w, ids in zip(part.token_weights, part.token_ids, strict=True)
        ]
        active = [sum(1 for w in each if w != 0) for each in weights]
        whole = 0.0
        for key, weight, count in zip(part.sample_key, weights, active, strict=True):
            row = rows.loc[key]
            turns = [(turn["role"], turn["text"]) for turn in row["conversation"]]
            ids, answers = llava(tokenizer, turns, image_token=model.config.image_token_id, features=features)
            pictures = [
                Image.open(image["uri"] or io.BytesIO(image["bytes"])).convert("RGB") for image in row["images"]
            ]
            inputs = images(images=pictures, return_tensors="pt") if pictures else {}
            logits = model(input_ids=torch.tensor([ids]), **inputs).logits[0]
            loss = 0.0
            for place, w in zip(answers, weight, strict=True):
                if w != 0:
                    loss = loss - w * logits[place - 1].log_softmax(-1)[ids[place]]
            share = count * sum(1 for c in active if c) if by_sample else sum(active)
            if count:
                (loss / share).backward()
                whole += loss.item() / share
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        angle = math.pi * (step - rising) / (steps - rising)
        factor = step / rising if step < rising else 0.5 * (1 + math.cos(angle))
        for group, rate in zip(optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad()
        losses.append(whole)
    return losses, model
