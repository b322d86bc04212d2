"""Made-up scores, their rows, and the numbers of a report of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.report.opened import Opened
from tests.report.reporting import report, with_turns
from tests.selection.made import made_up, write


@pytest.fixture(scope="package")
def rows() -> list[dict[str, Any]]:
    return with_turns(made_up(700, seed=3, ties=True), 4)


@pytest.fixture(scope="package")
def scores(rows: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("made"), rows, files=4)


@pytest.fixture(scope="package")
def told(scores: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report(scores, tmp_path_factory.mktemp("report"), p="30,50,70,100", least=5, tokens=7)


@pytest.fixture(scope="package")
def stored(scores: str) -> list[dict[str, Any]]:
    """The rows as the Parquet files have them."""
    return [row for path in sorted(Path(scores, "scores").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="package")
def scored(stored: Any) -> list[dict[str, Any]]:
    return [row for row in stored if row["vig"] is not None]


@pytest.fixture(params=["light", "dark", "phone"])
def opened(request: pytest.FixtureRequest, browser: Any, written: Path) -> Iterator[Opened]:
    """The page that the module's `written` gives, in a browser."""
    options: dict[str, Any] = {"dark": {"color_scheme": "dark"}, "phone": {"viewport": {"width": 400, "height": 800}}}
    found = Opened(browser, written, **options.get(request.param, {}))
    yield found
    found.close()
