"""transformers' `generate`, step by step: who chooses the next tokens is told the logits, and says which rows go on.

What a family does before and between its forwards (positions, masks, caches) is `generate`'s and the model's own.
Checked against transformers 5.19.0 by tests/compat/test_generation.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Choose = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""From the logits of the rows that are left, [R, V], to the next token of each, int64 [R], and which of them are
computed further: their places, int64 [fewer], none of them to end, or None for all."""


@torch.inference_mode()
def write(model: Any, ids_BL: torch.Tensor, choose: Choose, *, most: int, pad: int, **arguments: Any) -> None:
    """Write up to `most` tokens after each row of `ids_BL`, padded on the left, as `choose` says.

    `arguments`: `attention_mask` and whatever else the model's forward takes of this batch; with `past_key_values` the
    tokens that a cache holds already are among `ids_BL`.
    """
    from transformers import GenerationConfig
    from transformers.generation import GenerationMixin

    def steps(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,  # noqa: ARG001 - as `generate` calls it
        stopping_criteria: Any,  # noqa: ARG001
        generation_config: Any,
        **arguments: Any,
    ) -> torch.Tensor:
        outputs = model._prefill(input_ids, generation_config, arguments)
        while True:
            arguments = model._update_model_kwargs_for_generation(outputs, arguments, is_encoder_decoder=False)
            tokens_R, going_on = choose(outputs.logits[:, -1].float())
            input_ids = torch.cat([input_ids, tokens_R[:, None]], dim=1)
            if going_on is not None:
                if not len(going_on):
                    return input_ids
                input_ids, arguments = _of_rows(input_ids, arguments, going_on)
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **arguments)
            outputs = model(**inputs, return_dict=True)

    config = GenerationConfig(max_new_tokens=most, do_sample=False, num_beams=1, use_cache=True, pad_token_id=pad)
    with _without_its_own_settings(model):
        # Not the model's: Janus's own leaves out what it is given.
        GenerationMixin.generate(model, ids_BL, generation_config=config, custom_generate=steps, **arguments)


@contextmanager
def _without_its_own_settings(model: Any) -> Iterator[None]:
    """Meanwhile nothing of the checkpoint's generation config is added to what is asked for."""
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def _of_rows(
    input_ids: torch.Tensor, arguments: dict[str, Any], rows: torch.Tensor
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Ids and arguments of these rows of a batch alone; the cache is changed in place."""
    of_batch, kept = len(input_ids), dict(arguments)
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            continue
        if name == "position_ids":  # may have time, height and width before the rows
            kept[name] = value.index_select(-2, rows) if value.shape[-2] == of_batch else value
        elif value.shape[0] == of_batch:
            kept[name] = value.index_select(0, rows)
    kept["past_key_values"].reorder_cache(rows)
    return input_ids.index_select(0, rows), kept


def cache_of(model: Any) -> Any:
    """An empty cache that grows, for the part of `model` that reads text."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config.get_text_config(decoder=True))
