"""What `--objective` makes of a run: its objectives, its sampler, and what a model must be for `vdep`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from vig_ray.errors import StageError
from vig_ray.model.head import forward_arguments
from vig_ray.model.prompt import Formatter, Prompt
from vig_ray.training.config import TrainConfig, vdep_of
from vig_ray.training.hybrid import HybridSampler, JointSampler, with_first_token
from vig_ray.training.next_token import NextToken
from vig_ray.training.objective import Objective
from vig_ray.training.options import TrainingOptions
from vig_ray.training.sampler import StepSampler
from vig_ray.training.vdep import ImageEmbeddings

# What transformers gives a language model that says nothing of an image beside its embeddings in the sequence.
_PLAIN = {
    "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache", "cache_position",
    "output_attentions", "output_hidden_states", "return_dict", "moe_mm_token_type_ids",
}  # fmt: skip


def sampler_of(config: TrainingOptions, samples: int) -> StepSampler:
    """The order of a run over `samples` positions, and with `vdep` which of them are in image mode."""
    given = samples, config.global_batch, config.epochs, config.seed, config.max_steps
    vdep = vdep_of(config)
    if vdep is None:
        return StepSampler(*given)
    if vdep.vdep_batches == "joint":
        return JointSampler(*given)
    return HybridSampler(*given, ratio=vdep.vdep_ratio, doubled=vdep.vdep_doubled)


def norms_every(config: TrainingOptions) -> int:
    """Steps between measurements of each term's gradient norm; 0: none."""
    vdep = vdep_of(config)
    return 0 if vdep is None else vdep.vdep_norms_every


def objectives_of(config: TrainingOptions, model: Any) -> tuple[Objective, ...]:
    """The terms of the loss, the cross-entropy first. Raises StageError where `model` can't be trained so."""
    vdep = vdep_of(config)
    if vdep is None:
        return (NextToken(),)
    _refuse(vdep, model)
    layers = len(model.get_decoder().layers)
    layer = vdep.vdep_layer
    if layer is not None and layer > layers:
        raise StageError(f"--vdep-layer {layer}: {type(model).__name__} has {layers} layers")
    images = ImageEmbeddings(
        factor=vdep.vdep_alpha,
        reduction=vdep.vdep_reduction,
        shift=vdep.vdep_shift,
        live=vdep.vdep_target == "live",
        layer=None if layer == layers else layer,
    )
    return (NextToken(), images)


def mark_of(config: TrainingOptions, model: Any, formatter: Formatter) -> Callable[[Prompt], Prompt] | None:
    """What shows a prompt to be in image mode: the mode token at its beginning; None without one. Raises StageError."""
    vdep = vdep_of(config)
    token = None if vdep is None else vdep.vdep_mode_token
    if token is None:
        return None
    if not getattr(formatter, "by_parts", True):
        raise StageError(
            f"--vdep-mode-token: {type(model).__name__}'s processor makes each sample as a whole, so no token can be "
            "put into it; leave the option out"
        )
    bos = formatter.tokenizer.bos_token_id
    row = _row_of(token, model, formatter.tokenizer)
    return partial(with_first_token, token=row, bos=bos, max_length=formatter.max_length)


def _row_of(token: str, model: Any, tokenizer: Any) -> int:
    """The row of the embeddings that a mode token has: its own, or the first that no text comes to."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if token in vocabulary:
        return vocabulary[token]
    rows = int(model.get_input_embeddings().weight.shape[0])
    used = set(vocabulary.values()) | {
        value
        for name, value in vars(model.config).items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    unused = next((row for row in range(rows) if row not in used), None)
    if unused is None:
        raise StageError(
            f"--vdep-mode-token {token}: not a token of the tokenizer, and all {rows} rows of the embeddings are in "
            "use; name a token that it has and that no text contains, or leave the option out"
        )
    return unused


def _refuse(config: TrainConfig, model: Any) -> None:
    """Raise StageError where an image's embeddings in the sequence aren't all that the language model has of it, or
    where its states have seen what they are to predict."""
    name = type(model).__name__
    parameters = inspect.signature(model.get_decoder().forward).parameters
    named = {each.name for each in parameters.values() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}
    more = sorted(named - _PLAIN)
    if more or "inputs_embeds" not in named:
        what = f"is given other things than embeddings ({', '.join(more)})" if more else "takes no embeddings"
        raise StageError(
            f"--objective vdep: the language model of {name} {what}, so that the embeddings in the sequence aren't all "
            "that it has of an image; train it with --objective next-token"
        )
    text = model.config.get_text_config()
    sees_all = "token_type_ids" in forward_arguments(model) or getattr(text, "use_bidirectional_attention", None)
    if config.vdep_shift and sees_all:
        raise StageError(
            f"--vdep-shift 1: in {name} the tokens of an image see each other, so that a state has seen what it is to "
            "predict; take --vdep-shift 0"
        )
