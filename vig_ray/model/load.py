"""From the name of a checkpoint to its formatter (CPU stage) and its weights (engine).

Both take a local folder or a hub id. `check` reads only the config and the tokenizer's presence: it tells within
seconds that a model isn't there, before anything large starts.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any, Literal

from vig_ray.errors import StageError
from vig_ray.model.chat import ChatFormatter
from vig_ray.model.llava import LlavaFormatter
from vig_ray.model.prompt import Formatter, PromptError
from vig_ray.storage import one_line

Template = Literal["auto", "llava_v1", "chat"]
_HUB_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
_WEIGHTS = ["*.safetensors"]


def local_folder(model: str, *, weights: bool) -> str:
    """The folder that holds checkpoint `model`, downloaded from the hub where it isn't local.

    Raises StageError naming the model where it is neither a folder with a config.json nor a hub id that answers.
    """
    folder = os.path.expanduser(model)
    if os.path.isdir(folder):
        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise StageError(f"{model}: no config.json in this folder; --model takes a transformers checkpoint")
        return folder
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise StageError(f"{model}: no such folder; --model takes a checkpoint's folder or a hub id such as org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(model, allow_patterns=_HUB_FILES + (_WEIGHTS if weights else [])))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise StageError(f"{model}: no such folder, and the hub gave: {one_line(error)[:200]}") from error


def read_config(folder: str) -> Any:
    """The checkpoint's config; raises StageError where it is broken or not an image-text-to-text model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise StageError(f"{folder}/config.json: can't be read: {one_line(error)[:200]}") from error
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise StageError(
            f"{folder}: a {config.model_type!r} model takes no images; --model needs a vision-language one"
        )
    return config


def _template_for(config: Any, tokenizer: Any, template: Template) -> Template:
    if template != "auto":
        return template
    is_llava = (
        config.model_type == "llava"
        and config.vision_config.model_type == "clip_vision_model"
        and config.text_config.model_type == "llama"
        and tokenizer.eos_token == "</s>"
    )
    return "llava_v1" if is_llava else "chat"


def _load_processor(folder: str, config: Any, tokenizer: Any) -> Any:
    """The checkpoint's processor; without its video half where torchvision, which that half needs, isn't installed."""
    from transformers import AutoImageProcessor, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return AutoProcessor.from_pretrained(folder)
    try:
        return AutoProcessor.from_pretrained(folder)
    except ImportError:
        import transformers

        kind = getattr(transformers, PROCESSOR_MAPPING_NAMES[config.model_type])
        processor = kind.__new__(kind)  # its __init__ insists on a video processor
        processor.tokenizer = tokenizer
        processor.image_processor = AutoImageProcessor.from_pretrained(folder)
        processor.chat_template = tokenizer.chat_template
        processor.image_token = tokenizer.convert_ids_to_tokens(config.image_token_id)
        return processor


def load_formatter(model: str, template: Template = "auto", max_length: int | None = None) -> Formatter:
    """The formatter of checkpoint `model`.

    `template` auto: vicuna_v1 for a LLaVA-1.5 (CLIP tower, Llama, `</s>`), else the checkpoint's own chat template.
    `max_length`: tokens, images included; default 2048 for LLaVA-1.5, else what the language model was made for.
    """
    from transformers import AutoTokenizer

    folder = local_folder(model, weights=False)
    config = read_config(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not tokenizer.is_fast:
            raise StageError(
                f"{model}: its tokenizer gives no character offsets; add a tokenizer.json to the checkpoint"
            )
        chosen = _template_for(config, tokenizer, template)
        processor = _load_processor(folder, config, tokenizer)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise StageError(f"{model}: tokenizer or processor can't be loaded: {one_line(error)[:300]}") from error
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or 4096
    if chosen == "llava_v1":
        if config.model_type != "llava":
            raise StageError(f"{model}: --template llava_v1 is for LLaVA checkpoints, this is a {config.model_type!r}")
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return LlavaFormatter(
            tokenizer,
            processor.image_processor,
            image_token_id=config.image_token_id,
            num_image_tokens=patches + (config.vision_feature_select_strategy == "full"),
            max_length=max_length,
        )
    try:
        return ChatFormatter(
            processor,
            image_token_id=config.image_token_id,
            max_length=max_length or min(limit, tokenizer.model_max_length),
        )
    except (PromptError, AttributeError) as error:
        raise StageError(f"{model}: {one_line(error)}") from error


@dataclass(frozen=True)
class Fingerprints:
    """Short hashes that tell models, and ways of making prompts, apart."""

    model: str
    template: str


def fingerprints(model: str, formatter: Formatter) -> Fingerprints:
    """Hashes of checkpoint `model` and of its formatter, 16 hex digits each.

    The model's covers config.json and, of each weight file, its name, size, header and 64 KiB at 16 places: enough to
    tell checkpoints of one architecture apart without reading tens of gigabytes.
    """
    folder = local_folder(model, weights=True)
    digest = hashlib.sha256()
    names = sorted(name for name in os.listdir(folder) if name.endswith((".safetensors", ".bin")))
    for name in ["config.json", *names]:
        path = os.path.join(folder, name)
        size = os.path.getsize(path)
        digest.update(f"{name}:{size};".encode())
        with open(path, "rb") as file:
            for place in sorted({size * i // 16 for i in range(16)} | {0}):
                file.seek(place)
                digest.update(file.read(1 << 16))
    identity = json.dumps(formatter.identity(), sort_keys=True, default=str)
    return Fingerprints(digest.hexdigest()[:16], hashlib.sha256(identity.encode()).hexdigest()[:16])


def load_model(model: str, *, dtype: str, device: str) -> Any:
    """The checkpoint's weights in `dtype` on `device`, in evaluation mode.

    Raises StageError where the weights are missing or don't fit the config.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    folder = local_folder(model, weights=True)
    try:
        loaded, report = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise StageError(f"{model}: the weights can't be loaded: {one_line(error)[:300]}") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        # transformers would fill these with random numbers and go on.
        names = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))[:3]
        raise StageError(f"{model}: weights missing or of another shape, {', '.join(names)} among them")
    return loaded.eval().to(device)
