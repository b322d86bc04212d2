"""Known places to stop a job at, and what the job must come to: the tests' side of `tests/engines/gated.py`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.end_to_end.server import wait_until
from tests.engines import gated
from vig_ray.dataset import importing
from vig_ray.dataset.importing import ImportConfig
from vig_ray.demo import CHECKPOINT, world
from vig_ray.options import BlurName
from vig_ray.scoring.prepare import Preparer
from vig_ray.scoring.prepared import unpack

ENGINES = Path(gated.__file__).parent
ENGINE = ("--engine", "gated:engine")
PYTHONPATH = os.pathsep.join([str(ENGINES), *filter(None, [os.environ.get("PYTHONPATH")])])


NUMBERS = ("clean_logprobs", "blur_logprobs", "vig")


class Begun(NamedTuple):
    """A batch that an engine began: the engine's process and node, and how many prompts the batch has."""

    pid: int
    node: str
    prompts: int


class Gates:
    """The gates of one run; `environment` is what its engines need to find them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.environment = {gated.GATES: str(folder), "PYTHONPATH": PYTHONPATH}

    def close(self, *numbers: int) -> None:
        """Let the engine that begins one of these batches wait there."""
        for number in numbers:
            (self._folder / f"{number}.closed").touch()

    def open(self, *numbers: int) -> None:
        """Let the engines at these batches go on; all of them where none is named."""
        for path in [self._folder / f"{number}.closed" for number in numbers] or self._folder.glob("*.closed"):
            path.unlink()

    def fail(self, number: int) -> None:
        """Let the engine that begins this batch raise what torch raises where a GPU fails."""
        (self._folder / f"{number}.fails").touch()

    def begun(self) -> list[Begun]:
        """The batches that engines have begun, in order."""
        paths = sorted(
            (path for path in self._folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name)
        )
        return [Begun(**json.loads(text)) for text in (path.read_text() for path in paths) if text]

    def kill_at(self, number: int) -> Begun:
        """Kill the engine at a closed gate, once it is there, and open the gate when its process is gone."""
        begun = self.wait_for(number)
        os.kill(begun.pid, signal.SIGKILL)
        wait_until(lambda: gone(begun.pid))
        self.open(number)
        return begun

    def wait_for(self, number: int) -> Begun:
        """Batch `number`, once an engine has begun it."""
        wait_until(lambda: len(self.begun()) > number)
        return self.begun()[number]


def gone(pid: int) -> bool:
    """Whether a process has ended, though its parent may not have asked for its status yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def write_world(folder: Path, rows: int = 300, seed: int = 91) -> Path:
    """Demo samples, imported in the order of their keys: `--data` of a scoring run is `folder`."""
    importing.run(ImportConfig(data=world.write(str(folder / "data"), rows, seed), out=str(folder), order="as-is"))
    return folder


def of_gated_engine(prompts: Sequence[Any]) -> list[Any]:
    """What the gated engine gives."""
    return [gated.logprobs_of(prompt) for prompt in prompts]


def expected_scores(
    folder: Path, compute: Callable[[Sequence[Any]], list[Any]] = of_gated_engine, *, blur: BlurName = "fast"
) -> list[dict[str, Any]]:
    """The rows that a run must write of the samples in `folder`, by rising key.

    `compute`: the engine's `logprobs`; `blur`: the run's.
    """
    preparer = Preparer(
        model=CHECKPOINT, template="auto", max_length=None, passes=("clean", "blur"), too_long="error",
        blur=blur, max_image_pixels=10**8,
    )  # fmt: skip
    samples = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "samples").glob("*.parquet"))])
    rows = []
    for row in unpack(preparer(samples)):
        scored: dict[str, Any] = dict.fromkeys(NUMBERS)
        scored |= {name: row[name] for name in ("sample_key", "token_ids", "error")}
        if row["prompts"] is not None:
            clean, reference = compute(row["prompts"])
            gain = float(np.mean(clean.astype(np.float64) - reference))
            scored |= {"clean_logprobs": clean.tolist(), "blur_logprobs": reference.tolist(), "vig": gain}
        rows.append(scored)
    return sorted(rows, key=lambda row: str(row["sample_key"]))


def assert_as_expected(
    rows: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], atol: float = 1e-6
) -> None:
    """Every key once and in order, each with the numbers that are expected."""
    assert [row["sample_key"] for row in rows] == [row["sample_key"] for row in expected]
    for row, known in zip(rows, expected, strict=True):
        assert (row["error"], row["token_ids"]) == (known["error"], known["token_ids"])
        for name in NUMBERS:
            assert (row[name] is None) == (known[name] is None)
            if known[name] is not None:
                np.testing.assert_allclose(row[name], known[name], atol=atol)


def committed_rows(out: Path) -> int:
    """Rows of the blocks that a scoring run has written and will not score again."""
    rows = 0
    for file in out.glob(".score-*/checkpoint/*.parquet"):
        if not file.name.endswith(".pending.parquet"):
            try:
                rows += pq.read_metadata(file).num_rows
            except OSError:  # renamed between the listing and the reading
                continue
    return rows
