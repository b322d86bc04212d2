"""Shared by the tests of training: demo samples, scored and selected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import made_once
from tests.selection.made import write_selected


@pytest.fixture(scope="session")
def chosen(tmp_path_factory: pytest.TempPathFactory, demo_model: Any, demo_formatter: Any) -> Path:
    """300 demo samples: samples/, scores/ and selection/, of which p = 60 % are kept and masked."""

    def make(out: Path) -> None:
        write_selected(out, demo_model, demo_formatter, samples=300, p=60)

    return made_once(tmp_path_factory, "chosen", make)
