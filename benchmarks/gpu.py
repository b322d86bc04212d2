"""Scoring and training on one NVIDIA GPU, in under 8 minutes: `python -m benchmarks.gpu`.

It needs torch, transformers and what `vig_ray.scoring.engines.torch` imports; neither Ray nor a download. LLaVA-1.5 7B
and Qwen2.5-VL 7B at random weights in bfloat16, on samples of LLaVA-665K's shape (benchmarks/llava_shape.py):

    scoring     the published loop, one sample at a time (benchmarks/published.py), and the torch engine with each
                reference, with and without what prompts begin with shared: samples/s of two passes, FLOPs as torch
                counts them over the least (benchmarks/least.py), and their share of the rate at which this GPU
                multiplies large matrices
    training    packed, padded and transformers.Trainer (benchmarks/gpu_training.py)
    numbers     the mean absolute difference of a prompt's log-probs between the engine and the loop, nats

Each part has a budget of seconds; what doesn't fit into the time or the memory that is left is told and left out. Ends
with 1 where a part failed otherwise. `--small` runs everything on small models, on a CPU too.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.flops import counted
from benchmarks.least import least_flops
from benchmarks.llava_shape import PASSES, Family, llava, prepared, qwen, reference, samples
from benchmarks.published import published_loop
from vig_ray.model.prompt import Prompt
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.engines.tree import out_of_memory

SHARING = "share_prefixes"
COLUMNS = ("gpu", "model", "what", "samples/s", "share of matrix rate", "FLOPs / least", "peak GB", "difference, nats")


class Report:
    """Figures as they come, each with the GPU's name, and the time that is left for more."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device = device
        self.gpu = torch.cuda.get_device_name() if device == "cuda" else f"no GPU: CPU, {platform.machine()}"
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.failed = False
        self._end = time.monotonic() + seconds

    def add(self, model: str, what: str, **figures: float) -> None:
        """One row; `figures` by the columns' names."""
        row = {"gpu": self.gpu, "model": model, "what": what} | figures
        self.rows.append(row)
        told = ", ".join(f"{name} {_word(value)}" for name, value in figures.items())
        print(f"{self.gpu}: {model}, {what}: {told}", flush=True)

    def skip(self, what: str, why: str) -> None:
        self.skipped.append(f"{what}: {why}")
        print(f"left out: {what}: {why}", flush=True)

    def part(self, what: str, seconds: float, run: Callable[[], None]) -> None:
        """Run a part that takes about so long, if there is as much time left; what it fails of is told."""
        left = self._end - time.monotonic()
        if left < seconds:
            self.skip(what, f"{max(0.0, left):.0f} s are left, it takes about {seconds:.0f}")
            return
        try:
            run()
        except Exception as error:  # one part's failure is no reason to lose the others
            self.failed = self.failed or not out_of_memory(error)
            self.skip(what, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def markdown(self) -> str:
        """All figures as a table, and what was left out."""
        lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        for row in self.rows:
            lines.append("| " + " | ".join(_word(row[name]) if name in row else "" for name in COLUMNS) + " |")
        return "\n".join([*lines, "", *(f"left out: {each}" for each in self.skipped)])

    def reset_peak(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> dict[str, float]:
        """The most memory that tensors took since then, GB; nothing on a CPU."""
        return {"peak GB": torch.cuda.max_memory_allocated() / 1e9} if self.device == "cuda" else {}

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.1e}" if value < 0.01 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def matrix_rate(report: Report, dtype: torch.dtype, side: int) -> float:
    """FLOP/s of products of large random matrices: ten after three to warm up."""
    a, b = (torch.randn(side, side, device=report.device, dtype=dtype) for _ in range(2))
    began = 0.0
    for number in range(13):
        if number == 3:
            report.wait()
            began = time.perf_counter()
        _ = a @ b
    report.wait()
    return 10 * 2 * side**3 / (time.perf_counter() - began)


def make_engine(family: Family, model: Any, *, share: bool) -> TorchEngine | None:
    """The torch engine, None where it can't be told to share no prefixes."""
    accepted = inspect.signature(TorchEngine.__init__).parameters
    if not share and SHARING not in accepted:
        return None
    options = {} if share else {SHARING: False}
    return TorchEngine(model, family.formatter.collate, **options)  # type: ignore[arg-type]


def scoring(
    report: Report, family: Family, model: Any, rate: float, names: Sequence[str], count: int | None, looped: int
) -> None:
    """The loop over `looped` samples, the engine over `count` or as many as it takes `_ENGINE_S` for, for each
    reference."""
    few = prepared(samples(family, looped))
    seconds = _seconds(report, lambda: published_loop(model, family.formatter.collate, few))  # to warm up, too
    for name in names:
        # The loop twice over two passes, the engine twice over twice as many samples at its rate.
        estimate = 4 * seconds + (0 if count else 8 * _ENGINE_S)
        report.part(
            f"{family.name}, {name}", estimate, partial(_reference, report, family, model, rate, name, count, few)
        )  # fmt: skip


_ENGINE_S = 4.0  # seconds of a measured run of the engine
_MOST = 128  # samples of it


def _reference(
    report: Report, family: Family, model: Any, rate: float, name: str, count: int | None, few: Sequence[Prompt]
) -> None:
    without_image, collate = reference(name, family), family.formatter.collate
    pairs = prepared([each for prompt in few for each in (prompt, without_image(prompt))])
    expected: list[Any] = []
    report.reset_peak()
    flops = counted(model, lambda: expected.extend(published_loop(model, collate, pairs))).total
    seconds = _seconds(report, lambda: published_loop(model, collate, pairs))
    report.add(
        family.name, f"loop, {name}",
        **_figures(flops, least_flops(family.config, pairs).total, seconds, rate, len(few)), **report.peak(),
    )  # fmt: skip
    for share in (True, False):
        what = f"engine, {name}" + ("" if share else ", nothing shared")
        engine = make_engine(family, model, share=share)
        if engine is None:
            report.skip(f"{family.name}, {what}", f"not available: this engine has no {SHARING}")
            continue
        found: list[Any] = []
        seconds = _seconds(report, lambda engine=engine, into=found: into.extend(engine.logprobs(pairs)))
        refused = next((each for each in found if isinstance(each, Exception)), None)
        if refused is not None:
            raise refused
        differences = [np.abs(a - b).mean() for a, b in zip(expected, found, strict=True)]
        number = count or min(_MOST, max(len(few), round(_ENGINE_S * len(few) / seconds)))
        _engine_row(
            report, family, model, rate, (name, what), number, share=share, difference=float(np.mean(differences))
        )  # fmt: skip


def _engine_row(
    report: Report, family: Family, model: Any, rate: float, names: tuple[str, str], count: int, *, share: bool,
    difference: float,
) -> None:  # fmt: skip
    """Two runs over `count` samples, the first to count and to warm up. Each by an engine of its own: the least has
    what a set begins with once, and so must the engine."""
    name, what = names
    without_image = reference(name, family)
    clean = samples(family, count, seed=1)
    pairs = prepared([each for prompt in clean for each in (prompt, without_image(prompt))])
    first, second = (make_engine(family, model, share=share) for _ in range(2))
    assert first is not None
    assert second is not None
    report.reset_peak()
    flops = counted(model, lambda: first.logprobs(pairs)).total
    seconds = _seconds(report, lambda: second.logprobs(pairs))
    report.add(
        family.name, what, **_figures(flops, least_flops(family.config, pairs).total, seconds, rate, count),
        **report.peak(), **{"difference, nats": difference},
    )  # fmt: skip


def _seconds(report: Report, call: Callable[[], Any]) -> float:
    report.wait()
    began = time.perf_counter()
    call()
    report.wait()
    return time.perf_counter() - began


def _figures(flops: float, least: float, seconds: float, rate: float, count: int) -> dict[str, float]:
    return {
        "samples/s": count / seconds, "share of matrix rate": flops / seconds / rate, "FLOPs / least": flops / least
    }  # fmt: skip


def families(*, small: bool) -> tuple[Family, Family]:
    """What runs here: LLaVA-1.5 and Qwen2.5-VL, of 7 billion parameters or small."""
    return (llava("small"), qwen("small")) if small else (llava("7b"), qwen("7b"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small models, float32 on a CPU; in a minute")
    parser.add_argument("--seconds", type=float, default=450, help="for everything")
    parser.add_argument("--samples", type=int, help="of the engine; by default 4 seconds' worth, small ones 6")
    parser.add_argument("--looped", type=int, help="of the loop; by default 16, small ones 3")
    parser.add_argument("--references", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--parts", nargs="+", choices=("scoring", "training"), default=["scoring", "training"])
    parser.add_argument("--out", help="a JSON file that gets all figures")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.small:
        parser.error("no NVIDIA GPU that torch sees; --small runs on the CPU")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    report = Report(device, options.seconds)
    rate = matrix_rate(report, dtype, 512 if device == "cpu" else 8192)
    print(f"{report.gpu}: torch {torch.__version__}, transformers {transformers.__version__}, {dtype}, matrix rate "
          f"{rate / 1e12:.3g} TFLOP/s", flush=True)  # fmt: skip
    small = options.small
    if small:
        torch.set_num_threads(1)  # of models this small, threads are only in each other's way
    count, looped = options.samples or (6 if small else None), options.looped or (3 if small else 16)

    def scored(family: Family) -> Callable[[], None]:
        return lambda: scoring(report, family, family.model(device, dtype), rate, options.references, count, looped)

    def trained(family: Family, *, lora: bool) -> Callable[[], None]:
        def run() -> None:
            from benchmarks.gpu_training import training

            training(report, family, dtype, rate, lora=lora, batch=4 if small else 16)

        return run

    first, second = families(small=small)
    parts = {
        f"{first.name}, scoring": (40, scored(first)),
        f"{first.name}, training with LoRA": (60, trained(first, lora=True)),
        f"{second.name}, scoring": (40, scored(second)),
        f"{first.name}, training of all weights": (60, trained(first, lora=False)),
        f"{second.name}, training with LoRA": (60, trained(second, lora=True)),
    }
    for what, (seconds, run) in parts.items():
        if what.split(", ")[1].split()[0] in options.parts:
            report.part(what, 1 if small else seconds, run)
    print(f"\n{report.markdown()}")
    if options.out:
        record = {
            "gpu": report.gpu, "torch": torch.__version__, "transformers": transformers.__version__,
            "dtype": str(dtype), "matrix_rate": rate, "figures": report.rows, "left_out": report.skipped,
        }  # fmt: skip
        Path(options.out).write_text(json.dumps(record, indent=1))
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
