"""Which kind of model a checkpoint holds: one that reads images, or a language model alone."""

from __future__ import annotations

from typing import Any

from vig_ray.model.checkpoint import config_of, read_config, read_text_config


def takes_images(config: Any) -> bool:
    """Whether this is the config of an image-text-to-text model."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    brought = getattr(config, "auto_map", None) or {}
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or "AutoModelForImageTextToText" in brought


def read_config_of_either(folder: str) -> Any:
    """The config of a vision-language model or of a language model. Raises StageError where it is neither or broken."""
    return read_config(folder) if takes_images(config_of(folder)) else read_text_config(folder, option="--model")


def auto_class(config: Any) -> Any:
    """The class of transformers that makes a model of such a config."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if takes_images(config) else AutoModelForCausalLM
