"""The parts of a model that `vig assemble` puts together: loading them, and whether LLaVA can hold them."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any, NamedTuple, Protocol

import torch
from tokenizers import Tokenizer
from torch import nn

from vig_ray.errors import StageError
from vig_ray.model.chat_template import speaks_as_vicuna
from vig_ray.model.checkpoint import local_folder
from vig_ray.model.llava import MAX_LENGTH
from vig_ray.model.projector import Projector
from vig_ray.model.sentencepiece import FILE, agree
from vig_ray.storage import one_line

IMAGE = "<image>"
# Bytes that no text in UTF-8 has.
_NEVER = (0xFF, 0xFE, 0xFD, 0xFC, 0xFB, 0xFA, 0xF9, 0xF8, 0xF7, 0xF6, 0xF5, 0xC1, 0xC0)
# What tokenizers differ on: spaces, at the start too, capitals, digits, marks, scripts, and what is no word.
_TEXTS = (
    "A red circle.",
    " a",
    "  two",
    "x\n\ny\t",
    "it's 3,141 DOGS",
    "Où? 红 😀",
    "{'a': [1]}",
    f"q{IMAGE}\na",
)


class Named(Protocol):
    """What the parts are called, for messages."""

    @property
    def language_model(self) -> str:
        """A folder or a hub id."""

    @property
    def vision_tower(self) -> str:
        """A folder or a hub id."""

    @property
    def projector(self) -> str:
        """A file, or a kind."""


class Parts(NamedTuple):
    """What is put together, less the projector, and the folder that the language model lies in."""

    language_model: Any
    tokenizer: Any
    tower: Any
    images: Any
    folder: str

    @property
    def is_vicuna(self) -> bool:
        """A Llama that ends what it says with `</s>`, and has no chat template of other roles than Vicuna's."""
        ends_so = self.language_model.config.model_type == "llama" and self.tokenizer.eos_token == "</s>"
        return bool(ends_so and speaks_as_vicuna(self.tokenizer, self.tokenizer.chat_template))

    @property
    def is_llava_1_5(self) -> bool:
        """A CLIP and such a Llama, which is prompted as LLaVA-1.5 is."""
        return self.is_vicuna and self.tower.config.model_type == "clip_vision_model"


