"""How many FLOPs scoring computes, beside the least it takes: `python -m benchmarks.flops`.

The engine and the published loop (benchmarks/published.py) run over samples of LLaVA-665K's shape
(benchmarks/llava_shape.py) under torch's FlopCounterMode, two passes each; the least is arithmetic
(benchmarks/least.py). Printed for each reference: the engine's FLOPs over the least, in all and part by part; the
tokens that its layers computed over those that the least has, beside what they would be without padding if each prompt
were run by itself: what is above 1 is padding, or was computed twice; and the FLOPs a sample. `--marginal 8`: what
eight other images for each sample cost beside `blur`, with what prompts begin with computed once, and without.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.least import Flops, least_flops
from benchmarks.llava_shape import PASSES, Family, llava, picture, prepared, reference, samples
from benchmarks.published import largest_difference, published_loop
from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.scoring.engines.torch import TorchEngine

aten = torch.ops.aten
ATTENTION = "attention and others"


class Counted(NamedTuple):
    """FLOPs of a call as torch counts them, `total`; `by_part`, where a model's linear layers computed them, and
    `tokens`, how many went through its first decoder layer."""

    total: float
    by_part: dict[str, float]
    tokens: int


def _kernel(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """By shapes, [B, heads, L, D]: a whole rectangle, causal or not, whatever the number of heads of the keys."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def _kernel_of_lengths(query: Any, _: Any, __: Any, of_query: Any, of_key: Any, *___: Any, **____: Any) -> int:
    """Samples end to end, [tokens, heads, D]: each by itself, so that nothing is counted that isn't computed."""
    lengths = zip(of_query.diff().tolist(), (of_query if of_key is None else of_key).diff().tolist(), strict=True)
    return int(sum(4 * queries * keys for queries, keys in lengths) * query.shape[1] * query.shape[2])


_kernel_of_lengths._get_raw = True  # type: ignore[attr-defined]  # by its tensors, not their shapes


def _kernels() -> dict[Any, Callable[..., int]]:
    """Attention that torch's counter leaves out (2.13: the CPU's), or refuses with fewer keys' heads (2.11)."""
    import torch.nn.attention.varlen  # which registers the operation

    names = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    return {
        **{getattr(aten, f"_scaled_dot_product_{name}"): _kernel for name in names},
        torch.ops.torch_attn._varlen_attn: _kernel_of_lengths,
    }


