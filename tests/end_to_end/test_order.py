"""The order of samples/ from the command line: by image or as-is, every sample gets the same scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.command import call
from tests.end_to_end.conftest import read_scores
from vig_ray.demo import CHECKPOINT, world
from vig_ray.scoring import job
from vig_ray.scoring.config import ScoreConfig
from vig_ray.stage import read_stage

SAMPLES = 60
ONE = ("--workers", "1", "--prepare-workers", "1", "--rows-per-file", "16")


def samples_in(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "samples").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def breaks(rows: list[dict[str, Any]]) -> int:
    """How often an image comes again after another one."""
    images = [row["images"][0]["uri"] if row["images"] else None for row in rows]
    return sum(image != before for image, before in zip(images[1:], images, strict=False)) + 1 - len(set(images))


def test_scores_are_the_same_in_both_orders(tmp_path: Path, local_ray: None) -> None:
    data = world.write(str(tmp_path / "data"), SAMPLES, seed=6)
    for order in ("as-is", "image"):
        out = str(tmp_path / order)
        done = call("import", "--data", data, "--out", out, "--order", order)
        assert ("order of samples/: image" in done.stderr) == (order == "image")
        job.run(ScoreConfig(data=out, model=CHECKPOINT, out=out), in_process=True)
    straight = str(tmp_path / "straight")
    call("score", "--data", data, "--model", CHECKPOINT, "--out", straight, *ONE)
    as_is, by_image, imported_here = (samples_in(tmp_path / name) for name in ("as-is", "image", "straight"))
    assert imported_here == by_image
    assert sorted(by_image, key=lambda row: str(row["sample_key"])) == as_is
    assert breaks(as_is) > breaks(by_image) == 0
    assert (read_stage(str(tmp_path / "straight" / "samples")) or {})["order"]["asked"] == "auto"
    expected = read_scores(tmp_path / "as-is")
    assert len(expected) == SAMPLES
    for name in ("image", "straight"):
        for row, known in zip(read_scores(tmp_path / name), expected, strict=True):
            assert (row["sample_key"], row["token_ids"]) == (known["sample_key"], known["token_ids"])
            for column in ("clean_logprobs", "blur_logprobs"):
                assert (row[column] is None) == (known[column] is None)
                if known[column] is not None:
                    np.testing.assert_allclose(row[column], known[column], atol=1e-5)
    # The orders are one dataset: scores of the one go with samples of the other.
    call("select", "--scores", str(tmp_path / "image"), "--out", str(tmp_path / "image"), "--p", "50")
    call("top", "--scores", str(tmp_path / "image"), "--samples", str(tmp_path / "as-is"))
    told = call("score", "--data", out, "--model", CHECKPOINT, "--out", out, "--order", "image", *ONE, status=2).stderr
    assert "--order has no effect on" in told


@pytest.mark.parametrize("verb", ["import", "score"])
def test_another_order_is_refused_in_one_line(tmp_path: Path, verb: str) -> None:
    model = ("--model", CHECKPOINT) if verb == "score" else ()
    told = call(verb, "--data", "d.json", "--out", str(tmp_path), *model, "--order", "random", status=2).stderr
    assert "--order" in told
    assert "'auto', 'image' or 'as-is'" in told
