"""The fixture of tests over all families."""

from __future__ import annotations

import pytest

from tests.model.family import NAMES, Family


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))
