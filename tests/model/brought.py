"""A checkpoint that brings its own code: a LLaVA whose config, model and processor are classes in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from tests.model.families import llava_siglip

FILES = {
    "configuration_brought.py": """
from transformers import LlavaConfig

class BroughtConfig(LlavaConfig):
    model_type = "brought"
""",
    "modeling_brought.py": """
from transformers import LlavaForConditionalGeneration
from .configuration_brought import BroughtConfig

class BroughtModel(LlavaForConditionalGeneration):
    config_class = BroughtConfig
""",
    "processing_brought.py": """
from transformers import LlavaProcessor

class BroughtProcessor(LlavaProcessor):
    pass
""",
}
CLASSES = {
    "AutoConfig": "configuration_brought.BroughtConfig",
    "AutoModelForImageTextToText": "modeling_brought.BroughtModel",
    "AutoProcessor": "processing_brought.BroughtProcessor",
}


def change(file: Path, **values: Any) -> None:
    """Other values in a file of JSON."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


class Brought:
    """`folder` holds the checkpoint, `plain` the same weights in transformers' own class; where the code of the former
    runs, it says so in the file `ran`."""

    def __init__(self, parent: Path, name: str = "brought") -> None:
        self.folder, self.plain, self.ran = parent / name, parent / f"{name}-plain", parent / f"{name}.ran"
        llava_siglip.make(str(self.plain))
        llava_siglip.make(str(self.folder))
        model = AutoModelForImageTextToText.from_pretrained(self.plain, dtype=torch.float32)
        tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        save_file(tensors, self.folder / "model.safetensors", metadata={"format": "pt"})
        for file, text in FILES.items():
            told = f"with open({str(self.ran)!r}, 'a') as file:\n    print(__name__, file=file)\n"
            (self.folder / file).write_text(f"{text}\n{told}")
        self.brings(CLASSES)
        change(self.folder / "config.json", model_type="brought", architectures=["BroughtModel"])
        change(self.folder / "processor_config.json", processor_class="BroughtProcessor")
        change(self.folder / "tokenizer_config.json", processor_class="BroughtProcessor")

    def brings(self, classes: dict[str, str]) -> None:
        """Name these classes only."""
        change(self.folder / "config.json", auto_map=classes)
        mine = {name: classes[name] for name in ("AutoProcessor",) if name in classes}
        change(self.folder / "processor_config.json", auto_map=mine)

    def has_run(self) -> bool:
        """Whether any of its code did."""
        return self.ran.exists()
