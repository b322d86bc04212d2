"""Training as plainly as it can be written: one process, one sample a pass, full logits, transformers and torch alone.

Reads samples/ and selection/ by pandas; the schedule, the loss and the order are spelled out again.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForImageTextToText

from vig_ray.dataset.images import load_image
from vig_ray.dataset.schema import Turn
from vig_ray.model.prompt import PromptImage


def plain_training(checkpoint, formatter, samples, selection, *, steps, batch, lr, warmup=0.03, by_sample=False):
    """The losses of `steps` steps and the model after them."""
    rows = pd.concat([pd.read_parquet(path) for path in sorted(Path(samples).glob("*.parquet"))]).set_index(
        "sample_key"
    )
    chosen = pd.concat([pd.read_parquet(path) for path in sorted(Path(selection).glob("*.parquet"))])
    chosen = chosen.sort_values("position").reset_index(drop=True)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).train()
    trained = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    rising, losses = math.ceil(warmup * steps), []
    for step in range(steps):
        part = chosen.iloc[step * batch : (step + 1) * batch]
        weights = [
            w if w is not None else [1.0] * len(ids) for w, ids in zip(part.token_weights, part.token_ids, strict=True)
        ]
        active = [sum(1 for w in each if w != 0) for each in weights]
        whole = 0.0
        for key, weight, count in zip(part.sample_key, weights, active, strict=True):
            row = rows.loc[key]
            pictures = [PromptImage("", lambda i=i: load_image(i), formatter.preprocess) for i in row["images"]]
            prompt = formatter.prompt([Turn(**turn) for turn in row["conversation"]], pictures)
            inputs = formatter.collate([p.inputs for p in pictures], "cpu", torch.float32) if pictures else {}
            logits = model(input_ids=torch.tensor(prompt.token_ids.tolist())[None], **inputs).logits[0]
            loss = 0.0
            for place, w in zip(prompt.answer_positions.tolist(), weight, strict=True):
                if w != 0:
                    loss = loss - w * logits[place - 1].log_softmax(-1)[int(prompt.token_ids[place])]
            share = count * sum(1 for c in active if c) if by_sample else sum(active)
            if count:
                (loss / share).backward()
                whole += loss.item() / share
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        angle = math.pi * (step - rising) / (steps - rising)
        optimizer.param_groups[0]["lr"] = lr * (step / rising if step < rising else 0.5 * (1 + math.cos(angle)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(whole)
    return losses, model
