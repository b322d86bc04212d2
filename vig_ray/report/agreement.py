"""How far two rankings of the same samples agree: ranks, correlation, and the sets that both keep at p %."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console
from rich.table import Table

from vig_ray.tables.threshold import quota_of

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """The samples that A and B keep at p %: how many each, and how many `both`. `kappa`: Cohen's, 0 for chance."""

    p: float
    a: int
    b: int
    both: int
    kappa: float


def ranks(values: Floats) -> Floats:
    """The share of lower values, ties in the middle: above 0 and below 1."""
    found: Floats = pd.Series(values).rank().to_numpy()
    return (found - 0.5) / len(values)


def correlation(one: Floats, other: Floats) -> float | None:
    """Pearson's correlation; None where one of the two doesn't vary."""
    if not one.std() or not other.std():
        return None
    return float(np.corrcoef(one, other)[0, 1])


def agreement(p: float, a: Floats, b: Floats) -> Agreement:
    """How far the top p % of both agree, as `vig select` keeps them: with every tie of the last one."""
    count = quota_of(len(a), p)
    kept_a, kept_b = (values >= np.partition(values, -count)[-count] for values in (a, b))
    observed = float((kept_a == kept_b).mean())
    expected = float(kept_a.mean() * kept_b.mean() + (1 - kept_a.mean()) * (1 - kept_b.mean()))
    kappa = (observed - expected) / (1 - expected) if expected < 1 else 1.0
    return Agreement(p, int(kept_a.sum()), int(kept_b.sum()), int((kept_a & kept_b).sum()), kappa)


def agreement_table(agreements: Sequence[Agreement], common: int, a: str, b: str) -> str:
    """The sets of both as a table for people. `common`: how many samples there are; `a`, `b`: whose sets they are."""
    table = Table(box=None, pad_edge=False)
    for name in ("top p %", f"{a} keeps", f"{b} keeps", "both", f"of {a}'s also {b}'s", "by chance", "kappa"):
        table.add_column(name, justify="right", no_wrap=True)
    for sets in agreements:
        table.add_row(
            f"{sets.p:g} %",
            f"{sets.a:,}",
            f"{sets.b:,}",
            f"{sets.both:,}",
            f"{100 * sets.both / sets.a:.1f} %",
            f"{100 * sets.b / common:.1f} %",
            f"{sets.kappa:.3f}",
        )
    return printed(table)


def number_text(value: float | None) -> str:
    """A correlation for people."""
    return "not defined (one doesn't vary)" if value is None else f"{value:.4f}"


def printed(table: Table) -> str:
    """A table as text."""
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table, markup=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