def load_parts(named: Named, dtype: torch.dtype) -> Parts:
    """Raises StageError where one is missing or of a kind that LLaVA can't hold."""
    from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer

    folders = {
        "language_model": local_folder(named.language_model, weights=True, option="--language-model"),
        "vision_tower": local_folder(named.vision_tower, weights=True, option="--vision-tower"),
    }
    tower = _tower(named, folders["vision_tower"], dtype)
    folder = folders["language_model"]
    try:
        language_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        images = AutoImageProcessor.from_pretrained(folders["vision_tower"], trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise StageError(f"can't load a part: {one_line(error)[:300]}") from error
    if not all(isinstance(getattr(language_model.config, name, None), int) for name in ("vocab_size", "hidden_size")):
        kind = type(language_model).__name__
        raise StageError(f"--language-model {named.language_model}: a {kind} isn't a language model alone")
    parts = Parts(language_model, tokenizer, tower, images, folder)
    has_pieces = os.path.isfile(os.path.join(folder, FILE))
    if language_model.config.model_type == "llama":
        if has_pieces and not agree(tokenizer, folder, texts=100_000):
            raise StageError(f"--language-model {named.language_model}: its {FILE} isn't the model of its tokenizer")
    elif has_pieces and not os.path.isfile(os.path.join(folder, "tokenizer.json")):
        agree(tokenizer, folder)
    return parts


def _tower(named: Named, folder: str, dtype: torch.dtype) -> Any:
    """The CLIP's or SigLIP's vision half. Raises StageError for any other."""
    from transformers import AutoConfig, CLIPVisionModel, SiglipVisionModel

    try:
        kind = str(AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type)
        if kind in ("clip", "clip_vision_model"):
            return CLIPVisionModel.from_pretrained(folder, dtype=dtype)
        if kind in ("siglip", "siglip_vision_model"):
            tower = SiglipVisionModel.from_pretrained(folder, dtype=dtype)
            tower.config.vision_use_head = tower.use_head = False
            tower.head = None
            return tower
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise StageError(f"can't load a part: {one_line(error)[:300]}") from error
    raise StageError(f"--vision-tower {named.vision_tower}: a {kind!r} model; LLaVA's tower is a CLIP or a SigLIP")


def check_fit(named: Named, projector: Projector, parts: Parts) -> None:
    """Raise StageError where the projector leads from or to other widths than the parts have."""
    ends = projector["linear_1.weight"].shape[1], projector["linear_2.weight"].shape[0]
    widths = parts.tower.config.hidden_size, parts.language_model.config.hidden_size
    if ends != widths:
        raise StageError(
            f"--projector {named.projector}: leads from {ends[0]} to {ends[1]} dimensions, "
            f"but the vision tower has {widths[0]} and the language model {widths[1]}"
        )


def prepare_tokenizer(named: Named, parts: Parts) -> None:
    """An image token, a padding token, and LLaVA-1.5's length where it is one.

    The image token is one of the language model's `rows` that no text comes to: another row in its output layer would
    take a share of every probability. Raises StageError where there is none.
    """
    tokenizer, rows = parts.tokenizer, parts.language_model.config.vocab_size
    if len(tokenizer) > rows:
        raise StageError(
            f"--language-model {named.language_model}: {len(tokenizer)} tokens, but its weights have {rows} rows"
        )
    if IMAGE not in tokenizer.get_vocab() and len(tokenizer) == rows and not _give_up_a_byte(tokenizer):
        raise StageError(
            f"--language-model {named.language_model}: all of its {rows} tokens are in use, so none can stand for an "
            "image; resize its embeddings by one token that the others never win against"
        )
    llava_1_5 = parts.is_llava_1_5
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=llava_1_5)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if llava_1_5:
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


def check_kind(named: Named, model: Any, decoder: Any, head: Any) -> None:
    """Raise StageError where LLaVA makes another decoder of the language model's config, or an output layer that can't
    take this one's weights."""
    wanted, given = type(model.model.language_model), type(decoder)
    why = None
    if wanted is not given:
        why = f"its decoder is a {given.__name__}, and LLaVA would make a {wanted.__name__} of its config"
    elif not isinstance(head, nn.Linear) or head.weight.shape != model.lm_head.weight.shape:
        why = f"its output layer isn't one of {tuple(model.lm_head.weight.shape)}"
    elif head.bias is not None:
        why = "its output layer has a bias"
    if why:
        raise StageError(f"--language-model {named.language_model}: transformers' LLaVA can't hold it: {why}")


@torch.no_grad()
def check_logits(named: Named, model: Any, language_model: Any) -> None:
    """Raise StageError where the language model does more with its logits than its output layer (a soft cap, a scale):
    LLaVA would leave that out."""
    ids = torch.arange(8)[None] % language_model.config.vocab_size
    alone = language_model.eval()(input_ids=ids, use_cache=False).logits.float()
    inside = model.eval()(input_ids=ids, use_cache=False).logits.float()
    if not torch.allclose(alone, inside, rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
        raise StageError(
            f"--language-model {named.language_model}: transformers' LLaVA can't hold it: its logits are changed after "
            f"the output layer (they differ by {float((alone - inside).abs().max()):.3g})"
        )


def check_tokenizer(named: Named, parts: Parts, config: Any, processor: Any) -> None:
    """Raise StageError where transformers makes another tokenizer of what is written than the language model's: it
    chooses some by the model's type."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        written = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for text in _TEXTS:
        if written(text)["input_ids"] != parts.tokenizer(text)["input_ids"]:
            raise StageError(
                f"--language-model {named.language_model}: its tokenizer can't be kept: transformers "
                f"makes another one of it in a LLaVA's folder, which gives other ids for {text!r}"
            )
