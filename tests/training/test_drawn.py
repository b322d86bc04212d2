"""Samples for a reference model and samples that it weighs: drawn apart, and told where they aren't."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.selection.made import made_up, write
from vig_ray.dataset import importing
from vig_ray.dataset.importing import ImportConfig
from vig_ray.dataset.taking import place_of
from vig_ray.demo import world
from vig_ray.errors import StageError
from vig_ray.selection import job
from vig_ray.selection.config import SelectConfig
from vig_ray.stage import claim, read_stage
from vig_ray.tables.rows import Rows, scan
from vig_ray.tables.trained_on import TrainedOn, write_trained_keys
from vig_ray.training.drawn import drawn
from vig_ray.training.index import of_samples

ROWS = 400


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return world.write(str(tmp_path_factory.mktemp("world")), ROWS, 3)


def imported(data: str, out: Path, **options: Any) -> str:
    return importing.run(ImportConfig(data=data, out=str(out), **options)).directory


def keys_of(samples: str, *, share: float | None = None, seed: int = 0, exclude: tuple[str, ...] = ()) -> set[str]:
    """The keys that are trained on."""
    taken = drawn(share, seed, exclude, read_stage(samples) or {})
    index = of_samples(samples, seed, taken)
    every = sum(table.num_rows for _, table in scan(samples, ["sample_key"]))
    assert len(index) + index.untaken + index.left_out == every
    return {row["sample_key"] for row in Rows(samples, ["sample_key"]).get(index.sample_at)}


def test_shares_that_add_up_to_one_have_no_sample_in_common(data: str, tmp_path: Path) -> None:
    everything = imported(data, tmp_path / "all")
    weighed = keys_of(imported(data, tmp_path / "weighed", sample="40%"))
    trained = keys_of(everything, share=0.6)
    assert trained == keys_of(everything) - weighed
    assert trained == {key for key in keys_of(everything) if place_of(key, 0) >= 0.4}
    assert 0.5 * ROWS < len(trained) < 0.7 * ROWS
    assert keys_of(everything, share=0.3) < trained
    # Of samples that are a share themselves, and by another seed.
    half = imported(data, tmp_path / "half", sample="50%")
    assert keys_of(half, share=0.5) == {key for key in keys_of(half) if place_of(key, 0) >= 0.25}
    assert keys_of(half, share=0.5, seed=7) == {key for key in keys_of(half) if place_of(key, 7) >= 0.5}
    assert keys_of(half, share=1.0) == keys_of(half)


def test_samples_of_other_directories_are_left_out(data: str, tmp_path: Path, chosen: Path) -> None:
    everything = imported(data, tmp_path / "all")
    weighed = imported(data, tmp_path / "weighed", sample="40%")
    trained = keys_of(everything, exclude=(weighed,))
    assert trained == keys_of(everything, share=0.6)
    assert keys_of(everything, exclude=(str(tmp_path / "weighed"),)) == trained
    assert keys_of(everything, share=0.3, exclude=(weighed,)) == keys_of(everything, share=0.3)
    of_chosen = keys_of(str(chosen / "samples"), exclude=(str(chosen / "selection"),))
    selected = {row for _, table in scan(str(chosen / "selection"), ["sample_key"]) for row in table[0].to_pylist()}
    assert of_chosen == keys_of(str(chosen / "samples")) - selected
    several = "holds samples and scores and selection; name one"
    for given, told in ((str(chosen), several), (str(tmp_path), "no samples/")):
        with pytest.raises(StageError, match=told):
            drawn(None, 0, (given,), {})
    mixture = {"taken": {"weights": [1.0, 2.0], "seed": 4}}
    with pytest.raises(StageError, match="give another --seed"):
        drawn(0.5, 4, (), mixture)
    assert drawn(0.5, 5, (), mixture).above == 0.5


@pytest.fixture
def reference(data: str, tmp_path: Path) -> str:
    """What `train-text` leaves of a model that was trained on the first 150 rows but two, without the model."""
    samples = imported(data, tmp_path / "all")
    config = SelectConfig(scores="-", out="-")  # any
    output = claim(str(tmp_path / "reference" / "training"), "train-text", {}, folders=("training", "model"))
    output.begin(config)
    places = next(iter(scan(samples, ["sample_key"])))[0][:150]
    first = [row["sample_key"] for row in Rows(samples, ["sample_key"]).get(places)]
    (tmp_path / "reference" / "training").mkdir(parents=True, exist_ok=True)
    write_trained_keys(samples, places[::-1], first[:2], output)
    output.commit(config)
    (tmp_path / "reference" / "model").mkdir()
    return str(tmp_path / "reference" / "model")


def test_a_model_says_what_it_was_trained_on(data: str, tmp_path: Path, reference: str) -> None:
    trained_on = TrainedOn.of(reference)
    assert trained_on is not None
    keys = [f"{Path(data).stem}/{number:010}" for number in range(ROWS)]
    tables = (table for _, table in scan(str(tmp_path / "all" / "samples"), ["sample_key"]))
    every = [key for table in tables for key in table["sample_key"].to_pylist()]
    assert sorted(every) == sorted(keys)
    found = dict(zip(every, trained_on(pa.array(every)).tolist(), strict=True))
    assert [found[key] for key in every] == [2 <= at < 150 for at in range(ROWS)]
    assert TrainedOn.of(str(tmp_path / "elsewhere" / "model")) is None
    assert TrainedOn.of("org/name") is None


def test_weights_of_samples_that_the_reference_was_trained_on_are_told(
    data: str, tmp_path: Path, reference: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = made_up(ROWS)
    for number, row in enumerate(rows):
        row["sample_key"] = f"{Path(data).stem}/{number:010}"
    scores = write(tmp_path / "scored", rows)
    config = SelectConfig(scores=scores, out=str(tmp_path / "chosen"), strategy="prior")

    def select(out: str, **changes: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "vig_ray"):
            job.run(config.model_copy(update={"out": str(tmp_path / out), **changes}))
        return [message for message in caplog.messages if "was trained on" in message]

    assert select("before") == []
    path = Path(f"{scores}/scores.stage.json")
    record = json.loads(path.read_text())
    record["config"]["reference_model"] = reference
    path.write_text(json.dumps(record))
    (told,) = select("after")
    assert "was trained on 148 of the 400 samples that it weighs (37 %)" in told
    assert (read_stage(str(tmp_path / "after" / "selection")) or {})["reference_model"]["trained_on"] == 148
    assert select("another", strategy="random") == []
