"""What a selection's tilt is in words: how much, the greatest shifts, and a warning where it may do harm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vig_ray.selection.tilt import WARN, Shift, Tilt
from vig_ray.selection.within import WORDS


def in_words(
    tilt: Tilt, of: Mapping[str, tuple[str, str]], spell: Callable[[int], str] = str, most: int = 3
) -> list[str]:
    """What a person should know of it. `of`: question and answer of the examples, as far as they are known. `spell`: a
    token's text."""
    told = f"tilt of answers: {100 * tilt.answers:.1f} % of the kept samples would need another answer"
    lines = [f"{told} (by chance {100 * tilt.low:+.1f} to {100 * tilt.high:+.1f} %)"]
    lines += [f"  {_shift(each, of, spell)}" for each in tilt.shifts[:most]]
    if tilt.answers > WARN:
        lines.append(
            f"WARNING: above {100 * WARN:.0f} % a selection changes what is answered; training on it may do harm where "
            "the model doesn't see what is asked. `vig audit` tells where, docs/trust.md what to do: leave those "
            "sources whole (--quota), rank samples --within question,answer, or take --reference marginal"
        )
    return lines


def _shift(shift: Shift, of: Mapping[str, tuple[str, str]], spell: Callable[[int], str]) -> str:
    shares = f"{100 * shift.before:.1f} % of answers before, {100 * shift.after:.1f} % after"
    source = f" in {shift.source}" if shift.source else ""
    question, answer = of.get(shift.example, ("", ""))
    what = f'"{answer}"' if answer else f"what {shift.example} answers"
    if shift.token is not None:
        what = f'"{spell(shift.token)}" in answers'
        question = f"{' '.join(question.split()[:WORDS])} ..." if question else ""
    to = f' to questions such as "{question}"' if question else ""
    return f"{what}{to}{source}: {shares}"


def examples(tilts: Sequence[Tilt | None], most: int = 3) -> list[str]:
    """The keys of the samples whose questions and answers `in_words` tells."""
    return sorted({each.example for tilt in tilts if tilt for each in tilt.shifts[:most]})
