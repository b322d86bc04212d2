"""A tiny CLIP with random weights and a tokenizer of its own, as a checkpoint of the hub has them."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

LIMIT = 16


def write_clip(folder: Path) -> None:
    """A CLIP of 28 pixels a side and texts of at most 16 tokens, which knows a few words and spells the others."""
    letters = string.ascii_lowercase + string.digits + ".,?!'-"
    merges = ["r e", "re d</w>", "t h", "th e</w>", "c i", "ci r", "c l", "cl e</w>", "cir cle</w>"]
    made = ["".join(merge.split()) for merge in merges]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *made, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocabulary, [tuple(merge.split()) for merge in merges], model_max_length=LIMIT)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 28, "patch_size": 14}
    text = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": len(words), "max_position_embeddings": LIMIT}
    text |= {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))
    with torch.no_grad():  # random weights as they come say next to nothing
        for parameter in clip.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    clip.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
