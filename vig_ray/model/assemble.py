"""`vig assemble`: a language model, a vision tower and a projector to one checkpoint, a transformers LLaVA.

VIG is computed with the model after pre-training of the adapter (section 3.1 of the paper). LLaVA publishes that stage
as a projector file alone, to be put between an unchanged Vicuna and an unchanged CLIP tower. This puts the three
together as a `LlavaForConditionalGeneration` in the hub's layout. With a new projector it is what alignment begins
with; then the language model may be any whose decoder and output layer are all that there is of it, and the tower a
CLIP or a SigLIP.

Of a CLIP the features of the last layer but one are taken, without the class token, as in LLaVA-1.5. A SigLIP has no
class token; its features are of the last layer but one, too, as in LLaVA-OneVision and TinyLLaVA, and all of them. Its
pooling, which nothing reads, is left out.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import nn

from vig_ray.errors import StageError
from vig_ray.model.assembled_parts import (
    IMAGE,
    Parts,
    check_fit,
    check_kind,
    check_logits,
    check_tokenizer,
    load_parts,
    prepare_tokenizer,
)
from vig_ray.model.chat_template import LLAVA_V1, with_images
from vig_ray.model.checkpoint import is_local
from vig_ray.model.export import CLIP_NAME, save_checkpoint
from vig_ray.model.projector import NEW, Projector, check_name, new_projector, read_projector
from vig_ray.model.sentencepiece import FILE
from vig_ray.options import Precision
from vig_ray.stage import StageConfig, claim
from vig_ray.storage import absolute, check_writable, one_line, scheme_of

log = logging.getLogger(__name__)


class AssembleConfig(StageConfig):
    """Put together the model that alignment begins with, or ends with."""

    language_model: str = Field(
        description="language model with a chat template, or Vicuna: a checkpoint's folder or a hub id"
    )
    vision_tower: str = Field(description="CLIP or SigLIP vision tower: a checkpoint's folder or a hub id")
    projector: str = Field(
        description="LLaVA's mm_projector.bin (two layers, mlp2x_gelu), or the same as .safetensors; or random, also "
        "called mlp2x_gelu, for a new one of such layers",
        json_schema_extra={"metavar": "FILE|random|mlp2x_gelu"},
    )
    seed: int = Field(0, ge=0, description="of a new projector's weights")
    out: str = Field(description="folder that gets the checkpoint; new or empty")
    dtype: Precision = Field("float16", description="precision of the written weights")


@dataclass(frozen=True)
class AssembleReport:
    """What was written."""

    out: str
    parameters: int
    tensors: int

    def text(self) -> str:
        """One line for a person."""
        return f"{self.out}: {self.parameters:,} parameters in {self.tensors} tensors"


def _named(config: AssembleConfig) -> dict[str, Any]:
    """What is put together, local parts by their full names."""
    parts = {"language_model": config.language_model, "vision_tower": config.vision_tower}
    named: dict[str, Any] = {option: absolute(part) if is_local(part) else part for option, part in parts.items()}
    if config.projector in NEW:
        return named | {"projector": NEW[0], "seed": config.seed, "dtype": config.dtype}
    return named | {"projector": absolute(config.projector), "dtype": config.dtype}


def _put_together(config: AssembleConfig, parts: Parts, projector: Projector) -> Any:
    """The LLaVA of these parts, none of which is copied. Raises StageError where one of its weights is in no part, or
    the language model is more than LLaVA takes of it."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    language_model, tower = parts.language_model, parts.tower
    text, vision = language_model.config, tower.config
    decoder, head = language_model.base_model, language_model.get_output_embeddings()
    if text.tie_word_embeddings:
        head.weight = nn.Parameter(head.weight.detach().clone())
        text.tie_word_embeddings = False
    llava = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=parts.tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy=_features(vision),
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        dtype=config.dtype,
    )
    if not is_local(config.vision_tower):
        setattr(llava, CLIP_NAME, config.vision_tower)  # LLaVA's code loads it by name: `vig export --format llava`
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(llava)
    check_kind(config, model, decoder, head)
    model.model.language_model = decoder
    model.lm_head = head
    model.model.vision_tower = tower
    dtype = getattr(torch, config.dtype)
    model.model.multi_modal_projector.load_state_dict({k: v.to(dtype) for k, v in projector.items()}, assign=True)
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if left:
        raise StageError(f"no weights for {', '.join(left[:3])}: the parts don't make a whole LLaVA")
    if not parts.is_vicuna:
        check_logits(config, model, language_model)
        model.generation_config = language_model.generation_config  # the tokens at which it stops
    return model


