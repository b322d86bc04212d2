"""From the name of a checkpoint to its formatter (CPU stage) and its weights (engine)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from vig_ray.errors import StageError
from vig_ray.model.chat import ChatFormatter
from vig_ray.model.checkpoint import config_of, local_folder, read_config, read_text_config, trust, trusted, unusable
from vig_ray.model.fuyu import FuyuImages
from vig_ray.model.llava import LlavaFormatter
from vig_ray.model.plain import PlainFormatter
from vig_ray.model.probe import differences
from vig_ray.model.prompt import Formatter
from vig_ray.model.sentencepiece import agree
from vig_ray.options import Template
from vig_ray.storage import one_line

log = logging.getLogger(__name__)


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


class Prompts(NamedTuple):
    """What decides a prompt: the checkpoint, its template, the longest prompt in tokens (None: the model's own), the
    text that is trained after an answer (None: what the template says), and whether the checkpoint's code is run."""

    model: str
    template: Template = "auto"
    max_length: int | None = None
    end_of_turn: str | None = None
    trust_remote_code: bool = False


def prompts_of(config: Any) -> Prompts:
    """What of a stage's config decides its prompts."""
    return Prompts(*(getattr(config, name) for name in Prompts._fields))


def _load_processor(folder: str) -> Any:
    """The checkpoint's processor, as transformers makes it."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, trust_remote_code=trusted(folder))


def _stops(folder: str, tokenizer: Any) -> list[str]:
    """The tokens at which the model stops to speak."""
    named = [_text_of(tokenizer, token) for token in _stop_ids(folder)]
    return [str(token) for token in [*named, tokenizer.eos_token] if token]


def _stop_ids(folder: str) -> list[int]:
    """Those that the checkpoint's generation config names."""
    path = os.path.join(folder, "generation_config.json")
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8") as file:
        ids = json.load(file).get("eos_token_id")
    return [token for token in (ids if isinstance(ids, list) else [ids]) if isinstance(token, int) and token >= 0]


def stop_ids(model: str, formatter: Formatter) -> tuple[int, ...]:
    """The tokens at which an answer of checkpoint `model` is at its end: its formatter's, and those of its generation
    config, or, where it has none, of its config."""
    folder = local_folder(model, weights=False)
    named: Any = _stop_ids(folder)
    if not os.path.isfile(os.path.join(folder, "generation_config.json")):
        named = getattr(config_of(folder).get_text_config(), "eos_token_id", None)
        named = named if isinstance(named, list) else [] if named is None else [named]
    return tuple(dict.fromkeys((*formatter.stop_ids, *named)))


def _text_of(tokenizer: Any, token: int) -> str | None:
    """A token as a text has it, which for an ordinary one isn't what the vocabulary has; None where there is none."""
    if tokenizer.convert_ids_to_tokens(token) is None:
        return None
    added = tokenizer.added_tokens_decoder.get(token)
    return str(added or tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def load_formatter(
    model: str,
    template: Template = "auto",
    max_length: int | None = None,
    end_of_turn: str | None = None,
    trust_remote_code: bool = False,
) -> Formatter:
    """The formatter of checkpoint `model`.

    `template` auto: vicuna_v1 for a LLaVA-1.5 (CLIP tower, Llama, `</s>`), else the checkpoint's own chat template.
    plain: images and captions, for LLaVA's layout with any parts, and for Fuyu.
    `max_length`: tokens, images included; default 2048 for LLaVA-1.5, else what the language model was made for.
    `end_of_turn`: what is trained after each answer, by default what the chat template puts there, up to the first
    token at which the model stops. `trust_remote_code`: see `checkpoint.trust`.
    Raises StageError where the checkpoint has no tokenizer, processor or template that works.
    """
    from transformers import AutoTokenizer

    if trust_remote_code:
        trust(model)
    folder = local_folder(model, weights=False)
    config = read_config(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted(folder))
        if not tokenizer.is_fast:
            raise StageError(f"{model}: its tokenizer gives no character offsets; add a tokenizer.json")
        chosen = _template_for(config, tokenizer, template)
        processor = _load_processor(folder)
        if not os.path.isfile(os.path.join(folder, "tokenizer.json")):
            agree(tokenizer, folder)
            agree(processor.tokenizer, folder)
    except StageError:
        raise
    except Exception as error:  # code that comes with a model raises whatever its author wrote
        raise unusable(model, "tokenizer or processor can't be loaded", error) from error
    if chosen == "plain":
        if end_of_turn is not None:
            raise StageError("--end-of-turn: a caption of --template plain ends with a newline; it is for chat")
        return _plain_formatter(model, folder, config, processor, max_length)
    if chosen == "llava_v1":
        if end_of_turn is not None:
            raise StageError("--end-of-turn: LLaVA-1.5's is </s>; it is for --template chat")
        return _llava_formatter(model, config, tokenizer, processor, max_length)
    return _chat_formatter(model, config, processor, max_length, _stops(folder, tokenizer), end_of_turn)


def _llava_formatter(model: str, config: Any, tokenizer: Any, processor: Any, max_length: int | None) -> LlavaFormatter:
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


def _plain_formatter(model: str, folder: str, config: Any, processor: Any, max_length: int | None) -> PlainFormatter:
    """Images and captions, by the processor of the checkpoint's family."""
    if config.model_type == "fuyu":
        try:
            limit = max_length or _limit(config, processor.tokenizer)
            return PlainFormatter(FuyuImages(processor, image_token_id=config.image_token_id, max_length=limit))
        except Exception as error:  # whatever a processor that works in another way raises
            raise StageError(f"{model}: its processor can't be used: {one_line(error)[:300]}") from error
    if config.model_type != "llava":
        raise StageError(
            f"{model}: --template plain is for the models that LLaVA's alignment makes, and for Fuyu; "
            f"this is a {config.model_type!r}"
        )
    tokenizer = processor.tokenizer
    if _template_for(config, tokenizer, "auto") == "llava_v1":
        return PlainFormatter(_llava_formatter(model, config, tokenizer, processor, max_length))
    formatter = _chat_formatter(model, config, processor, max_length, _stops(folder, tokenizer), None)
    if not formatter.by_parts:
        raise StageError(f"{model}: --template plain needs an image's tokens by themselves; {formatter.told[0]}")
    return PlainFormatter(formatter)


def _limit(config: Any, tokenizer: Any) -> int:
    """The longest prompt that the language model was made for, tokens."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or 4096
    return int(min(limit, tokenizer.model_max_length))


def _chat_formatter(
    model: str, config: Any, processor: Any, max_length: int | None, stops: list[str], end_of_turn: str | None
) -> ChatFormatter:
    """By the checkpoint's own template, held against its processor."""
    if getattr(config, "image_token_id", None) is None:
        raise StageError(f"{model}: its config names no image token, so nothing tells images from text")
    try:
        formatter = ChatFormatter(
            processor,
            image_token_id=config.image_token_id,
            max_length=max_length or _limit(config, processor.tokenizer),
            stops=stops,
            end_of_turn=end_of_turn,
        )
        differing = differences(formatter)
    except StageError:  # about an option
        raise
    except Exception as error:  # whatever a processor that works in another way raises
        raise StageError(f"{model}: its processor or chat template can't be used: {one_line(error)[:300]}") from error
    if differing:
        formatter.by_parts = False
        more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
        formatter.told.append(f"each sample goes through its processor as a whole ({differing[0]}{more})")
    formatter.told.append(formatter.end_of_turn.told())
    return formatter


def tell(model: str, formatter: Formatter) -> None:
    """Log what a person should know of how checkpoint `model` is prompted."""
    for line in getattr(formatter, "told", ()):
        log.info("%s: %s", model, line)


def template_fingerprint(formatter: Formatter) -> str:
    """A hash of what decides token ids, masks and pixels, 16 hex digits."""
    identity = json.dumps(formatter.identity(), sort_keys=True, default=str)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def default_dtype(model: str, device: str) -> str:
    """The precision to run checkpoint `model` in where nobody says: float32 on a CPU, on a GPU the checkpoint's own."""
    if device == "cpu":
        return "float32"
    stored = config_of(local_folder(model, weights=False)).dtype
    return str(stored or "bfloat16").removeprefix("torch.")


def load_model(model: str, *, dtype: str, device: str, text_only: bool = False) -> Any:
    """The checkpoint's weights in `dtype` ("auto": the one they are stored in) on `device`, in evaluation mode.

    `text_only`: it is a language model, an AutoModelForCausalLM. Raises StageError where the weights are missing or
    don't fit the config.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    folder = local_folder(model, weights=True)
    (read_text_config if text_only else read_config)(folder)  # their refusals say more than transformers' own
    try:
        loaded, report = (AutoModelForCausalLM if text_only else AutoModelForImageTextToText).from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation="sdpa",
            output_loading_info=True,
            trust_remote_code=trusted(folder),
        )
    except Exception as error:  # code that comes with a model raises whatever its author wrote
        raise unusable(model, "the weights can't be loaded", error) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        # transformers would fill these with random numbers and go on.
        names = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))[:3]
        raise StageError(f"{model}: weights missing or of another shape, {', '.join(names)} among them")
    return loaded.eval().to(device)


@contextmanager
def without_bars() -> Iterator[None]:
    """Meanwhile transformers shows no progress bars of files and weights."""
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


def without_weights(model: str, *, text_only: bool = False) -> Any:
    """The checkpoint's model without its weights, on torch's meta device, in evaluation mode.

    `text_only`: it is a language model. Raises StageError.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    folder = local_folder(model, weights=False)
    config = (read_text_config if text_only else read_config)(folder)
    try:
        with torch.device("meta"):
            return (
                (AutoModelForCausalLM if text_only else AutoModelForImageTextToText)
                .from_config(config, attn_implementation="sdpa", trust_remote_code=trusted(folder))
                .eval()
            )
    except Exception as error:  # code that comes with a model raises whatever its author wrote
        raise unusable(model, "can't be built from its config", error) from error
