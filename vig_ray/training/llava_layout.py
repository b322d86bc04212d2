"""A LLaVA model in the layout of LLaVA's own code, which has a Llama, a projector, and a CLIP that it loads by name.

That code reads the config of an older transformers, makes its tokenizer of SentencePiece's tokenizer.model, and cuts
the embeddings to the number of that model's pieces: rows beyond them, which padded checkpoints have, are left out here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from vig_ray.errors import StageError
from vig_ray.model.checkpoint import local_folder, read_config
from vig_ray.model.export import CLIP_NAME
from vig_ray.model.llava import MAX_LENGTH, LlavaFormatter
from vig_ray.model.load import load_formatter
from vig_ray.model.sentencepiece import FILE, Pieces
from vig_ray.training.trained import trained_parts

State = Mapping[str, torch.Tensor]

TOWER = "vision_tower"  # the folder of the CLIP that has no name


class LlavaBase(NamedTuple):
    """What a model in LLaVA's layout takes from the checkpoint that it was trained from."""

    config: Any
    formatter: LlavaFormatter
    file: str
    pieces: Pieces

    @property
    def clip(self) -> str | None:
        """The CLIP on the hub that the vision tower is, where `vig assemble` noted one that LLaVA's code takes."""
        name = getattr(self.config, CLIP_NAME, None) or ""
        return name if name.startswith(("openai/", "laion/")) or "ShareGPT4V" in name else None


def read_base(base: str) -> LlavaBase:
    """What of checkpoint `base` goes into LLaVA's layout; no weights are read.

    Raises StageError where the model is one that LLaVA's code can't hold, or its tokenizer.model isn't there.
    """
    folder = local_folder(base, weights=False)
    config = read_config(folder)
    if config.model_type != "llava" or config.text_config.model_type != "llama":
        raise StageError(f"{base}: a {config.model_type!r} model has no LLaVA layout; --format hub takes any")
    text, vision = config.text_config, config.vision_config
    lacking = {
        f"a {vision.model_type!r} vision tower": vision.model_type != "clip_vision_model",
        "features of several layers": not isinstance(config.vision_feature_layer, int),
        f"{config.projector_hidden_act!r} in the projector": config.projector_hidden_act != "gelu",
        "a projector without biases": not config.multimodal_projector_bias,
        "biases in the MLP": text.mlp_bias,
        f"heads of a width of {text.head_dim}": text.head_dim * text.num_attention_heads != text.hidden_size,
    }
    for what, lacks in lacking.items():
        if lacks:
            raise StageError(f"{base}: LLaVA's code knows no {what}; --format hub takes any")
    _rope(base, text)
    file = os.path.join(folder, FILE)
    if not os.path.isfile(file):
        raise StageError(
            f"{base}: no {FILE}, which LLaVA's code makes its tokenizer of; put the language model's into this folder"
        )
    pieces = Pieces(file)
    formatter = load_formatter(base, "llava_v1")
    assert isinstance(formatter, LlavaFormatter)
    _check_pieces(base, pieces, formatter, text.vocab_size)
    return LlavaBase(config, formatter, file, pieces)


def _check_pieces(base: str, pieces: Pieces, formatter: LlavaFormatter, rows: int) -> None:
    """The pieces must be the tokens that the model was trained with, but for the one that became the image's."""
    if len(pieces.vocabulary) > rows:
        raise StageError(f"{base}: {len(pieces.vocabulary)} pieces in its {FILE}, but its embeddings have {rows} rows")
    for piece, index in pieces.vocabulary.items():
        token = formatter.tokenizer.convert_ids_to_tokens(index)
        if token != piece and index != formatter.image_token_id:
            raise StageError(
                f"{base}: its {FILE} isn't its tokenizer's, where token {index} is {token!r}, not {piece!r}"
            )


def _rope(base: str, text: Any) -> dict[str, Any]:
    """The rotary embedding as transformers 4 names it, which reads no `rope_parameters`."""
    rope = text.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "dynamic"):
        raise StageError(f"{base}: LLaVA's code knows no rotary embedding of type {kind!r}; --format hub takes any")
    scaling = None if kind == "default" else {"type": kind, "factor": float(rope["factor"])}
    return {"rope_theta": float(rope["rope_theta"]), "rope_scaling": scaling}


