"""A small seed of PRIOR on the demo world, from the new projector to the tuned model. The other ways are the same runs
with other options, which tests/training has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.demo_pretraining import Sizes, run, weights_by_key
from vig_ray.stage import parquet_files

SMALL = Sizes(texts=0, reference=48, captions=48, samples=48, held_out=24, batch=16)


@pytest.mark.long  # each of its stages has tests of its own
@pytest.mark.usefixtures("local_ray")
def test_a_small_seed_goes_from_the_new_projector_to_the_tuned_model(tmp_path: Path) -> None:
    lines: list[str] = []
    (of_ways,) = run(str(tmp_path), 1, SMALL, lines.append, ways=["prior"])
    assert np.isfinite(list(of_ways["prior"].values())).all()
    assert len(lines) > 20
    # PRIOR's weights in the selection are equation 4 of what the text pass gave.
    chosen = pq.read_table(parquet_files(str(tmp_path / "0" / "captions" / "selection"))).to_pylist()
    weights = weights_by_key(str(tmp_path / "0" / "captions" / "scores"))
    assert len(chosen) == SMALL.captions
    for row in chosen:
        weights_T = weights[row["sample_key"]]
        np.testing.assert_allclose(row["token_weights"], weights_T * len(weights_T) / weights_T.sum(), rtol=1e-5)
