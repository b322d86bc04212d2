"""`vig audit` on the demo world: what the packaged model sees and what it can't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.command import call, refused
from tests.selection.made import made_up, write
from tests.selection.test_select import scored as scored_of
from vig_ray.demo import CHECKPOINT, world
from vig_ray.demo.knobs import Knobs
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.job import run

K = 4


def score(folder: Path, data: str, **options: Any) -> None:
    run(ScoreConfig(data=data, model=CHECKPOINT, out=str(folder), **options), in_process=True)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited")
    data = world.write(str(folder / "data"), 160, 5)
    score(folder, data, reference=("blur", "marginal", "swap"), marginal_images=K)
    return folder


def test_kinds_that_need_the_image_and_kinds_that_do_not(scored: Path) -> None:
    rows = [json.loads(line) for line in call("audit", "--scores", str(scored), "--json-lines").stdout.splitlines()]
    of_kind = {row["source"]: row for row in rows}
    table = pq.read_table(scored / "scores").to_pylist()
    for name, row in of_kind.items():
        of_name = [each for each in table if each["source"] == name and each["marginal_losses"]]
        pairs = [(each["clean_loss"], loss) for each in of_name for loss in each["marginal_losses"]]
        wins = [1.0 if clean < other else 0.5 if clean == other else 0.0 for clean, other in pairs]
        assert row["samples"] == len(of_name)
        assert row["auroc"] == pytest.approx(sum(wins) / len(wins))
    assert of_kind["place"]["seen"]
    assert not of_kind["knowledge"]["seen"]
    told = call("audit", "--scores", str(scored)).stdout
    assert "there is no sign that this model sees what is asked" in told
    assert "knowledge" in told.rpartition("may be noise: ")[2].splitlines()[0]
    assert "place" not in told.rpartition("may be noise: ")[2]


def test_clusters_of_questions_and_swapped_images(scored: Path) -> None:
    words = ["--by", "cluster", "--clusters", "3", "--embedding-model", "words", "--json-lines"]
    rows = [json.loads(line) for line in call("audit", "--scores", str(scored), *words).stdout.splitlines()]
    assert [row["samples"] for row in rows] == sorted((row["samples"] for row in rows), reverse=True)
    assert all(row["question"] for row in rows)
    swapped = call("audit", "--scores", str(scored), "--reference", "swap").stdout
    assert "beats another %" in swapped


def test_all_samples_that_lack_a_pass_are_counted(tmp_path: Path) -> None:
    """Those whose own image is gone, too, and text-only ones not."""
    rows = made_up(300, seed=9)
    for row in scored_of(rows):
        row["swap_loss"], row["swap_logprobs"] = row["blur_loss"], row["blur_logprobs"]
    for row in scored_of(rows)[:40]:
        row["swap_loss"], row["swap_logprobs"], row["error"] = None, None, "Swap: NoOther: none"
    made = write(tmp_path, rows, references=["blur", "swap"])
    gone = sum(row["vig"] is None and row["error"] is not None for row in rows)
    assert gone > 5
    assert f"{40 + gone} samples with an image lack a pass and were left out" in call("audit", "--scores", made).stdout


def test_where_all_images_are_wrong_nothing_is_seen(tmp_path: Path) -> None:
    data = world.write(str(tmp_path / "data"), 200, 6, Knobs(mismatched=1.0))
    rows = json.loads(Path(data).read_text())
    for number, row in enumerate(rows):
        row["source"] = f"source-{number % 8}"
    Path(data).write_text(json.dumps(rows))
    score(tmp_path, data, reference=("marginal",))
    rows = [json.loads(line) for line in call("audit", "--scores", str(tmp_path), "--json-lines").stdout.splitlines()]
    assert len(rows) == 8
    assert sum(row["seen"] for row in rows) <= 1


def test_scores_without_other_images_are_refused_with_the_command(scored: Path, tmp_path: Path) -> None:
    score(tmp_path, str(scored / "samples"))
    told = refused("audit", "--scores", str(tmp_path))
    assert "hold blur; an audit compares a sample's image with others of the dataset" in told
    assert "--reference blur,marginal adds them" in told


def test_groups_too_small_to_tell_and_options_without_effect(scored: Path, tmp_path: Path) -> None:
    """One sample says neither that the model sees nor that it doesn't."""
    rows = json.loads((scored / "data" / "data.json").read_text())
    first = next(number for number, row in enumerate(rows) if "image" in row)
    rows[first]["source"] = "alone"
    few = scored / "data" / "few.json"  # beside the images
    few.write_text(json.dumps(rows[: first + 20]))
    score(tmp_path, str(few), reference=("marginal",), marginal_images=K)
    told = call("audit", "--scores", str(tmp_path)).stdout
    assert "alone" in told.rpartition("Too few samples to tell: ")[2]
    assert "alone" not in told.rpartition("may be noise: ")[2].splitlines()[0]
    assert "--clusters has no effect without --by cluster" in refused(
        "audit", "--scores", str(scored), "--clusters", "3"
    )
