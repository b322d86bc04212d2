"""Reads a folder in the layout of LLaVA's code by that code's conventions, and nothing of this package.

From config.json (as transformers 4 reads it), tokenizer.model and the weight files: a plain Llama, a plain CLIP and the
two-layer projector, put together by hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.model.llava_rules import IMAGE, SlowTokens

LLAMA = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_bias", "pad_token_id",
    "tie_word_embeddings",
)  # fmt: skip


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


@dataclass(frozen=True)
class LlavaFolder:
    """What LLaVA's code makes of such a folder."""

    config: dict[str, Any]
    tokens: SlowTokens
    language: LlamaForCausalLM
    projector: torch.nn.Sequential
    tower: CLIPVisionModel
    images: CLIPImageProcessorPil

    def features(self, picture: Image.Image) -> torch.Tensor:
        """A picture on a square of the CLIP's mean colour, by the tower's chosen layer and the projector; [N, D]."""
        side = max(picture.size)
        square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in self.images.image_mean))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        pixels = self.images(square, return_tensors="pt")["pixel_values"]
        states = self.tower(pixels, output_hidden_states=True).hidden_states[self.config["mm_vision_select_layer"]]
        states = states[0, 1:] if self.config["mm_vision_select_feature"] == "patch" else states[0]
        return self.projector(states)

    def logprobs(self, text: str, picture: Image.Image | None) -> tuple[list[int], np.ndarray]:
        """The ids of `text`, IMAGE once a feature, and the log-prob of each after those before it; NaN for the first
        and at features."""
        asked = self.tokens.around_images(text)
        ids: list[int] = []
        parts = []
        with torch.no_grad():
            for token in asked:
                here = self.features(picture) if token == IMAGE else self.language.model.embed_tokens.weight[[token]]
                parts.append(here)
                ids += [token] * len(here)
            logits = self.language(inputs_embeds=torch.cat(parts)[None]).logits[0]
        everything = logits.log_softmax(-1)
        values = [everything[place, token] if token != IMAGE else np.nan for place, token in enumerate(ids[1:])]
        return ids, np.array([np.nan, *values], np.float32)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    scaling = config.get("rope_scaling")
    if scaling is None:
        return {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)}
    assert scaling.keys() == {"type", "factor"}  # transformers 4 takes no others
    assert isinstance(scaling["factor"], float)
    return {
        "rope_type": scaling["type"], "factor": scaling["factor"], "rope_theta": config.get("rope_theta", 10000.0)
    }  # fmt: skip


def read(folder: Path) -> LlavaFolder:
    """The model in `folder`; what LLaVA's code would change, ignore or miss in it fails here."""
    config, settings = _json(folder / "config.json"), _json(folder / "tokenizer_config.json")
    assert (config["model_type"], config["architectures"]) == ("llava_llama", ["LlavaLlamaForCausalLM"])
    assert settings["tokenizer_class"] == "LlamaTokenizer"
    assert not (folder / "tokenizer.json").exists()
    assert not (folder / "added_tokens.json").exists()
    assert "added_tokens_decoder" not in settings
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    # LLaVA's code resizes the embeddings to the tokenizer's length, which has one more with <im_patch>.
    assert not config.get("mm_use_im_patch_token", True)
    assert not config.get("mm_use_im_start_end", False)
    assert config["vocab_size"] == len(processor)
    for name in ("bos", "eos", "unk", "pad"):
        assert settings[f"{name}_token"] in ("<s>", "</s>", "<unk>")

    weights = load_file(folder / "model.safetensors")
    projector = torch.nn.Sequential(
        torch.nn.Linear(config["mm_hidden_size"], config["hidden_size"]),
        torch.nn.GELU(),
        torch.nn.Linear(config["hidden_size"], config["hidden_size"]),
    )
    assert config["mm_projector_type"] == "mlp2x_gelu"
    prefix = "model.mm_projector."
    projector.load_state_dict(
        {name.removeprefix(prefix): weights.pop(name) for name in list(weights) if name.startswith(prefix)}
    )
    language = LlamaForCausalLM(
        LlamaConfig(**{name: config[name] for name in LLAMA if name in config}, rope_parameters=_rope(config))
    )
    language.load_state_dict(weights)  # the tower's would be left over: LLaVA's code doesn't load them from here

    clip = Path(config["mm_vision_tower"])
    assert not config["unfreeze_mm_vision_tower"]
    known = CLIPVisionConfig().to_dict().keys() - {"dtype", "model_type", "transformers_version", "architectures"}
    tower = CLIPVisionModel(
        CLIPVisionConfig(**{name: value for name, value in _json(clip / "config.json").items() if name in known})
    )
    tower.load_state_dict(
        {name.removeprefix("vision_model."): tensor for name, tensor in load_file(clip / "model.safetensors").items()}
    )
    images = CLIPImageProcessorPil.from_pretrained(clip)
    tokens = SlowTokens(processor, legacy=settings["legacy"])
    return LlavaFolder(config, tokens, language.eval(), projector, tower.eval(), images)
