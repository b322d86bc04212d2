"""`vig assemble`: a language model, a vision tower and a projector in LLaVA's original layout to one checkpoint.

VIG is computed with the model after pre-training of the adapter (section 3.1 of the paper). LLaVA publishes that stage
as a projector file alone, to be put between an unchanged Vicuna and an unchanged CLIP tower. This puts the three
together as a `LlavaForConditionalGeneration` in the hub's layout.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import nn

from vig_ray.errors import StageError
from vig_ray.model.chat_template import LLAVA_V1
from vig_ray.model.checkpoint import is_local, local_folder
from vig_ray.model.export import CLIP_NAME, save_checkpoint
from vig_ray.model.llava import MAX_LENGTH
from vig_ray.model.sentencepiece import FILE, agree
from vig_ray.options import Precision
from vig_ray.stage import StageConfig, claim
from vig_ray.storage import absolute, check_writable, one_line, scheme_of

log = logging.getLogger(__name__)

IMAGE = "<image>"
# Bytes that no text in UTF-8 has.
_NEVER = (0xFF, 0xFE, 0xFD, 0xFC, 0xFB, 0xFA, 0xF9, 0xF8, 0xF7, 0xF6, 0xF5, 0xC1, 0xC0)


class AssembleConfig(StageConfig):
    """Put together the model that LLaVA's pre-training ends with."""

    language_model: str = Field(
        description="Llama-like language model, such as Vicuna: a checkpoint's folder or a hub id"
    )
    vision_tower: str = Field(description="CLIP vision tower: a checkpoint's folder or a hub id")
    projector: str = Field(description="LLaVA's mm_projector.bin (two layers, mlp2x_gelu), or the same as .safetensors")
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


def read_projector(path: str) -> dict[str, torch.Tensor]:
    """LLaVA's projector as {"linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"}.

    LLaVA writes `model.mm_projector.0.*` and `.2.*` (layer 1 is the GELU between them). Raises StageError for any
    other layout.
    """
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            stored: dict[str, torch.Tensor] = load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise StageError(f"--projector {path}: no such file") from error
    except Exception as error:  # torch.load raises many kinds for a file that isn't its own
        raise StageError(f"--projector {path}: can't be read as weights: {one_line(error)[:200]}") from error
    short = {name.split("mm_projector.")[-1]: tensor for name, tensor in stored.items()}
    wanted = {
        "0.weight": "linear_1.weight",
        "0.bias": "linear_1.bias",
        "2.weight": "linear_2.weight",
        "2.bias": "linear_2.bias",
    }
    if set(short) != set(wanted):
        raise StageError(
            f"--projector {path}: needs weight and bias of mm_projector.0 and .2, an mlp2x_gelu projector, "
            f"but holds {', '.join(sorted(stored)[:6]) or 'nothing'}"
        )
    return {wanted[name]: tensor for name, tensor in short.items()}


