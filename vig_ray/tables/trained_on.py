"""Which samples a model was trained on, by their keys: written beside a reference model, asked where it weighs others.

OUT/model                                 the checkpoint
OUT/training/RUN-trained-keys.parquet     `sample_key`, one row a sample that was trained on
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vig_ray.stage import Claim, parquet_files, read_stage
from vig_ray.storage import absolute, filesystem, join
from vig_ray.tables.order import Hashes, hashes
from vig_ray.tables.rows import Places, scan

_KEYS = pa.schema([pa.field("sample_key", pa.string(), nullable=False)])


def write_trained_keys(samples: str, trained_at: Places, unusable: Collection[str], output: Claim) -> None:
    """Write the keys of the rows of samples/ at these places, but for those that couldn't be trained on."""
    fs, path = filesystem(join(output.directory, f"{output.run}-trained-keys.parquet"))
    ascending = np.sort(trained_at)
    left_out = pa.array(sorted(unusable), pa.string())
    with pq.ParquetWriter(path, _KEYS, filesystem=fs) as file:
        for places, table in scan(samples, ["sample_key"]):
            keys = table["sample_key"].filter(pa.array(np.isin(places, ascending)))
            kept = pc.invert(pc.is_in(keys, value_set=left_out))
            file.write_table(pa.table([keys.filter(kept)], schema=_KEYS))


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """The samples that a model was trained on. `ascending`: the hashes of their keys, uint64, sorted."""

    model: str
    ascending: Hashes

    @classmethod
    def of(cls, model: str) -> TrainedOn | None:
        """Of the checkpoint in folder `model`; None where nothing beside it says what it was trained on.

        Raises StageError where that can't be read.
        """
        directory = _training_of(model)
        if directory is None or not parquet_files(directory):
            return None
        parts = [hashes(table["sample_key"], 0) for _, table in scan(directory, ["sample_key"])]
        return cls(model, np.sort(np.concatenate([np.zeros(0, dtype=np.uint64), *parts])))

    def __call__(self, keys: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.bool_]:
        """Whether the model was trained on each of these keys, bool [rows]; wrong once in 1e19 by the number of them,
        since keys are compared by hash."""
        trained_on: npt.NDArray[np.bool_] = np.isin(hashes(keys, 0), self.ascending)
        return trained_on


def _training_of(model: str) -> str | None:
    """The training/ of the finished `vig train-text` that wrote a checkpoint, or that it was exported from."""
    exported = read_stage(model) or {}
    candidates = [join(absolute(model).rpartition("/")[0], "training")]
    if exported.get("stage") == "export":
        run = str(exported["config"]["run"])
        candidates = [join(run, "training"), run]
    for directory in candidates:
        record = read_stage(directory) or {}
        if record.get("stage") == "train-text" and record.get("complete"):
            return directory
    return None
