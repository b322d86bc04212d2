"""What is settled in a study and what is open, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vig_ray.report.study_numbers import Claim, Difference, StudyNumbers, pilots_in

SAID = {"yes": "holds", "no": "does not hold", "open": "open"}


def needs(difference: Difference) -> str:
    """How far a difference is from being settled, in words."""
    if difference.settled:
        return "settled"
    more = difference.more_seeds
    if more is not None:
        return f"open, about {more:,} more seed{'s' if more > 1 else ''}"
    if difference.mean.seeds == 0:
        return "open, no seed has both"
    if difference.mean.seeds == 1:
        return "open, one seed has no interval"
    return "open, no difference so far" if not difference.mean.value else "open, more than 1,000 seeds"


def claim_names(study: StudyNumbers) -> list[str]:
    """The orders as they are told apart: that of a varied arm, which comes once a value, by its steps' rows."""
    texts = [claim.text for claim in study.orders]
    return [
        claim.text
        if texts.count(claim.text) == 1
        else f"{' < '.join((claim.steps[0].low, *(step.high for step in claim.steps)))} on {claim.metric}"
        for claim in study.orders
    ]


def _grouped(study: StudyNumbers, said: str) -> dict[str, list[Claim]]:
    """The orders of which this is said: those of a varied arm together, with how many of its values they are of."""
    names = claim_names(study)
    found: dict[str, list[Claim]] = {}
    for text in dict.fromkeys(claim.text for claim in study.orders):
        of_text = [place for place, claim in enumerate(study.orders) if claim.text == text]
        some = [place for place in of_text if study.orders[place].said == said]
        name = f"{text} (at {'all' if len(some) == len(of_text) else f'{len(some)} of'} {len(of_text)} values)"
        if some:
            found[name if len(some) > 1 else names[some[0]]] = [study.orders[place] for place in some]
    return found


_NAMED = 3  # orders, before the rest is only counted


def _listed(names: Sequence[str]) -> str:
    if len(names) > _NAMED + 1:
        names = [*names[:_NAMED], f"{len(names) - _NAMED} more"]
    return names[0] if len(names) == 1 else f"{'; '.join(names[:-1])}; and {names[-1]}"


def verdict(study: StudyNumbers) -> list[str]:
    """What is settled and what is open, in one or two sentences: of the orders, or where there are none of the
    differences from the baseline."""
    if not study.orders:
        return [differences_told(study)]
    holds, refuted, still_open = (_grouped(study, said) for said in SAID)
    told = []
    if holds:
        told.append(f"{_listed(list(holds))} {'holds' if len(holds) == 1 else 'hold'}")
    if refuted:
        told.append(f"{_listed(list(refuted))} {'does' if len(refuted) == 1 else 'do'} not hold")
    sentences = [f"Settled: {', and '.join(told)}." if told else "None of the orders is settled."]
    if still_open:
        sentences.append(f"Open: {_listed([f'{name}: {_open_for(some)}' for name, some in still_open.items()])}.")
    return sentences


def _open_for(claims: Sequence[Claim]) -> str:
    """How many more seeds the last of the open steps takes."""
    left = [step.difference for claim in claims for step in claim.steps if step.said == "open"]
    known = [one.more_seeds for one in left]
    if any(more is None for more in known):
        return needs(next(one for one in left if one.more_seeds is None)).removeprefix("open, ")
    return needs(max(left, key=lambda one: one.more_seeds or 0)).removeprefix("open, ")


def differences_told(study: StudyNumbers) -> str:
    """How many differences from the baseline are settled, in one sentence."""
    found = [
        (metric, number.difference)
        for row in study.others
        for metric in study.ranked
        if (number := row.numbers[metric.name]).difference is not None and number.difference.mean.value is not None
    ]
    if not found:
        return f"Nothing can be compared with {study.compared_with} yet."
    settled = [(metric, one) for metric, one in found if one is not None and one.settled]
    better = sum(metric.is_better(one.mean.value or 0) for metric, one in settled)
    worse, left = len(settled) - better, len(found) - len(settled)
    return (
        f"Of {_counted(len(found), 'difference')} from {study.compared_with}, {better:,} {_are(better)} settled as "
        f"better and {worse:,} as worse; {left:,} {_are(left)} open."
    )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def time_text(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def shown(folder: str, study: StudyNumbers) -> Iterator[str]:
    """Which of a study's results they are, where there are several."""
    pilots = pilots_in(folder)
    if study.pilot is None and pilots:
        yield f"Shown are the results of all data; those of a pilot: --study {' or '.join(pilots)}"


def warnings(study: StudyNumbers) -> Iterator[str]:
    """What keeps the numbers from being the whole story: a pilot, what failed, what is missing."""
    if study.pilot is not None:
        yield f"A pilot, of {study.pilot:g} % of the data and of steps: more of them may change what it says."
    if study.failed:
        count = len(study.failed)
        yield f"{count:,} stage{'s' if count != 1 else ''} failed."
    if study.missing:
        count = len(study.missing)
        cells = f"{count:,} cell{'s have' if count != 1 else ' has'} no numbers (a cell is a row with one seed)"
        yield f"{cells}: means are over the seeds that are there."