def counted(model: Any, call: Callable[[], Any]) -> Counted:
    """Run `call`, which uses `model`, and count."""
    parts = {id(module): _part(name) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    first = next(part for part in model.get_decoder().layers[0].modules() if isinstance(part, torch.nn.Linear))
    by_part: Counter[str] = Counter()
    tokens = 0

    def seen(module: Any, given: tuple[Any, ...]) -> None:
        nonlocal tokens
        if id(module) not in parts:
            return
        rows = given[0].numel() // module.in_features
        by_part[parts[id(module)]] += 2 * rows * module.in_features * module.out_features
        tokens += rows if module is first else 0

    hook = torch.nn.modules.module.register_module_forward_pre_hook(seen)
    try:
        with FlopCounterMode(display=False, custom_mapping=_kernels()) as counter:
            call()
    finally:
        hook.remove()
    total = counter.get_total_flops()
    by_part[ATTENTION] = total - sum(by_part.values())
    return Counted(total, dict(by_part), tokens)


def _part(name: str) -> str:
    if "lm_head" in name:
        return "head"
    return "layers" if "language_model" in name else "tower"


class Compared(NamedTuple):
    """One reference's two passes over a set: the engine, the loop and the least, and how far the numbers differ."""

    engine: Counted
    loop: Counted
    least: Flops
    difference: float


def compared(family: Family, model: Any, engine: Any, clean: Sequence[Prompt], name: str) -> Compared:
    """The clean pass and that of the reference called `name`, in one call as the job has them."""
    without_image = reference(name, family)
    prompts = prepared([each for prompt in clean for each in (prompt, without_image(prompt))])
    found: list[Any] = []
    expected: list[Any] = []
    ours = counted(model, lambda: found.extend(engine.logprobs(prompts)))
    theirs = counted(model, lambda: expected.extend(published_loop(model, family.formatter.collate, prompts)))
    pairs = least_flops(family.config, prompts, "pairs").attention
    if min(ours.by_part[ATTENTION], theirs.by_part[ATTENTION]) < 0.99 * pairs:
        raise RuntimeError("less attention was counted than there must be: it ran in a kernel that torch doesn't count")
    return Compared(ours, theirs, least_flops(family.config, prompts), largest_difference(expected, found))


def told(name: str, result: Compared, count: int) -> str:
    """Lines about one reference."""
    engine, loop, least, difference = result
    unit = max(1.0, least.total / count)
    scale, word = (1e12, "TFLOP") if unit > 1e11 else (1e6, "MFLOP")
    lines = [
        f"{name:9} engine {engine.total / least.total:.3f} of the least, loop {loop.total / least.total:.3f}; "
        f"tokens {engine.tokens / least.tokens:.3f} (unshared {least.unshared / least.tokens:.3f}); "
        f"largest difference {difference:.1e} nats",
        f"          a sample: engine {engine.total / count / scale:.3f} {word}, loop {loop.total / count / scale:.3f}, "
        f"least {least.total / count / scale:.3f}",
    ]
    parts = {"layers": least.layers, "head": least.head, "tower": least.tower, ATTENTION: least.attention}
    lines.append(
        "          "
        + ", ".join(f"{part} {engine.by_part.get(part, 0.0) / at_least:.3f}" for part, at_least in parts.items())
    )
    return "\n".join(lines)


def with_other_images(family: Family, clean: Sequence[Prompt], images: int) -> list[list[Prompt]]:
    """The passes of `marginal`: of each sample its prompt with each of so many images that are no sample's."""
    others = [
        PromptImage(f"other-{each}", partial(picture, family.size, seed=10**6 + each), family.formatter.preprocess)
        for each in range(images)
    ]
    return [[dataclasses.replace(prompt, images=(other,)) if prompt.images else prompt for other in others]
            for prompt in clean]  # fmt: skip


def marginal_told(family: Family, model: Any, engine: Any, clean: Sequence[Prompt], images: int) -> str:
    """Lines about `marginal` beside `blur`, each with the clean pass: with shared prefixes, as the engine runs them,
    and with each prompt by itself."""
    blurred = reference("blur", family)
    passes = {
        "blur": prepared([each for prompt in clean for each in (prompt, blurred(prompt))]),
        f"marginal, {images} images": prepared([
            each for prompt, others in zip(clean, with_other_images(family, clean, images), strict=True)
            for each in (prompt, *others)
        ]),
    }  # fmt: skip
    shared = {name: counted(model, lambda given=each: engine.logprobs(given)) for name, each in passes.items()}
    alone = {name: sum(least_flops(family.config, [prompt]).total for prompt in each) for name, each in passes.items()}
    base = shared["blur"].total
    return "\n".join(
        f"{name:20} engine {shared[name].total / base:.2f} times blur's, least "
        f"{least_flops(family.config, passes[name]).total / base:.2f}, each prompt by itself {alone[name] / base:.2f}"
        for name in passes
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the small model, in seconds")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--images", type=int, help="distinct ones; by default 60 %% of the samples")
    parser.add_argument("--batch-tokens", type=int, help="the engine's, by default its own")
    parser.add_argument("--references", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--marginal", type=int, metavar="K", help="only `marginal` with so many images beside `blur`")
    options = parser.parse_args()
    family = llava("small" if options.small else "12x768")
    model = family.model()
    clean = samples(family, options.samples, images=options.images)
    print(f"{family.name}, {options.samples} samples, torch {torch.__version__}; parts as multiples of the least")
    if options.marginal:
        engine = TorchEngine(model, family.formatter.collate, max_batch_tokens=options.batch_tokens)
        print(marginal_told(family, model, engine, clean, options.marginal))
        return
    for name in options.references:
        engine = TorchEngine(model, family.formatter.collate, max_batch_tokens=options.batch_tokens)
        print(told(name, compared(family, model, engine, clean, name), options.samples), flush=True)


if __name__ == "__main__":
    main()