def _load_parts(config: AssembleConfig, dtype: torch.dtype) -> tuple[Any, Any, Any, Any]:
    """Language model, its tokenizer, vision tower, image processor."""
    from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

    folders = {
        "language_model": local_folder(config.language_model, weights=True, option="--language-model"),
        "vision_tower": local_folder(config.vision_tower, weights=True, option="--vision-tower"),
    }
    try:
        language_model = AutoModelForCausalLM.from_pretrained(
            folders["language_model"], dtype=dtype, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(folders["language_model"], trust_remote_code=False)
        tower = CLIPVisionModel.from_pretrained(folders["vision_tower"], dtype=dtype)
        images = AutoImageProcessor.from_pretrained(folders["vision_tower"], trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise StageError(f"can't load a part: {one_line(error)[:300]}") from error
    if language_model.config.model_type != "llama":
        raise StageError(f"--language-model {config.language_model}: needs a Llama-like model such as Vicuna")
    if os.path.isfile(os.path.join(folders["language_model"], FILE)) and not agree(
        tokenizer, folders["language_model"], texts=100_000
    ):
        raise StageError(f"--language-model {config.language_model}: its {FILE} isn't the model of its tokenizer")
    return language_model, tokenizer, tower, images


def _named(config: AssembleConfig) -> dict[str, str]:
    """What is put together, local parts by their full names."""
    parts = {"language_model": config.language_model, "vision_tower": config.vision_tower}
    named = {option: absolute(part) if is_local(part) else part for option, part in parts.items()}
    return named | {"projector": absolute(config.projector), "dtype": config.dtype}


def _check_fit(config: AssembleConfig, projector: dict[str, torch.Tensor], tower: Any, language_model: Any) -> None:
    ends = projector["linear_1.weight"].shape[1], projector["linear_2.weight"].shape[0]
    widths = tower.config.hidden_size, language_model.config.hidden_size
    if ends != widths:
        raise StageError(
            f"--projector {config.projector}: leads from {ends[0]} to {ends[1]} dimensions, "
            f"but the vision tower has {widths[0]} and the language model {widths[1]}"
        )


def _prepare_tokenizer(config: AssembleConfig, tokenizer: Any, rows: int) -> None:
    """An image token, a padding token, a length.

    The image token is one of the language model's `rows` that no text comes to: another row in its output layer would
    take a share of every probability. Raises StageError where there is none.
    """
    if len(tokenizer) > rows:
        raise StageError(
            f"--language-model {config.language_model}: {len(tokenizer)} tokens, but its weights have {rows} rows"
        )
    if IMAGE not in tokenizer.get_vocab() and len(tokenizer) == rows and not _give_up_a_byte(tokenizer):
        raise StageError(
            f"--language-model {config.language_model}: all of its {rows} tokens are in use, so none can stand for an "
            "image; resize its embeddings by one token that the others never win against"
        )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.model_max_length = MAX_LENGTH


def _give_up_a_byte(tokenizer: Any) -> bool:
    """Rename the token of a byte that UTF-8 hasn't got; False where there is none that nothing else is made of."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"].get("vocab")
    if state["model"]["type"] != "BPE":
        return False
    parts = {part for pair in state["model"]["merges"] for part in pair}
    names = [
        name for byte in _NEVER for name in (f"<0x{byte:02X}>", chr(byte))
    ]  # byte-level BPE spells these as themselves
    spare = next((name for name in names if name in vocabulary and name not in parts), None)
    # Where letters are tokens by themselves, the sign for a byte may be one of them.
    if spare is None or (len(spare) == 1 and "ByteLevel" not in json.dumps(state["pre_tokenizer"])):
        return False
    vocabulary[IMAGE] = vocabulary.pop(spare)
    tokenizer.backend_tokenizer.model = Tokenizer.from_str(json.dumps(state)).model
    return True


def _put_together(
    config: AssembleConfig, language_model: Any, tower: Any, projector: dict[str, torch.Tensor], tokenizer: Any
) -> Any:
    """The LLaVA of these parts, none of which is copied. Raises StageError where one of its weights is in no part."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text, vision = language_model.config, tower.config
    if text.tie_word_embeddings:
        language_model.lm_head.weight = nn.Parameter(language_model.lm_head.weight.detach().clone())
        text.tie_word_embeddings = False
    llava = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        dtype=config.dtype,
    )
    if not is_local(config.vision_tower):
        setattr(llava, CLIP_NAME, config.vision_tower)  # LLaVA's code loads it by name: `vig export --format llava`
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(llava)
    model.model.language_model = language_model.model
    model.lm_head = language_model.lm_head
    model.model.vision_tower = tower
    dtype = getattr(torch, config.dtype)
    model.model.multi_modal_projector.load_state_dict({k: v.to(dtype) for k, v in projector.items()}, assign=True)
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if left:
        raise StageError(f"no weights for {', '.join(left[:3])}: the parts don't make a whole LLaVA")
    return model


def _processor(tokenizer: Any, vision: Any, images: Any) -> Any:
    """LLaVA's processor: images as the vision tower's own processor has them, but padded to squares."""
    from transformers import LlavaImageProcessorPil, LlavaProcessor

    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"shortest_edge": vision.image_size},
            crop_size={"height": vision.image_size, "width": vision.image_size},
            image_mean=list(images.image_mean),
            image_std=list(images.image_std),
            do_pad=True,
        ),
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_V1,
    )


def run(config: AssembleConfig) -> AssembleReport:
    """Write the assembled checkpoint to `config.out`; raises StageError where a part is missing or doesn't fit."""
    if scheme_of(config.out):
        raise StageError(f"--out {config.out}: takes a folder on this machine; copy it from there")
    check_writable(config.out)
    output = claim(config.out, "assemble", {"options": _named(config)}, resumes=False)
    if output.complete:
        log.info("%s: already complete, nothing to assemble", config.out)
        return AssembleReport(config.out, **output.record["counts"])
    projector = read_projector(config.projector)
    language_model, tokenizer, tower, images = _load_parts(config, getattr(torch, config.dtype))
    _check_fit(config, projector, tower, language_model)
    _prepare_tokenizer(config, tokenizer, language_model.config.vocab_size)
    model = _put_together(config, language_model, tower, projector, tokenizer)
    processor = _processor(tokenizer, tower.config, images)
    counts = {"parameters": sum(p.numel() for p in model.parameters()), "tensors": len(model.state_dict())}
    output.begin(config)
    save_checkpoint(model, processor, output.work)
    pieces = os.path.join(local_folder(config.language_model, weights=False), FILE)
    if os.path.isfile(pieces):  # what LLaVA's own code reads
        shutil.copy(pieces, os.path.join(output.work, FILE))
    output.publish(output.work, os.path.basename(absolute(config.out)))
    output.commit(config, counts=counts)
    return AssembleReport(config.out, **counts)