def _config(base: str, of: LlavaBase, dtype: str, clip: str) -> dict[str, Any]:
    text, vision = of.config.text_config, of.config.vision_config
    same = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "attention_bias",
    )  # fmt: skip
    return {name: getattr(text, name) for name in same} | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "torch_dtype": dtype,
        "vocab_size": len(of.pieces.vocabulary),
        "bos_token_id": of.pieces.processor.bos_id(),
        "eos_token_id": of.pieces.processor.eos_id(),
        "pad_token_id": of.pieces.processor.unk_id(),  # LLaVA's own padding, and a row that is always there
        "tie_word_embeddings": False,
        "use_cache": True,
        **_rope(base, text),
        "mm_vision_tower": clip,
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": vision.hidden_size,
        "mm_vision_select_layer": of.config.vision_feature_layer,
        "mm_vision_select_feature": "patch" if of.config.vision_feature_select_strategy == "default" else "cls_patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,  # where it is missing, LLaVA's code adds a token
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "unfreeze_mm_vision_tower": False,
        "tokenizer_model_max_length": MAX_LENGTH,
    }


def _write_tokenizer(of: LlavaBase, out: str) -> None:
    """tokenizer.model, for the slow tokenizer: the fast one's file has `<image>`, and is too new for LLaVA's code."""
    name = of.pieces.processor.id_to_piece
    begin, end, unknown = (name(getattr(of.pieces.processor, f"{kind}_id")()) for kind in ("bos", "eos", "unk"))
    text = f"{end}a"
    with_space = [of.pieces.vocabulary[end], *of.pieces.processor.encode("a")]
    tokens = {"bos_token": begin, "eos_token": end, "unk_token": unknown, "pad_token": unknown}
    shutil.copy(of.file, os.path.join(out, FILE))
    _write_json(out, "special_tokens_map.json", tokens)
    _write_json(
        out,
        "tokenizer_config.json",
        tokens
        | {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            # whether text behind a special token begins with a space of its own, too
            "legacy": of.formatter.tokenizer(text, add_special_tokens=False)["input_ids"] == with_space,
            "model_max_length": MAX_LENGTH,
            "padding_side": "right",
            "sp_model_kwargs": {},
        },
    )


def _write_tower(of: LlavaBase, tower: State, out: str, dtype: str) -> None:
    """The vision tower as a CLIP's folder, for transformers 4."""
    os.makedirs(out)
    weights = {f"vision_model.{name}": tensor for name, tensor in tower.items()}
    save_file(weights, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    config = of.config.vision_config.to_dict() | {"architectures": ["CLIPVisionModel"], "torch_dtype": dtype}
    _write_json(out, "config.json", {name: config[name] for name in config if name not in ("dtype", "_name_or_path")})
    _write_json(
        out,
        "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": of.formatter.side},
            "resample": int(of.formatter.resample),
            "do_center_crop": True,
            "crop_size": {"height": of.formatter.side, "width": of.formatter.side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(of.formatter.mean),
            "image_std": list(of.formatter.std),
        },
    )


def write_llava(
    state: State, base: str, out: str, dtype: str, train: Collection[str], *, place: str | None = None
) -> None:
    """Write a LLaVA model to folder `out` in LLaVA's original layout (`LlavaLlamaForCausalLM`).

    LLaVA's code loads the vision tower by itself. One that is still a CLIP of the hub, `train` being the parts that
    were trained, goes by its name; another is written to `out`/vision_tower and goes by its path, beginning with
    `place` where the folder goes there later. Raises StageError as `read_base` does.
    """
    of = read_base(base)
    os.makedirs(out, exist_ok=True)
    rows = len(of.pieces.vocabulary)
    weights, tower = {}, {}
    for name, tensor in state.items():
        tensor = tensor.to(getattr(torch, dtype))
        if name.startswith("model.vision_tower."):
            tower[name.removeprefix("model.vision_tower.").removeprefix("vision_model.")] = tensor.contiguous()
        elif name.startswith("model.multi_modal_projector.linear_"):
            layer, _, rest = name.removeprefix("model.multi_modal_projector.linear_").partition(".")
            weights[f"model.mm_projector.{2 * (int(layer) - 1)}.{rest}"] = tensor.contiguous()  # between them: the GELU
        elif name == "lm_head.weight":
            weights[name] = tensor[:rows].clone()  # it may be the embeddings themselves
        elif name == "model.language_model.embed_tokens.weight":
            weights["model.embed_tokens.weight"] = tensor[:rows].contiguous()
        else:
            weights["model." + name.removeprefix("model.language_model.")] = tensor.contiguous()
    save_file(weights, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    clip = of.clip if "tower" not in trained_parts(train) else None
    if clip is None:
        _write_tower(of, tower, os.path.join(out, TOWER), dtype)
        clip = os.path.join(os.path.abspath(place or out), TOWER)
    _write_json(out, "config.json", _config(base, of, dtype, clip))
    _write_tokenizer(of, out)


def _write_json(folder: str, name: str, content: Mapping[str, Any]) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
