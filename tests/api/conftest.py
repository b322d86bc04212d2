"""Rows of the demo world as a program holds them, and scores of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vig_ray.api import Scores, score
from vig_ray.demo import CHECKPOINT, world

SAMPLES = 20


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's dataset as files."""
    made = tmp_path_factory.mktemp("world")
    world.write(str(made), SAMPLES, 7)
    return made


@pytest.fixture(scope="package")
def rows(folder: Path) -> list[dict[str, Any]]:
    """The same with PIL images in place of paths."""
    found = json.loads((folder / "data.json").read_text())
    for row in found:
        if "image" in row:
            row["image"] = Image.open(folder / row["image"])
    return list(found)


@pytest.fixture(scope="package")
def scores(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Not to be changed."""
    return score(rows, CHECKPOINT, out=tmp_path_factory.mktemp("scored"))
