"""Blocks of prepared rows on an engine that may die: its process is replaced, and a row that kills engines by itself
becomes an error."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from vig_ray.errors import StageError
from vig_ray.scoring.engines import EngineDiedError

MOST_DEATHS = 5
"""Engines that may die over whole blocks, one after the other with no row done between, before the job gives up."""
MOST_FATAL_ROWS = 8
"""Rows in succession that may each kill an engine by themselves, with no row done between, before it gives up."""
SINGLY_AFTER = 2
"""Engines that may die over a block before its rows are run one by one, to find the one that kills them."""

Rows = Sequence[Mapping[str, Any]]


class Blocks:
    """Runs blocks of rows in an actor of Ray's that holds an engine.

    `run`: rows, as `unpack` gives them, to their results in order; raises EngineDiedError, and runs none of a row whose
    `prompts` are None. `progress`: a `RowCounter`, or None. `tokens`: how many answer tokens results count for.
    `prefixes`: what a prefix cache has had since it was last asked.

    Where the engine dies, so does this process: Ray starts another and gives it the block again.
    """

    def __init__(
        self,
        run: Callable[[Rows], list[dict[str, Any]]],
        *,
        progress: Any,
        tokens: Callable[[Rows], int],
        prefixes: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self._run, self._progress, self._tokens, self._prefixes = run, progress, tokens, prefixes

    def __call__(self, rows: Rows) -> list[dict[str, Any]]:
        """The results of a block's rows, in their order."""
        if self._progress is None or not rows:
            return self._run(rows)
        import ray

        block = rows[0]["sample_key"]
        deaths, fatal = ray.get(self._progress.history.remote(block))
        return self._counted(rows, block, None) if deaths < SINGLY_AFTER else self._singly(rows, block, fatal)

    def _singly(self, rows: Rows, block: str, fatal: Mapping[str, str]) -> list[dict[str, Any]]:
        """Run rows one by one, those in `fatal` (key to cause) not at all; the results are in the order of the rows.

        The rows are taken in shuffled order. Rows that kill an engine often lie together, and in the order of the
        table they would look like an engine that does nothing but die.
        """
        done: list[dict[str, Any]] = [{}] * len(rows)
        for number in random.Random(0).sample(range(len(rows)), len(rows)):
            row = rows[number]
            key = row["sample_key"]
            if key not in fatal:
                (done[number],) = self._counted([row], block, key)
                continue
            error = "; ".join(filter(None, [row["error"], f"EngineDied: {fatal[key]}"[:500]]))
            (done[number],) = self._run([{**row, "prompts": None, "error": error}])
            self._progress.add.remote(1, tokens=0, failed=1, by_engine=False)
        return done

    def _counted(self, rows: Rows, block: str, row: str | None) -> list[dict[str, Any]]:
        try:
            done = self._run(rows)
        except EngineDiedError as error:
            self._leave(error, block, row)
        self._progress.add.remote(
            len(rows),
            tokens=self._tokens(done),
            failed=sum(each["error"] is not None for each in done),
            by_engine=any(each["prompts"] is not None for each in rows),
            prefixes=self._prefixes() if self._prefixes else (0, 0),
        )
        return done

    def _leave(self, error: EngineDiedError, block: str, row: str | None) -> NoReturn:
        """End this process, or raise StageError where engines do nothing but die."""
        import ray

        over_blocks, over_rows = ray.get(self._progress.died.remote(str(error), block, row))
        if over_blocks >= MOST_DEATHS:
            raise StageError(f"the engine died {over_blocks} times in a row; the last time: {error}") from error
        if over_rows >= MOST_FATAL_ROWS:
            raise StageError(
                f"the engine died over {over_rows} rows in a row, each run by itself; the last time: {error}"
            ) from error
        os._exit(1)  # not an exception: Ray Data retries what a lost process was doing, and ends at what one raises
