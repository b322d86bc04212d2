"""The passes that scores/ hold, and the table as readers want it: under one reference, whichever the run had.

A pass is a name, a model and a way to make its prompt; in the table it is two columns, PASS_loss and PASS_logprobs. The
clean pass has the sample as it is, every other one is a reference. Readers ask for a `View` of one reference and get
its columns as `reference_loss` and `reference_logprobs`, and `vig` and `error` as they are under it. Versions before
this one knew one reference a run, and wrote it under those very names.

Scores of the text pass alone (`vig score --passes text`) have no clean pass, and so no gains.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vig_ray.errors import StageError

CLEAN = "clean"
MARGINAL = "marginal"
"""The reference that is the mean over several passes, each with another image of the dataset."""
TEXT = "text"
"""The reference that is another model's: a language model without any image, PRIOR's."""
_ASKED_AS = {"reference_loss": "loss", "reference_logprobs": "logprobs"}


def loss_column(name: str) -> str:
    """The column of a pass's mean loss: no_image_loss for no-image."""
    return f"{name.replace('-', '_')}_loss"


def logprobs_column(name: str) -> str:
    """The column of a pass's log-probs."""
    return f"{name.replace('-', '_')}_logprobs"


def error_kind(name: str) -> str:
    """What the error of a row begins with where the pass of this reference failed: No-image for no-image."""
    return name.capitalize()


def of_one_reference(record: Mapping[str, Any]) -> bool:
    """Whether an earlier version wrote these scores, which knew one reference a run."""
    return "references" not in record.get("identity", {})


def references_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The references of scores by their record, the run's first one first: the one that their `vig` is of."""
    if of_one_reference(record):
        return (str(record.get("config", {}).get("reference")),)
    return tuple(reference["name"] for reference in record["identity"]["references"])


def has_gains(record: Mapping[str, Any]) -> bool:
    """Whether scores have a clean pass, which gains are against."""
    return bool(record.get("identity", {}).get("passes") != "text")


@dataclass(frozen=True)
class View:
    """How the columns that readers ask for are made from those that are stored.

    `reference`: its name. `loss`, `logprobs`: its columns. `is_first`: `vig` is of this reference. `scored`: what makes
    scores the same to whoever reads them under it: identity and counts, without the other references, which may be
    added any time. `others`: their names.
    """

    reference: str
    loss: str
    logprobs: str
    is_first: bool
    scored: dict[str, Any]
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any], scores: str, reference: str | None = None, *, gains: bool = True) -> View:
        """The view of a run's scores under `reference`, by default its first.

        `gains`: the reader needs them. Raises StageError for a reference that isn't there, and for scores without gains
        where they are needed.
        """
        if gains and not has_gains(record):
            raise StageError(
                f"{scores}: hold the text pass alone (--passes text) and no gains; they are for `vig select --strategy "
                "prior`. Score with the clean pass into another --out for the rest"
            )
        names = references_of(record)
        if not names:
            raise StageError(f"{scores}: hold no reference yet; give the command that began them again")
        name = names[0] if reference is None else reference
        if name not in names:
            raise StageError(f"--reference {name}: {scores} hold {', '.join(names)}")
        identity, counts = record.get("identity"), record.get("counts")
        if of_one_reference(record):
            return cls(name, "reference_loss", "reference_logprobs", True, {"identity": identity, "counts": counts})
        assert identity is not None
        without = {key: value for key, value in identity.items() if key != "references"}
        without["reference"] = identity["references"][names.index(name)]
        scored = {"identity": without, "counts": counts}
        others = tuple(each for each in names if each != name)
        return cls(name, loss_column(name), logprobs_column(name), name == names[0], scored, others)

    def stored(self, columns: Iterable[str]) -> list[str]:
        """The stored columns that these are made of."""
        needed: set[str] = set()
        for column in columns:
            if column in ("vig", "error"):
                needed |= {"vig"} if self.is_first else {loss_column(CLEAN), self.loss}
            if column != "vig":
                needed.add(self._stored_as(column))
        return sorted(needed)

    def table(self, stored: pa.Table | pa.RecordBatch, columns: Sequence[str]) -> pa.Table:
        """These columns, in this order, from a table of the stored ones."""
        return pa.table([self._column(stored, column) for column in columns], names=list(columns))

    def _stored_as(self, column: str) -> str:
        return str(getattr(self, _ASKED_AS[column])) if column in _ASKED_AS else column

    def _column(self, stored: pa.Table | pa.RecordBatch, column: str) -> Any:
        if column == "vig":
            return stored["vig"] if self.is_first else pc.subtract(stored[self.loss], stored[loss_column(CLEAN)])
        if column == "error":  # that of another reference's pass is none here
            scored = self._column(stored, "vig").is_valid()
            return self._own(pc.if_else(scored, pa.scalar(None, pa.string()), stored["error"]))
        return stored[self._stored_as(column)]

    def _own(self, errors: Any) -> Any:
        """Errors without those of other references' passes, unless there is nothing else."""
        if not self.others or errors.null_count == len(errors):
            return errors
        of_others = tuple(f"{error_kind(name)}: " for name in self.others)
        passes = "|".join(re.escape(error_kind(name)) for name in (self.reference, *self.others))

        def own(error: str) -> str:
            parts = re.split(f"; (?=(?:{passes}): )", error)
            return "; ".join([part for part in parts if not part.startswith(of_others)] or parts)

        return pa.array([error and own(error) for error in errors.to_pylist()], pa.string())
