"""vLLM's inside: what its public `LLM` and `LLMEngine` don't offer. Checked by tests/compat/test_vllm.py.

`engine` is a `vllm.LLMEngine`, `core` its `engine_core`, the client of what computes.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Placed(NamedTuple):
    """An image in a prompt: what `image_item` made of it, the key that vLLM's caches know it by, the first of its
    `length` places, and which of those hold its features (bool [length], a tensor; None: all)."""

    item: Any
    key: str
    start: int
    length: int
    features: Any


def uses_v2_runner(engine: Any) -> bool:
    """Whether the V2 model runner computes, which alone knows `prompt_logprob_start`.

    vLLM chooses it by device, model and environment, and only its config says so. Checked against vLLM 0.32.0.
    """
    return bool(engine.vllm_config.use_v2_model_runner)


def images_see_both_ways(engine: Any) -> bool:
    """Whether the parts of an image see each other both ways in this model, as in Gemma 3.

    vLLM's attention on a CPU is causal whatever the model, and says nothing. Checked against vLLM 0.32.0.
    """
    return bool(engine.model_config.is_mm_prefix_lm)


def image_item_maker(engine: Any) -> Callable[[Mapping[str, Any]], Any]:
    """What turns a single image's arrays, as transformers' processor makes them, into what vLLM's model takes.

    The public way is to send the picture, which vLLM would preprocess itself, one after the other, and differently
    from the other engines. How arrays are shared out over images is known to `_get_mm_fields_config` of the model's
    own processor. Checked against vLLM 0.32.0.
    """
    from transformers import BatchFeature
    from vllm.multimodal.inputs import MultiModalKwargsItems

    fields = engine.renderer.get_mm_processor()._get_mm_fields_config

    def make(arrays: Mapping[str, Any]) -> Any:
        inputs = BatchFeature(dict(arrays))
        (item,) = MultiModalKwargsItems.from_hf_inputs(inputs, fields(inputs, {}))["image"]
        return item

    return make


def engine_input(token_ids: list[int], images: Sequence[Placed]) -> Any:
    """A request for `engine.add_request`: token ids with every image token in place, and the images at theirs.

    The public prompts have one token an image and the picture itself. Checked against vLLM 0.32.0.
    """
    from vllm.inputs.engine import mm_input, tokens_input
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    if not images:
        return tokens_input(token_ids)
    return mm_input(
        token_ids,
        MultiModalKwargsItems({"image": [image.item for image in images]}),
        {"image": [image.key for image in images]},
        {"image": [PlaceholderRange(image.start, image.length, image.features) for image in images]},
    )


def processed(engine: Any, picture: Any) -> tuple[Mapping[str, Any], int]:
    """What vLLM's own processor makes of a PIL image: the model's arrays by name, and how many tokens it takes.

    It is what `engine_input` goes round, and is held against; no request tells it. Checked against vLLM 0.32.0.
    """
    from vllm.multimodal.processing import ProcessorInputs, TimingContext

    processor = engine.renderer.get_mm_processor()
    text = processor.dummy_inputs.get_dummy_text({"image": 1})
    whole = processor.apply(
        ProcessorInputs(
            prompt=processor.info.get_tokenizer().encode(text),
            mm_data_items=processor.info.parse_mm_data({"image": [picture]}),
        ),
        TimingContext(enabled=False),
    )
    return whole["mm_kwargs"]["image"][0].get_data(), whole["mm_placeholders"]["image"][0].get_num_embeds()


def has_process(core: Any) -> bool:
    """Whether the engine computes in a process of its own, which may die alone. Checked against vLLM 0.32.0."""
    return hasattr(core, "outputs_queue")


def process_died(core: Any) -> bool:
    """Whether vLLM has noticed that the engine's process is gone; it tells only whoever asks for more.

    Checked against vLLM 0.32.0.
    """
    return bool(getattr(getattr(core, "resources", None), "engine_dead", False))


def wake(core: Any) -> None:
    """Raise EngineDeadError in the thread that waits for the next output of an engine in a process of its own.

    vLLM closes its client when the process dies and leaves who waits waiting for ever. Checked against vLLM 0.32.0.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    core.outputs_queue.put_nowait(EngineDeadError())


def means_death(error: Exception, core: Any) -> bool:
    """Whether an error says that the engine is gone for good. Its client may also find its socket closed by vLLM's own
    watch over the process, which is any kind of error. Checked against vLLM 0.32.0.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, EngineDeadError) or process_died(core)


def rename_weights(module: str, model: str, pattern: re.Pattern[str], name: str) -> None:
    """Let class `model` of vLLM's models read weights whose names match `pattern`, replaced by `name`.

    Only in this process, and only for models made after it. No option of vLLM's renames weights. Checked against vLLM
    0.32.0.
    """
    from vllm.model_executor.models.utils import WeightsMapper

    model_class = getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), model)
    model_class.hf_to_vllm_mapper |= WeightsMapper(orig_to_new_regex={pattern: name})
