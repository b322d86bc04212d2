"""study.json by hand: rows of values by seed, with means, intervals and differences worked out here."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]
T = {2: 12.706204736432095, 3: 4.302652729911275, 4: 3.182446305284263, 5: 2.7764451051977987}
"""Student's t at 0.975 for so many seeds, from a table."""


def mean(values: Sequence[float]) -> Json:
    """A mean with its interval, x +- t s / sqrt(n)."""
    n = len(values)
    if not n:
        return {"value": None, "low": None, "high": None, "seeds": 0}
    middle = sum(values) / n
    if n == 1:
        return {"value": middle, "low": None, "high": None, "seeds": 1}
    spread = math.sqrt(sum((value - middle) ** 2 for value in values) / (n - 1))
    half = T[n] * spread / math.sqrt(n)
    return {"value": middle, "low": middle - half, "high": middle + half, "seeds": n}


def difference(ours: Mapping[str, float], theirs: Mapping[str, float], needed: int | None = 9) -> Json:
    """In pairs of seeds; `needed` is said where it isn't settled."""
    found = mean([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
    settled = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
    few = found["seeds"] < 2
    return {"mean": found, "p": None if few else 0.01 if settled else 0.3, "settled": settled,
            "seeds_needed": None if few else found["seeds"] if settled else needed}  # fmt: skip


def metric(name: str, *, percent: bool = True, higher: bool = True) -> Json:
    return {"name": name, "percent": percent, "higher_is_better": higher}


def row(arm: str, values: Mapping[str, Sequence[float]], axes: Mapping[str, Any] | None = None,
        tokens: float | None = 1000.0, seconds: float | None = 10.0) -> Json:  # fmt: skip
    """A row; its numbers get what is worked out from them in `study`. `values`: by metric and seed."""
    label = " ".join((arm, *(f"{name.rpartition('.')[2]}={value}" for name, value in (axes or {}).items())))
    seeds = max(map(len, values.values()), default=0)
    return {
        "label": label, "arm": arm, "axes": dict(axes or {}),
        "tokens": {} if tokens is None else {str(seed): tokens for seed in range(seeds)},
        "seconds": {} if seconds is None else {str(seed): seconds for seed in range(seeds)},
        "numbers": {name: {"by_seed": {str(seed): value for seed, value in enumerate(some)}}
                    for name, some in values.items()},
    }  # fmt: skip


def claim(rows: Sequence[Json], text: str, arms: Sequence[str], of: str) -> Json:
    """The order of these labels, from the least."""
    by_label = {one["label"]: one["numbers"][of]["by_seed"] for one in rows}
    steps = []
    for low, high in itertools.pairwise(arms):
        found = difference(by_label[high], by_label[low])
        said = "open" if not found["settled"] else "yes" if found["mean"]["value"] > 0 else "no"
        steps.append({"low": low, "high": high, "said": said, "difference": found})
    found = [step["said"] for step in steps]
    said = "no" if "no" in found else "open" if "open" in found else "yes"
    return {"text": text, "metric": of, "said": said, "steps": steps}


def study(rows: Sequence[Json], metrics: Sequence[Json], baseline: str, **more: Any) -> Json:
    """The whole of study.json."""
    base = next(one for one in rows if one["label"] == baseline)
    for one in rows:
        for name, number in one["numbers"].items():
            number["mean"] = mean(list(number["by_seed"].values()))
            theirs = base["numbers"][name]["by_seed"]
            number["difference"] = None if one is base else difference(number["by_seed"], theirs)
    asked = {"seeds": [0, 1, 2], "paper": more.pop("paper", []), "scaling": more.pop("law", None)}
    return {
        "title": "", "about": "", "study": asked, "baseline": baseline, "metrics": list(metrics), "rows": list(rows),
        "orders": [], "scaling": [], "failed": [], "missing": {},
        "cost": {"hours": 0.5, "gpu_hours": 0.0, "stages": 12, "ran": 12, "by_stage": {
            "train": {"runs": 6, "seconds": 1500.0}, "eval": {"runs": 6, "seconds": 300.0}}},
    } | more  # fmt: skip


def write(folder: Path, contents: Json) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(contents))
    return str(folder)


def varied() -> Json:
    """Three arms over p on two benchmarks and a loss, an arm of all samples, one without training, and a law."""
    metrics = [
        metric("pope.accuracy"),
        metric("choices.accuracy"),
        metric("held-out.loss", percent=False, higher=False),
    ]
    rows = [row("aligned", {"pope.accuracy": [0.71] * 3, "choices.accuracy": [0.50, 0.52, 0.51],
                            "held-out.loss": [2.1, 2.12, 2.11]}, tokens=None, seconds=None),
            row("full", {"pope.accuracy": [0.842, 0.848, 0.851], "choices.accuracy": [0.62, 0.63, 0.615],
                         "held-out.loss": [1.30, 1.31, 1.29]}, tokens=100_000, seconds=1000)]  # fmt: skip
    for arm, up, wobble in (("random", 0.0, 0.004), ("vig", 0.03, 0.003), ("prior", 0.015, 0.012)):
        for p in (10, 30, 50, 70):
            gain = 0.05 * math.log(p / 5)
            noise = [wobble * (((7 * seed + p // 10) % 5) - 2) for seed in range(3)]
            rows.append(row(arm, {
                "pope.accuracy": [0.72 + gain + up + each for each in noise],
                "choices.accuracy": [0.50 + 0.8 * gain + up / 2 - each for each in noise],
                "held-out.loss": [1.9 - 3 * gain - 2 * up + 2 * each for each in noise],
            }, {"select.p": p},
                tokens=1000 * p * (0.7 if arm == "vig" else 1), seconds=10 * p + (3 if up else 0)))  # fmt: skip
    paper = {"source": "VIG (Hwang and Lee), Table 1", "columns": ["pope", "MMBench"], "note": "LLaVA-1.5-7B.",
             "rows": {"full": [85.9, 64.3], "vig p=70": [86.4, "65.1"], "random": [84.0, None],
                      "llava": [85.9, 64.3]}}  # fmt: skip
    orders = [
        *(claim(rows, "random < vig on pope.accuracy", [f"random p={p}", f"vig p={p}"], "pope.accuracy")
          for p in (10, 30, 50, 70)),
        claim(rows, "vig p=70 < full < prior p=70 on choices.accuracy", ["vig p=70", "full", "prior p=70"],
              "choices.accuracy"),
    ]  # fmt: skip
    laws = []
    for arm in ("random", "vig"):
        of = {one["axes"]["select.p"]: one["numbers"]["held-out.loss"]["by_seed"].values()
              for one in rows if one["arm"] == arm}  # fmt: skip
        loss = {p: sum(found) / 3 for p, found in of.items()}
        exponent = math.log(loss[50] / loss[10]) / math.log(50 / 10)  # through two of them
        scale = 50 * loss[50] ** (-1 / exponent)
        predicted = (70 / scale) ** exponent
        laws.append({"arm": arm, "scale": scale, "exponent": exponent, "sizes": [10, 30, 50], "largest": 70,
                     "predicted": predicted, "found": loss[70], "error": abs(predicted / loss[70] - 1)})  # fmt: skip
    return study(
        rows, metrics, "random p=10", title="p and the strategy", about="Which strategy needs the fewest samples?",
        paper=[paper], law={"over": "select.p", "of": "held-out.loss"}, scaling=laws, orders=orders,
        failed=[{"name": "train-0123456789", "told": "CUDA out of memory <here>\nsecond line", "command":
                 "vig train --samples out/runs/score-1 --lr 1e-4 --out out/runs/train-0123456789"}],
        missing={"vig p=30, seed 3": "train-0123456789 failed"},
    )  # fmt: skip
