"""What a report says of when to trust the gain: what the audit of the scores found, and how their selection tilts."""

from __future__ import annotations

import logging
import math
from html import escape
from typing import Any

from vig_ray.audit.config import AuditConfig
from vig_ray.audit.job import run as audit
from vig_ray.errors import StageError
from vig_ray.report.tables import table
from vig_ray.selection.tilt import WARN
from vig_ray.tables.passes import references_of

log = logging.getLogger(__name__)

Json = dict[str, Any]


def audited(scores: str, record: Json, address: str | None) -> Json | None:
    """The audit of the scores by source; None where they hold no passes with other images, or none that went well."""
    if not {"marginal", "swap"} & {*references_of(record)}:
        return None
    try:
        found = audit(AuditConfig(scores=scores, address=address))
    except StageError as error:
        log.warning("no audit: %s", error)
        return None
    return {
        "reference": found.reference,
        "images": found.images,
        "sources": [found.row(name, each) for name, each in found.groups.items()],
        "words": found.words(),
    }


def trust(numbers: Json) -> str:
    """The part of the page, HTML; empty where nothing is known."""
    found = numbers.get("audit")
    tilt = (numbers.get("selection") or {}).get("tilt")
    return (_audit(found) if found else "") + (_tilt(tilt) if tilt else "")


def _audit(found: Json) -> str:
    beats = "beats another" if found["images"] == 1 else f"beats all {found['images']}"
    rows = [
        (
            row["source"], f"{row['samples']:,}", _percent(row["auroc"]),
            "" if row["low"] is None else f"{_percent(row['low'])} to {_percent(row['high'])}",
            _percent(row["above"]), _percent(row["signal"]),
            "yes" if row["seen"] else "no sign",
        )
        for row in found["sources"]
    ]  # fmt: skip
    sentences = "".join(f"<p>{escape(line.strip()[:1].upper() + line.strip()[1:])}.</p>" for line in found["words"])
    return (
        "<h3>Does the model see what is asked?</h3>"
        + table(("source", "samples", "AUROC", "95 %", beats, "signal", "seen"), rows)
        + sentences
    )


def _tilt(tilt: Json) -> str:
    warning = tilt["answers"] > WARN
    told = tilt["told"]
    shifts = "".join(f"<li>{escape(line.strip())}" for line in told[1:] if line.startswith(" "))
    shares = [f"sources {_percent(tilt['sources'])}", f"lengths of answers {_percent(tilt['lengths'])}"]
    if tilt["questions"] is not None:
        shares.insert(1, f"kinds of questions {_percent(tilt['questions'])}")
    return (
        "<h3>Does the selection tilt?</h3>"
        f"<p{' class=warning' if warning else ''}>{escape(told[0][0].upper() + told[0][1:])}.</p>"
        + (f"<ul>{shifts}</ul>" if shifts else "")
        + '<p class="reading">Total variation of other shares, which a selection may well change: '
        f"{', '.join(shares)}. Counted on {tilt['of']:,} samples; docs/trust.md says how.</p>"
    )


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f} %"
