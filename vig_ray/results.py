"""What the functions of `vig_ray.api` return: tables that lie in files, and how a notebook shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

from vig_ray.errors import StageError
from vig_ray.stage import parquet_files, read_stage
from vig_ray.storage import filesystem, join, scheme_of

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

    from vig_ray.scoring.summary import ScoreSummary
    from vig_ray.selection.counts import Selection as Counts


class Rows:
    """The table that a stage wrote: a folder of Parquet, a path or URI."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    @property
    def directory(self) -> str:
        """The folder. Raises StageError where a selection has none."""
        return self._directory

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows in memory, with these columns or all."""
        from vig_ray.tables.directories import dataset

        return dataset(self.directory).to_table(columns=None if columns is None else list(columns))

    def dataset(self) -> ray.data.Dataset:
        """The rows as a Ray dataset, which reads them as they are needed; starts a Ray where there is none."""
        import ray.data

        from vig_ray.cluster import footer_readers

        files = parquet_files(self.directory)
        with footer_readers(len(files)):
            return ray.data.read_parquet(files, filesystem=filesystem(self.directory)[0])

    def __len__(self) -> int:
        from vig_ray.tables.directories import dataset

        rows: int = dataset(self.directory).count_rows()
        return rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        from vig_ray.tables.directories import dataset

        for batch in dataset(self.directory).to_batches(batch_size=1024):
            yield from batch.to_pylist()


class Scores(Rows):
    """What `score` or `vig score` wrote. `directory`: its scores/.

    One row a sample: `sample_key`, `vig` (nats), a loss and the log-probs of each pass, `error`. docs/scoring.md
    describes every column.
    """

    def __init__(self, directory: str | os.PathLike[str], summary: ScoreSummary | None = None) -> None:
        """Scores that are there already: scores/ or the folder that holds it. Raises StageError."""
        from vig_ray.tables.directories import scores_directory

        super().__init__(scores_directory(os.fspath(directory)))
        if (read_stage(self.directory) or {}).get("complete") is False:
            raise StageError(f"{self.directory}: not finished; the call or command that began it goes on with it")
        if summary is not None:
            self.__dict__["summary"] = summary

    @cached_property
    def summary(self) -> ScoreSummary:
        """The counts, and the mean gain under each reference and of each source."""
        from vig_ray.scoring.summary import summarise
        from vig_ray.tables.passes import has_gains, references_of

        record = read_stage(self.directory) or {}
        return summarise(self.directory, references_of(record), gains=has_gains(record))

    def __repr__(self) -> str:
        return self.summary.text()


class Selection(Rows):
    """What `select` wrote: which samples, in which order, and what each answer token weighs.

    `counts`: what was kept, and the thresholds. Where several percentages were compared there is nothing but these.
    """

    def __init__(self, counts: Counts) -> None:
        super().__init__(counts.directory or "")
        self.counts = counts

    @property
    def directory(self) -> str:
        """Its selection/. Raises StageError where nothing is selected."""
        if self.counts.directory is None:
            raise StageError("several percentages were compared, so nothing is selected; give one p")
        return self.counts.directory

    def __repr__(self) -> str:
        return self.counts.text()


@dataclass(frozen=True, repr=False)
class Report:
    """A report that was written. `path`: its HTML file. `numbers`: all that it says, as in the JSON beside it."""

    path: str
    numbers: dict[str, Any]
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        href = self.path if scheme_of(self.path) else os.path.relpath(self.path).replace(os.sep, "/")
        lines = "<br>".join(escape(line) for line in self.text.splitlines())
        return f'<p><a href="{escape(href)}" target="_blank"><b>{escape(href)}</b></a><br>{lines}</p>'


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What models answered. `directory`: evaluation/. `numbers`: what the table rests on, as in its summary.json."""

    directory: str
    numbers: dict[str, Any]
    text: str

    def answers(self, model: str) -> Rows:
        """The rows of one model, by its name in the table: one a question."""
        names = [each["name"] for each in self.numbers["models"]]
        if model not in names:
            raise StageError(f"{model}: no model is called that; there are {', '.join(names)}")
        return Rows(join(self.directory, model))

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.text)}</pre>"
