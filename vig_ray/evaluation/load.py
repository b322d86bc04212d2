"""Which generator to take, and the way from a checkpoint's name to one that is ready."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from vig_ray.errors import StageError
from vig_ray.evaluation.decoding import Decoding
from vig_ray.evaluation.generation import Generator
from vig_ray.model.chat import ChatFormatter
from vig_ray.model.load import load_formatter, load_model, stop_ids, tell
from vig_ray.model.prompt import Formatter
from vig_ray.options import Template
from vig_ray.scoring.engines.load import NOT_INSTALLED, engine_for, vllm_installed

log = logging.getLogger(__name__)


def check_generator(asked: str, decoding: str | None, *, joins_cluster: bool) -> None:
    """Raise StageError for a generator that can't be had here, or can't do what is asked of it; before anything runs.

    `asked`: auto, torch or vllm. `decoding`: the method's spec.
    """
    method = Decoding.of(decoding)
    if asked not in ("auto", "torch", "vllm"):
        raise StageError(f"--engine {asked}: an engine of your own gives log-probs alone; answers are by torch or vllm")
    if asked == "vllm" and method.name != Decoding.name:
        raise StageError(f"--decoding {method.name}: vLLM has no decoding methods of this kind; take --engine torch")
    if asked == "vllm" and not vllm_installed() and not joins_cluster:
        raise StageError(NOT_INSTALLED)


def load_generator(
    name: str,
    *,
    model: str,
    template: Template = "auto",
    max_length: int | None = None,
    end_of_turn: str | None = None,
    trust_remote_code: bool = False,
    dtype: str,
    device: str,
    batch_tokens: int | None = None,
    threads: int | None = None,
    vllm: Mapping[str, Any] | None = None,
    max_new_tokens: int = 1024,
    decoding: str | None = None,
    loaded: Any = None,
) -> Generator:
    """Load checkpoint `model` into a generator: `name` is torch or vllm.

    `batch_tokens`: tokens of a batch, answers included (vLLM: tokens a step); None for its own choice. `threads`: CPU
    threads, None for all. `vllm`: options for vLLM's own EngineArgs. `max_new_tokens`: the most that will be asked for,
    for which vLLM makes room. `decoding`: a method's spec. `loaded`: the model, where an engine of torch has it. The
    others are `load_formatter`'s. Raises StageError where the checkpoint or an option is wrong.
    """
    check_generator(name, decoding, joins_cluster=False)
    formatter = load_formatter(model, template, max_length, end_of_turn, trust_remote_code)
    tell_of_answers(model, formatter)
    stops = stop_ids(model, formatter)
    if name == "vllm":
        from vig_ray.evaluation.vllm_generator import start

        engine_for(name, formatter, model)
        return start(
            model,
            formatter,
            stops,
            dtype=dtype,
            device=device,
            batch_tokens=batch_tokens,
            threads=threads,
            options=vllm or {},
            max_new_tokens=max_new_tokens,
        )
    import torch

    from vig_ray.evaluation.generator_check import make_sure
    from vig_ray.evaluation.torch_generator import TorchGenerator

    if threads:
        torch.set_num_threads(threads)
    if loaded is None:
        loaded = load_model(model, dtype=dtype, device=device)
    generator = TorchGenerator(
        loaded, formatter, stop_ids=stops, max_batch_tokens=batch_tokens, decoding=Decoding.of(decoding)
    )
    make_sure(generator, model, formatter)
    return generator


def tell_of_answers(model: str, formatter: Formatter) -> None:
    """Log what a person should know of how checkpoint `model` is asked and where its answers end."""
    tell(model, formatter)
    if not isinstance(formatter, ChatFormatter):
        return
    asked, trained = formatter.before_answers()
    if asked != trained:
        log.info("%s: an answer is written after %r, and a trained one follows %r", model, asked, trained)
    ends = formatter.end_of_turn
    after = [ends.of(number, 2) for number in (0, 1)]
    stops = [formatter.tokenizer.decode([token]) for token in formatter.stop_ids]
    if not any(stop in end for end in after for stop in stops):
        log.warning(
            "%s: nothing that its template writes after an answer is a token at which the model stops (%s)",
            model, ", ".join(map(repr, stops)) or "none is known",
        )  # fmt: skip
