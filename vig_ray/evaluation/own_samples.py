"""Samples of one's own, one by one: of samples/, or of any dataset file that `vig import` reads; or of a selection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from vig_ray.dataset.importing import samples_directory
from vig_ray.dataset.inputs import read_rows
from vig_ray.dataset.options import DataOptions
from vig_ray.dataset.plan import make_plan
from vig_ray.dataset.rows import to_sample
from vig_ray.dataset.schema import IMAGE_MARK, Image, RowError, Turn
from vig_ray.errors import StageError
from vig_ray.evaluation.task import Given
from vig_ray.evaluation.told import warn_once
from vig_ray.storage import join, one_line
from vig_ray.tables.directories import dataset, selection_directory


@dataclass(frozen=True)
class OwnSample:
    """A sample. `token_ids`, `token_weights`: of its answer tokens, as a selection has them; the latter None where all
    weigh 1, both None without a selection."""

    key: str
    source: str | None
    images: tuple[Image, ...]
    conversation: tuple[Turn, ...]
    token_ids: list[int] | None = None
    token_weights: list[float] | None = None

    def images_of(self, turns: tuple[Turn, ...]) -> tuple[Image, ...]:
        """The images whose marks are in the first turns."""
        return self.images[: _marks(turns)]


def _marks(turns: tuple[Turn, ...]) -> int:
    return sum(turn.text.count(IMAGE_MARK) for turn in turns)


def own_samples(given: Given, selection: str | None = None, tail: int | None = None) -> Iterator[OwnSample]:
    """The samples in the order of the data; those that can't be asked about are counted and told.

    `selection`: its samples alone, with their tokens. `tail`: the last so many of its order. Raises StageError where
    the data can't be read, or a sample of the selection isn't in it.
    """
    chosen = None if selection is None else _Chosen(selection, tail)
    left_out = _LeftOut()
    found = asked = 0
    for sample in _of_directory(given, left_out):
        if chosen is not None and sample.key not in chosen:
            continue
        found += 1
        if _marks(sample.conversation) != len(sample.images):
            left_out.add("marks and images differ in number", sample.key)
        else:
            asked += 1
            yield sample if chosen is None else chosen.with_tokens(sample)
    for why, count in left_out.counts.items():
        first = "the first " if count > 1 else ""
        warn_once(f"{given.data}: {count:,} samples left out: {why} ({first}{left_out.first[why]})")
    if chosen is not None and found < len(chosen):
        raise StageError(f"{given.data}: has {found:,} of the {len(chosen):,} samples that {selection} names")
    if left_out.counts and not asked:
        why, where = next(iter(left_out.first.items()))
        raise StageError(
            f"{given.data}: none of its {left_out.counts.total():,} samples can be asked about; {where}: "
            f"{left_out.said.get(why, why)}"
        )


class _LeftOut:
    """How many samples are left out, the first of them, and what is said of it, by the reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.said: dict[str, str] = {}

    def add(self, why: str, where: str, said: str | None = None) -> None:
        """One more, which is called `where`; `said`: the whole error, where there is more of it than `why`."""
        self.counts[why] += 1
        if self.first.setdefault(why, where) == where and said is not None:
            self.said[why] = said


class _Chosen:
    """Rows of a selection by their keys. Raises StageError where there is none."""

    def __init__(self, selection: str, tail: int | None) -> None:
        directory, _ = selection_directory(selection)
        rows = dataset(directory)
        wanted = None if tail is None else pads.field("position") >= rows.count_rows() - tail
        self._table = rows.to_table(columns=["sample_key", "token_ids", "token_weights"], filter=wanted)
        self._places = {key: place for place, key in enumerate(self._table["sample_key"].to_pylist())}
        if self._table["token_ids"].null_count:
            raise StageError(
                f"{directory}: it doesn't say which tokens are active; select from scores that have tokens"
            )

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def with_tokens(self, sample: OwnSample) -> OwnSample:
        """The sample with its tokens and their weights."""
        place = self._places[sample.key]
        token_ids, weights = (self._table[name][place].as_py() for name in ("token_ids", "token_weights"))
        return replace(sample, token_ids=token_ids, token_weights=weights)


def _of_directory(given: Given, left_out: _LeftOut) -> Iterator[OwnSample]:
    directory = samples_directory(given.data)
    if directory is None:
        yield from _of_files(given, left_out)
        return
    columns = ["sample_key", "source", "images", "conversation", "error"]
    for batch in dataset(directory).to_batches(columns=columns, batch_size=256, batch_readahead=1):
        for row in pa.Table.from_batches([batch]).to_pylist():
            if row["error"] is None:
                yield _of_row(row)
            else:
                left_out.add(row["error"].partition(":")[0], row["sample_key"], row["error"])


def _of_row(row: dict[str, Any]) -> OwnSample:
    images = tuple(Image(image["uri"], image["bytes"]) for image in row["images"])
    turns = tuple(Turn(turn["role"], turn["text"]) for turn in row["conversation"])
    return OwnSample(row["sample_key"], row["source"], images, turns)


def _of_files(given: Given, left_out: _LeftOut) -> Iterator[OwnSample]:
    """The rows of files, as an import reads them, without its archives and what it fetches."""
    plan = make_plan(DataOptions(data=(given.data,), images=given.images), join(given.data, "samples"))
    if plan.images.archives:
        raise StageError(f"{given.data}: its images are in archives; `vig import` it, and give the samples/ it makes")
    for file in plan.files:
        folder = plan.images.of(file)
        for row in read_rows(file):
            try:
                sample, _ = to_sample(row, folder)
            except RowError as error:
                left_out.add(error.kind, file.sample_key(row.number), one_line(error))
                continue
            yield OwnSample(file.sample_key(row.number), sample.source, sample.images, sample.conversation)
