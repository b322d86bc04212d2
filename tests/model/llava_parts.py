"""The parts of a tiny LLaVA as the hub has those of the real one: a language model, a CLIP, a projector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.model.llava_rules import small_model
from tests.tiny_models import sharpen, write_language_model
from vig_ray.model.assemble import AssembleConfig

WIDE, DEEP = 32, 48
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


def write_vicuna(folder: Path, *, rows: int = 1000, tokenizer: bool = True, **config: Any) -> None:
    """A Llama with `rows` rows, and of its 1000 tokens nothing but a SentencePiece model, as LLaMA's first ones."""
    shape = {"vocab_size": rows, "hidden_size": DEEP, "intermediate_size": 64, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 4, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}
    write_language_model(folder, **shape | config)
    if tokenizer:
        small_model(folder)
        settings = TOKENS | {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_clip(folder: Path) -> None:
    """A whole CLIP, its text half too, of 28 pixels a side."""
    torch.manual_seed(1)
    vision = {"hidden_size": WIDE, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"image_size": 28, "patch_size": 14, "projection_dim": 16}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))
    sharpen(clip)
    clip.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)


def write_projector(file: Path) -> None:
    """A projector as LLaVA's pre-training leaves it."""
    torch.manual_seed(2)
    projector = {
        "model.mm_projector.0.weight": torch.randn(DEEP, WIDE),
        "model.mm_projector.0.bias": torch.randn(DEEP),
        "model.mm_projector.2.weight": torch.randn(DEEP, DEEP) / 8,
        "model.mm_projector.2.bias": torch.randn(DEEP) / 8,
    }
    torch.save(projector, file)


def write_parts(folder: Path, **language_model: Any) -> None:
    """All three: vicuna/, clip/ and mm_projector.bin."""
    write_vicuna(folder / "vicuna", **language_model)
    write_clip(folder / "clip")
    write_projector(folder / "mm_projector.bin")


def config_of(parts: Path, out: Path, **changes: str) -> AssembleConfig:
    """What puts the parts together."""
    values = {
        "language_model": str(parts / "vicuna"),
        "vision_tower": str(parts / "clip"),
        "projector": str(parts / "mm_projector.bin"),
        "out": str(out),
        "dtype": "float32",
    }
    return AssembleConfig(**(values | changes))
