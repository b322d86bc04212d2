"""Which samples a reference model is trained on: a share by a hash of their keys, less those of other directories.

A model that is to say how surprising a text is must not have been trained on that text: PRIOR draws the samples for its
reference model and those to be weighed apart. `vig import --sample` takes the keys whose hash is below a share; here
those are taken whose hash is above. So shares of the same data under the same seed that add up to 100 % or less have no
sample in common, wherever each is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vig_ray.dataset.taking import place_of
from vig_ray.errors import StageError
from vig_ray.stage import read_stage
from vig_ray.storage import join
from vig_ray.tables.order import Hashes, hashes
from vig_ray.tables.rows import scan

_WITH_KEYS = {"import": "samples", "score": "scores", "select": "selection"}


@dataclass(frozen=True, eq=False)
class Drawn:
    """A sample is taken where the hash of its key, 0 to 1, is at least `above`, and the key isn't excluded.

    `excluded`: hashes of keys, uint64, sorted. Another key with the hash of an excluded one is left out with it (one in
    1e19 by 64 bits each).
    """

    above: float
    seed: int
    excluded: Hashes = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))

    def __call__(self, keys: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.bool_]:
        """Whether each of these keys is taken, bool [rows]."""
        taken = np.ones(len(keys), dtype=np.bool_)
        if self.above > 0:
            taken &= np.fromiter((place_of(key, self.seed) >= self.above for key in keys.to_pylist()), np.bool_)
        if len(self.excluded):
            taken &= ~np.isin(hashes(keys, 0), self.excluded)
        return taken

    def identity(self) -> dict[str, Any]:
        """What decides which samples are taken, as JSON values."""
        digest = hashlib.sha256(self.excluded.tobytes()).hexdigest()[:16]
        excluded = {"keys": len(self.excluded), "digest": digest} if len(self.excluded) else None
        return {"above": self.above, "seed": self.seed if self.above > 0 else None, "excluded": excluded}


def drawn(share: float | None, seed: int, exclude: Sequence[str], imported: Mapping[str, Any]) -> Drawn:
    """What --sample and --exclude draw; `imported`: the record of the samples.

    Raises StageError where a directory to exclude holds no keys, or samples that are a mixture can't be drawn from.
    """
    before = imported.get("taken") or {}
    whole = 1.0
    if share is not None and before.get("seed") == seed:
        if before.get("weights"):
            raise StageError(
                f"--sample: the samples were themselves drawn by weights with --seed {seed}; give another --seed"
            )
        whole = before.get("sample") or 1.0  # of the hashes, those below are there
    above = whole * (1.0 - share) if share is not None else 0.0
    parts = [_keys_of(given) for given in exclude]
    return Drawn(above, seed, np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *parts])))


def _keys_of(given: str) -> Hashes:
    """The hashes of the keys in samples/, scores/ or selection/."""
    named = [given, *(join(given, name) for name in _WITH_KEYS.values())]
    there = [directory for directory in named if (read_stage(directory) or {}).get("stage") in _WITH_KEYS]
    if not there:
        raise StageError(f"--exclude {given}: no samples/, scores/ or selection/ here")
    if not (read_stage(there[0]) or {}).get("complete", True):
        raise StageError(f"--exclude {given}: {there[0]} isn't finished, so that it lacks keys; finish it first")
    if there[0] != given and len(there) > 1:
        names = " and ".join(directory.rpartition("/")[2] for directory in there)
        raise StageError(f"--exclude {given}: holds {names}; name one of them")
    parts = [hashes(table["sample_key"], 0) for _, table in scan(there[0], ["sample_key"])]
    return np.concatenate([np.zeros(0, dtype=np.uint64), *parts])
