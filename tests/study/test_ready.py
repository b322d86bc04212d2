"""The ready studies, each with one seed: everything in them runs, and every arm has its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import call
from tests.study import made
from vig_ray.errors import StageError
from vig_ray.study import file as files
from vig_ray.study.graph import spell_out

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(7200)]

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: str(path.stem))
def test_a_ready_study(path: Path, tmp_path: Path) -> None:
    study = files.read(str(path))
    if study.prepare:
        try:
            spell_out(study, str(path), str(tmp_path))
        except StageError as error:
            pytest.skip(str(error))
    call("study", str(path), "--out", str(tmp_path / "out"), "--seeds", "1", "--workers", "2", "--strict")
    results = made.results(tmp_path / "out")
    assert not results["missing"]
    for row in results["rows"]:
        assert all(number["by_seed"] for number in row["numbers"].values()), row["label"]
