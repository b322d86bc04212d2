"""What a study would run, what is shared, what is there, and what the rest costs: `--dry-run`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vig_ray.progress import duration
from vig_ray.study.graph import Cell, Graph
from vig_ray.study.rates import Estimate, Rates
from vig_ray.study.record import Record


def plan_text(graph: Graph, cells: Sequence[Cell], records: Mapping[str, Record], rates: Rates) -> str:
    """For a person at a terminal."""
    uses = Counter(graph.nodes[name].stage for cell in cells for name in cell.nodes)
    of_stage: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for cell in cells for name in cell.nodes):
        of_stage.setdefault(graph.nodes[name].stage, []).append(name)
    labels, seeds = len({cell.label for cell in cells}), len({cell.seed for cell in cells})
    lines = [f"{len(cells):,} cells: {labels} arms with what is varied, {seeds} seeds"]
    known: list[Estimate] = []
    unknown = []
    for stage, names in of_stage.items():
        left = [name for name in names if name not in records or not records[name].done]
        line = f"  {stage:<12} {len(names):5,} runs for {uses[stage]:,} uses"
        if len(left) < len(names):
            line += f", {len(names) - len(left):,} are there"
        if left:
            found = [rates.of(name) for name in left]
            some = [each for each in found if each is not None]
            line += f"; {len(left):,} to run{_told(some, len(left))}"
            known += some
            if len(some) < len(left):
                unknown.append(stage)
        lines.append(line)
    if known:
        on_gpus = sum(each.gpu_seconds for each in known)
        line = f"about {duration(sum(each.seconds for each in known))} one after the other"
        line += f", {on_gpus / 3600:.2g} GPU hours" if on_gpus else ""
        line += f", and {', '.join(unknown)}" if unknown else ""
        if any(each.scaled for each in known):
            line += (
                "; scaled: seconds per sample of what has run, the loading of models among them, times samples, times "
                "epochs, so rather too much than too little"
            )
        lines.append(line)
    if unknown and cells:
        lines.append(
            f"how long {', '.join(unknown)} take is unknown until a stage of this kind has run: --pilot 2%, or "
            f"--seeds 1 --arms {cells[0].arm}, runs one of each; --rates DIR takes the times of another study"
        )
    return "\n".join(lines)


def _told(some: Sequence[Estimate], count: int) -> str:
    """The time of a stage's runs, and by what."""
    if not some:
        return ", unknown until one has run"
    text = f", about {duration(sum(each.seconds for each in some))}"
    if len(some) < count:
        text += f" for {len(some):,} of them, the others unknown until one has run"
    by = max(each.by for each in some)
    scaled = [each.scaled for each in some if each.scaled is not None]
    if not scaled:
        return f"{text}, by {by:,} that ended"
    low, high = (sum(pair[place] for pair in scaled) / len(scaled) for place in (0, 1))
    return f"{text}, scaled from {by:,} that ended, of {low:,.0f} samples, to {high:,.0f}"
