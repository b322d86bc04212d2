"""What an audit advises: select by which strategy, within which groups, or not at all, and why."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Literal

from vig_ray.audit.signal import Signal

NAMED = 8
"""The most sources that a command names."""


def advice(groups: Mapping[str, Signal], by: Literal["source", "cluster"]) -> list[str]:
    """Sentences, the first one what to do. Groups too small to tell count as unseen: nothing says that they are seen.

    Where nothing is seen a selection by gain is by noise that leans, so that it can only tilt; where all is seen it is
    what the paper's is. In between the seen groups are selected from, and the others left whole: ranking them within
    their answers keeps their shares, but finds nothing in them. Samples in both, not tokens: in docs/trust.md's study
    of a half-blind model tokens by gain raised the loss, within groups more than without.
    """
    whole = sum(each.samples for each in groups.values())
    seen = {name: each for name, each in groups.items() if each.seen}
    others = {name: each for name, each in groups.items() if name not in seen}
    share = 100 * sum(each.samples for each in seen.values()) / whole
    if not seen:
        return [
            f"What to do: don't select by gain. AUROC is {_range(others)}; train on all samples, or on a random share "
            "(--strategy random), and audit the trained model",
        ]
    if not others:
        return [f"What to do: select by gain (--strategy vig or vig-samples); AUROC is {_range(seen)}"]
    lines = [
        f"What to do: select by gain where the model sees, {share:.0f} % of the samples, AUROC {_range(seen)}; "
        f"elsewhere it is {_range(others)} and a selection can only tilt"
    ]
    if by == "source" and len(others) <= NAMED and "(none)" not in others:
        quota = " ".join(shlex.quote(f"{name}=100") for name in others)
        lines.append(f"  leave the others whole: vig select --strategy vig-samples --quota {quota}")
    groups_of = "cluster,answer" if by == "cluster" else "source,question,answer"
    lines.append(
        "  or keep their answers' shares, finding nothing there: vig select --strategy vig-samples --within "
        f"{groups_of}"
    )
    lines.append("vig select tells how a selection tilts; docs/trust.md says more")
    return lines


def _range(groups: Mapping[str, Signal]) -> str:
    """The least and the greatest AUROC of some groups."""
    found = [100 * each.auroc for each in groups.values() if not math.isnan(each.auroc)]
    if not found:
        return "unknown"
    low, high = f"{min(found):.1f}", f"{max(found):.1f}"
    return f"{low} %" if low == high else f"{low} to {high} %"