def _features(vision: Any) -> str:
    """Which of a tower's features are taken: all but the class token's, or all where there is none."""
    return "default" if vision.model_type == "clip_vision_model" else "full"


def _template(config: AssembleConfig, parts: Parts) -> str:
    """LLaVA-1.5's chat template, or the language model's own with images. Raises StageError where it has none that
    still says what it said."""
    if parts.is_llava_1_5 or (parts.is_vicuna and parts.tokenizer.chat_template is None):
        return LLAVA_V1
    if parts.tokenizer.chat_template is None:
        raise StageError(
            f"--language-model {config.language_model}: has no chat template, so nothing says how it is spoken to; "
            "take its instruction-tuned version, or put a chat_template.jinja into its folder"
        )
    own = parts.tokenizer.get_chat_template()
    extended = with_images(own)
    asked = [{"role": "user", "content": "What is red?"}, {"role": "assistant", "content": "A circle."}]
    lists = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in asked]
    try:
        texts = [
            parts.tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
            for template, turns in ((own, asked), (extended, asked), (extended, lists))
        ]
    except Exception as error:  # a template raises whatever its author wrote
        raise StageError(
            f"--language-model {config.language_model}: its chat template refuses a question and an answer: "
            f"{one_line(error)[:200]}"
        ) from error
    if len(set(texts)) != 1:
        raise StageError(
            f"--language-model {config.language_model}: its chat template can't be given images without saying "
            f"something else: {texts[1]!r} for {texts[0]!r}"
        )
    return extended


def _processor(config: AssembleConfig, parts: Parts) -> Any:
    """LLaVA's processor: images as the vision tower's own processor has them, but padded to squares."""
    from transformers import LlavaImageProcessorPil, LlavaProcessor

    vision, images = parts.tower.config, parts.images
    template = _template(config, parts)
    if not parts.is_llava_1_5:
        parts.tokenizer.chat_template = template
    resample = {} if parts.is_llava_1_5 else {"resample": images.resample}
    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"shortest_edge": vision.image_size},
            crop_size={"height": vision.image_size, "width": vision.image_size},
            image_mean=list(images.image_mean),
            image_std=list(images.image_std),
            do_pad=True,
            **resample,
        ),
        tokenizer=parts.tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=_features(vision),
        num_additional_image_tokens=int(_features(vision) == "default"),
        chat_template=template,
    )


def run(config: AssembleConfig) -> AssembleReport:
    """Write the assembled checkpoint to `config.out`; raises StageError where a part is missing or doesn't fit."""
    check_name(config.projector)
    if scheme_of(config.out):
        raise StageError(f"--out {config.out}: takes a folder on this machine; copy it from there")
    check_writable(config.out)
    output = claim(config.out, "assemble", {"options": _named(config)}, resumes=False)
    if output.complete:
        log.info("%s: already complete, nothing to assemble", config.out)
        return AssembleReport(config.out, **output.record["counts"])
    projector = None if config.projector in NEW else read_projector(config.projector)
    parts = load_parts(config, getattr(torch, config.dtype))
    if projector is None:
        widths = parts.tower.config.hidden_size, parts.language_model.config.hidden_size
        projector = new_projector(*widths, config.seed)
    check_fit(config, projector, parts)
    prepare_tokenizer(config, parts)
    processor = _processor(config, parts)
    model = _put_together(config, parts, projector)
    if not parts.is_llava_1_5:
        check_tokenizer(config, parts, model.config, processor)
    counts = {"parameters": sum(p.numel() for p in model.parameters()), "tensors": len(model.state_dict())}
    output.begin(config)
    save_checkpoint(model, processor, output.work)
    pieces = os.path.join(parts.folder, FILE)
    if os.path.isfile(pieces):  # what LLaVA's own code reads
        shutil.copy(pieces, os.path.join(output.work, FILE))
    output.publish(output.work, os.path.basename(absolute(config.out)))
    output.commit(config, counts=counts)
    return AssembleReport(config.out, **counts)
