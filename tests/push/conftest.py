"""A hub that can be written to, and runs to push."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub, hub
from tests.hub_writing import Writing, writable


@pytest.fixture
def writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writing]:
    """The hub, and a token that may write to org's repositories."""
    (tmp_path / "hub").mkdir()
    with hub(tmp_path / "hub") as server, writable(server) as writes:
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield writes


@pytest.fixture
def server(writing: Writing) -> Hub:
    return writing.server
